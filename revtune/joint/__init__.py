"""Both halves at once: reversible nets that tune their own hyperparameters while they train.

Begin with `rev_layers`, RevGRU and RevLSTM with a response. What is made here is entered into the tables of `tuning`
when revtune is imported.
"""
