"""Whether a step fits a chip, and what limits it there, by the chip's own compiler; see `commands.plan`.

chips: what each has. facts: a training set of the published size, without pictures. programs: what a run
compiles, lowered for devices that need not be there. hlo: what the compiled text says. ways: what to change
when it does not fit.
"""
