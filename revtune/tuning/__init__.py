"""Self-tuning networks; nothing in here knows of the reversible half."""
