"""The program `revtune`; the library imports nothing of it."""
