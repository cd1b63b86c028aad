"""The alternation of both levels: gradients, steps, batches, checks and history."""
