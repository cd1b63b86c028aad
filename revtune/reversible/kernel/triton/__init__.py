"""The kernel in Triton, for an NVIDIA GPU: the CPU kernel's own bits, and its operators' arguments.

Nothing but engine.py imports what is in here, as it needs the package triton. docs/gpu.md says what was verified.
"""
