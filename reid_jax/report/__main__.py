"""Rebuilds the report of a finished run: `python -m reid_jax.report WORKDIR [--baseline WORKDIR2]`."""

import argparse
import sys

from reid_jax.errors import ReidError
from reid_jax.report import build


def main(argv=None):
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m reid_jax.report", description=__doc__)
    parser.add_argument("workdir", help="folder of a finished run")
    parser.add_argument("--baseline", default="", metavar="WORKDIR2", help="finished run to compare with")
    parser.add_argument("--data_root", metavar="DIR", help="where the pictures are, if they were moved")
    parser.add_argument("--queries", type=int, default=12, help="number of retrieval strips (%(default)s)")
    args = parser.parse_args(argv)
    try:
        path = build(args.workdir, data_root=args.data_root, queries=args.queries, baseline=args.baseline)
    except ReidError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
