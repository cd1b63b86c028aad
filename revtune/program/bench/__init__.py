"""What `revtune bench` measures: memory, speed, and what tuning costs, each contestant in a process or in turns.

Begin with `measuring`, then `memory`, `speed` or `tuning`, a benchmark each.
"""
