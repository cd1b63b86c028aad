"""The program `revtune`; the library imports nothing of it.

From the ground up: files and settings; `data` and `runs`; what is learnt (`language`, `tasks`, `translation`);
`recipes` (settings by name); `studies` and `bench`; `cli`. Begin with `cli.main`, or with `recipes` for what can be
trained.
"""
