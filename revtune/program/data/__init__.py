"""Where data come from: text, images and sentence pairs, from files or the hub.

Begin with `text`, `images` or `pairs`, a file a kind; `named_sets` asks for what is not on disk.
"""
