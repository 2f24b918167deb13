"""Commands on data sets: python -m reid_jax.data synthesize|sheet ..."""

import argparse
import os
import sys

from reid_jax.config import defaults
from reid_jax.errors import DataError, ReidError


def _records(name, root, split):
    """(records, camera names) of a data set in its original layout."""
    from reid_jax.data.datasets import load_folder
    from reid_jax.data.synthetic import stored_camera_names

    dataset = load_folder(name, root, check_counts=False)
    names = stored_camera_names(dataset.root) or dataset.camera_names
    if split == "train":
        return dataset.train, names
    return [r for r in (*dataset.query, *dataset.gallery) if r.pid > 0], names


def _save_sheet(path, records, names, **options):
    from reid_jax.data.synthetic import sheet

    page = sheet(records, names, **options)
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    try:
        page.save(path)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: cannot write the sheet ({error}); choose another file, such as sheet.png"
        ) from error
    print(f"{path}: {page.width} x {page.height} pixels")


# ---- synthesize -----------------------------------------------------------------------------------------
_HELP = dict(
    train_ids="training identities",
    test_ids="test identities",
    cameras="cameras; each has its own environment",
    images="pictures per identity and camera; the first one of a test identity is the query",
    height="of the pictures, pixels",
    width="of the pictures, pixels",
    strength="how much cameras change the picture, 0 to 1.5",
    distractors="pictures with id 0000 in the gallery",
    junk="pictures with id -1 in the gallery folder, which loaders drop",
    seed="another seed makes other people and places",
)


def _synthesize_flags(parser):
    parser.add_argument("--root", required=True, help="folder to put the set into")
    for field, value in defaults()["data"]["synthetic"].items():
        flag = "--" + field.replace("_", "-")
        parser.add_argument(
            flag, type=type(value), default=value, help=f"{_HELP.get(field, field)} (default {value})"
        )
    parser.add_argument("--workers", type=int, default=1, help="processes (default 1)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("--sheet", metavar="FILE.png", help="also write a contact sheet")


def _synthesize(args):
    from reid_jax.data.synthetic import generate

    settings = {field: getattr(args, field) for field in defaults()["data"]["synthetic"]}
    folder = generate(args.root, **settings, workers=args.workers, progress=not args.quiet)
    print(folder)
    if args.sheet:
        _save_sheet(args.sheet, *_records("market1501", folder, "test"), per_cell=min(2, args.images))


# ---- sheet ----------------------------------------------------------------------------------------------
def _sheet_flags(parser):
    parser.add_argument("--root", required=True, help="folder of the data set, or its parent")
    parser.add_argument("--out", required=True, metavar="FILE.png")
    parser.add_argument("--name", default="market1501", help="kind of data set (default market1501)")
    parser.add_argument("--ids", type=int, default=8, help="rows (default 8)")
    parser.add_argument(
        "--per-cell", type=int, default=1, help="pictures per identity and camera (default 1)"
    )
    parser.add_argument("--split", choices=("test", "train"), default="test", help="(default test)")


def _sheet(args):
    records, names = _records(args.name, args.root, args.split)
    _save_sheet(args.out, records, names, ids=args.ids, per_cell=args.per_cell)


# A command is its help line, a function that adds flags and one that runs it.
COMMANDS = {
    "synthesize": ("draw a synthetic data set in the layout of Market-1501", _synthesize_flags, _synthesize),
    "sheet": ("contact sheet of a data set: identities x cameras", _sheet_flags, _sheet),
}


def main(argv=None):
    """Run a command; returns the exit status (2 after an error the user can act on)."""
    parser = argparse.ArgumentParser(prog="python -m reid_jax.data", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (text, flags, _) in COMMANDS.items():
        flags(commands.add_parser(name, help=text, description=text))
    args = parser.parse_args(argv)
    try:
        COMMANDS[args.command][2](args)
    except ReidError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
