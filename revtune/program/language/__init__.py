"""Language models: configuration, model, training, evaluation, text from them."""
