"""Contests of ways to tune, each with the same time."""
