"""Numerical parity with PyTorch: recorded cases, runners for them, and the comparison.

A case is an .npz file with inputs, weights and what a reference gave for them (`case.py`). A runner is a
function of a case that computes the same arrays with this library's code: the modules `efl`, `eval`, ...
hold those of the cases `efl__*`, `eval__*`. `python -m reid_jax.parity PATH...` compares.
"""
