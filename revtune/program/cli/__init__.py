"""The command line: `main` dispatches, and each command is the module of its name.

Begin with `main`; `options` are the commands' typed arguments, `folders` says whose a run folder is.
"""
