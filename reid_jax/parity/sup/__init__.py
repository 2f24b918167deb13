"""Runners of the cases `sup__*`: functions of the modules in here, called as the case; the docstring's first
line is shown.
"""
