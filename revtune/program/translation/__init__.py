"""Translation: model, search, training run, and the command that translates."""
