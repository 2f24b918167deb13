"""The report of a finished run: one self-contained HTML file made from the files of a workdir.

`build(workdir)` writes WORKDIR/report.html; `python -m reid_jax.report WORKDIR` does it again later.
"""

from reid_jax.report.build import build, check_compared

__all__ = ["build", "check_compared"]
