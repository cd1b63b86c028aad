"""Language models: settings, model, training, evaluation, and text sampled from them.

Begin with `config`, then `trainer`, which is the loop; `run` is a run's folder as others use it.
"""
