"""Translation by a reversible encoder and decoder with attention.

Begin with `task`, then `translator` (the model); `beam` and `interpreter` translate, `scores` computes BLEU.
"""
