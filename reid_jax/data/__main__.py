"""Commands on data sets.

python -m reid_jax data list
python -m reid_jax data check market1501 --root /data/Market-1501-v15.09.15
python -m reid_jax data build market1501 --root /data/Market-1501-v15.09.15 --output /data/built
python -m reid_jax data synthesize --root /data/drawn --sheet sheet.png
python -m reid_jax data sheet --name market1501 --root /data/Market-1501-v15.09.15 --out sheet.png
"""

import os

from reid_jax import cli, places
from reid_jax.config import defaults
from reid_jax.data import build, check, listing
from reid_jax.errors import DataError


def _records(name, root, split):
    """(records, camera names) of a data set in its original layout."""
    from reid_jax.data.datasets import load_folder
    from reid_jax.data.synthetic import stored_camera_names

    dataset = load_folder(name, root, check_counts=False)
    names = stored_camera_names(dataset.root) or dataset.camera_names
    if split == "train":
        return dataset.train, names
    return [r for r in (*dataset.query, *dataset.gallery) if r.pid > 0], names


def _save_sheet(path, records, names, ids=8, per_cell=1):
    """One row per identity; of tracklets one row per tracklet, with 12 frames of it."""
    from reid_jax.data.synthetic import sheet, strip

    if records and records[0].frames:
        page = strip(records, names, tracklets=ids, frames=12 * per_cell)
    else:
        page = sheet(records, names, ids=ids, per_cell=per_cell)
    _save(path, page)


def _save_moving(path, records, ids):
    from reid_jax.data.synthetic import animate

    pages = animate(records, tracklets=ids)
    _save(path, pages[0], save_all=True, append_images=pages[1:], duration=80, loop=0)


def _save(path, page, **options):
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    try:
        page.save(path, **options)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: cannot write the sheet ({error}); choose another file, such as sheet.png"
        ) from error
    print(f"{path}: {page.width} x {page.height} pixels")


# ---- synthesize -----------------------------------------------------------------------------------------
_HELP = dict(
    kind="image (Market-1501's layout), video (tracklets, MARS's), "
    "lowres, caviar or lowlight (DI-REID's), infrared (SYSU-MM01's), occluded (queries half hidden)",
    tracklets="video: tracklets per identity and camera; the first one of a test identity is the query",
    frames="video: of the shortest and the longest tracklet",
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
    style="from 1 on all cameras have one environment, by this number: sets of two styles are two domains",
)


def _synthesize_flags(parser):
    root = places.argument("--root", places.written)
    parser.add_argument("--root", required=True, type=root, help="folder to put the set into")
    for field, value in defaults()["data"]["synthetic"].items():
        flag = "--" + field.replace("_", "-")
        text = f"{_HELP.get(field, field)} (default {value})"
        if isinstance(value, tuple):
            parser.add_argument(flag, type=int, nargs=len(value), default=value, help=text)
        else:
            parser.add_argument(flag, type=type(value), default=value, help=text)
    parser.add_argument("--workers", type=cli.whole(1), default=1, help="processes (default 1)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    sheet = places.argument("--sheet", places.written)
    parser.add_argument("--sheet", metavar="FILE.png", type=sheet, help="also write a contact sheet")


def _synthesize(args):
    from reid_jax.data.synthetic import generate, layout_of

    settings = {field: getattr(args, field) for field in defaults()["data"]["synthetic"]}
    folder = generate(args.root, **settings, workers=args.workers, progress=not args.quiet)
    print(folder)
    if args.sheet:
        per_cell = 1 if args.kind == "video" else min(2, args.images)
        _save_sheet(args.sheet, *_records(layout_of(args.kind), folder, "test"), per_cell=per_cell)


# ---- sheet ----------------------------------------------------------------------------------------------
def _sheet_flags(parser):
    root, out = places.argument("--root"), places.argument("--out", places.written)
    parser.add_argument("--root", required=True, type=root, help="folder of the data set, or its parent")
    parser.add_argument("--out", required=True, metavar="FILE.png", type=out)
    parser.add_argument("--name", default="market1501", help="kind of data set (default market1501)")
    parser.add_argument("--ids", type=cli.whole(1), default=8, help="rows (default 8)")
    parser.add_argument(
        "--per-cell", type=cli.whole(1), default=1, help="pictures per identity and camera (default 1)"
    )
    animate = places.argument("--animate", places.written)
    parser.add_argument(
        "--animate", metavar="FILE.webp", type=animate, help="tracklets: also a moving picture (webp, gif)"
    )
    parser.add_argument("--split", choices=("test", "train"), default="test", help="(default test)")
    cli.add_dry_flag(parser)


def _sheet(args):
    if args.dry_run:
        from reid_jax import dry

        need = dry.of_set(args.name, args.root)
        return dry.tell([f"write a contact sheet of {args.name}, {args.out}"], [need])
    records, names = _records(args.name, args.root, args.split)
    _save_sheet(args.out, records, names, ids=args.ids, per_cell=args.per_cell)
    if args.animate:
        _save_moving(args.animate, records, args.ids)
    return 0


# A command is its help line, a function that adds flags and one that runs it.
COMMANDS = {
    "synthesize": ("draw a synthetic data set, of pictures or tracklets", _synthesize_flags, _synthesize),
    "sheet": ("contact sheet of a data set: identities x cameras, or frames", _sheet_flags, _sheet),
    "list": ("supported data sets, whom to ask for them and on which terms", listing.flags, listing.run),
    "check": ("look for missing, broken, doubled or mislabelled files of a data set", check.flags, check.run),
    "build": ("write a data set as array_record files, for data.source=tfds", build.flags, build.run),
}


def main(argv=None):
    """Runs a command; returns the exit code: 1 when check found problems."""
    parser = cli.parser("data", __doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (text, flags, _) in COMMANDS.items():
        flags(cli.action(commands, "data", name, text, __doc__))
    args = parser.parse_args(argv)
    return COMMANDS[args.command][2](args) or 0


if __name__ == "__main__":
    cli.run(main)
