"""What every run has: a folder of its own, checkpoints, metrics, a clock, and a way to stop and resume.

Begin with `folder`; `checkpoint` writes what a run resumes from bit for bit.
"""
