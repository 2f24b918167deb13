"""Compares this library with recorded reference outputs.

    python -m reid_jax parity tests/cases
    python -m reid_jax parity mine.npz --runners runners.py --all

PATH: a case (.npz) or a folder of them. Every case runs in float64, which decides, and in float32, for
information. The exit code is 1 when a case fails, cannot be read or has no runner.
"""

import json
import logging
import time

from reid_jax import cli, places


def main(argv=None):
    """Runs the command with these arguments; returns the exit code."""
    args = parse(argv)
    import jax

    jax.config.update("jax_platforms", args.platform)  # float64 is not for TPUs, and slow on GPUs
    logging.getLogger("jax").setLevel(logging.ERROR)
    from reid_jax.parity import case, run

    paths = case.find(args.paths)
    runners = run.own_runners(args.runners)
    reports = []
    print(run.HEADER, flush=True)
    for path in paths:
        began = time.monotonic()
        report = run.report(path, runners, float32=not args.no_float32)
        reports.append(report)
        print(run.line(report), flush=True)
        for text in run.details(report, everything=args.all):
            print(text, flush=True)
        report["seconds"] = round(time.monotonic() - began, 2)
    if args.json:
        with open(args.json, "w") as f:
            json.dump(reports, f, indent=1)
    print(run.summary(reports))
    return int(any(not r["ok"] for r in reports))


def parse(argv):
    """Command line -> namespace."""
    parser = cli.parser("parity", __doc__)
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        type=places.argument("PATH"),
        help="a case (.npz) or a folder of cases",
    )
    parser.add_argument("--all", action="store_true", help="list every array, not only the failed ones")
    parser.add_argument("--no-float32", action="store_true", help="float64 only, half the time")
    parser.add_argument(
        "--json",
        metavar="FILE",
        type=places.argument("--json", places.written),
        help="write all figures to a file",
    )
    parser.add_argument(
        "--runners",
        metavar="FILE.py",
        type=places.argument("--runners"),
        help="runners of your own cases, one function each",
    )
    parser.add_argument("--platform", default="cpu", help="JAX platform to compute on (default: cpu)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    cli.run(main)
