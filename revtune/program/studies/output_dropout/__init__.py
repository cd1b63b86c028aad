"""The schedule experiment: one rate, tuned, fixed, moving and replayed."""
