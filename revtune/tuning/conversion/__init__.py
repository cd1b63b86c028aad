"""Any network made self-tuning, run at fixed values, or made plain again."""
