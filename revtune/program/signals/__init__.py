"""Long signals: nets that read them whole, truncated or in checkpointed segments, and tasks that are learnt so.

Recipes of the kind "signal" name these tasks; `studies.tuned` runs them.
"""
