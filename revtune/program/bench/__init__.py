"""What `revtune bench` measures: memory, speed, and what tuning costs."""
