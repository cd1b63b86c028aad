"""Where data come from: text, images and sentence pairs, from files or the hub."""
