"""The study of the repeat task."""
