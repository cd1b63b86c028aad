"""The study of the repeat task: without forgetting, nets fail as sequences grow.

Begin with `study`; `results` draws and concludes.
"""
