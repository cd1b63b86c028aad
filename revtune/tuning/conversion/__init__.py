"""A plain network made self-tuning, run at fixed values, and made plain again.

Begin with `convert` (`self_tuning`); `bypasses` finds what a conversion cannot reach; `freeze` is `frozen`.
"""
