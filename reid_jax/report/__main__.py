"""Writes the report of a finished run again.

python -m reid_jax report runs/a
python -m reid_jax report runs/a --baseline runs/b --data_root /data/moved
"""

from reid_jax import cli, places
from reid_jax.report import build


def main(argv=None):
    """Entry point; returns the exit code."""
    parser = cli.parser("report", __doc__)
    parser.add_argument("workdir", type=places.argument("WORKDIR"), help="folder of a finished run")
    parser.add_argument(
        "--baseline",
        dest="compare_with",
        default="",
        metavar="WORKDIR2",
        type=places.argument("--baseline"),
        help="finished run to compare with",
    )
    parser.add_argument("--data_root", metavar="DIR", help="where the pictures are, if they were moved")
    parser.add_argument("--queries", type=cli.whole(0), default=12, help="retrieval strips (%(default)s)")
    cli.add_dry_flag(parser)
    args = vars(parser.parse_args(argv))
    if args.pop("dry_run"):
        from reid_jax import dry

        runs = [run for run in (args["workdir"], args["compare_with"]) if run]
        return dry.tell([f"write {args['workdir']}/report.html"], [dry.of_run(run) for run in runs])
    print(build(**args))
    return 0


if __name__ == "__main__":
    cli.run(main)
