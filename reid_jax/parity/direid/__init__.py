"""Runners of the cases `direid__*`: functions of the modules in here, called as the case; the docstring's
first line is shown.
"""
