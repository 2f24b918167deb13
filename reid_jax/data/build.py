"""python -m reid_jax.data build: a data set as array_record files."""

import os

from reid_jax import places
from reid_jax.data import datasets, synthetic, tfds_sets
from reid_jax.data.loaders import LAYOUTS
from reid_jax.data.loaders.common import Options
from reid_jax.errors import DataError
from reid_jax.fields import whole


def flags(parser):
    """Flags of the command."""
    source_flags(parser)
    output = places.argument("--output", places.written)
    parser.add_argument(
        "--output", required=True, type=output, help="folder for built sets, e.g. /data/built"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def source_flags(parser):
    """Flags that name a data set in its original layout."""
    parser.add_argument("name", choices=datasets.NAMES, metavar="NAME", help=", ".join(datasets.NAMES))
    parser.add_argument(
        "--root", required=True, type=places.argument("--root"), help="folder of the data set, or its parent"
    )
    parser.add_argument("--variant", default="", help="form of the set (config.data.variant)")
    parser.add_argument("--split", type=whole(0), default=0, help="number of the split (config.data.split)")
    parser.add_argument(
        "--split-seed", type=whole(0), default=0, help="of drawn ones (config.data.split_seed)"
    )
    parser.add_argument(
        "--csv",
        default="",
        type=places.argument("--csv"),
        help="labels of the set 'folder' (config.data.csv)",
    )
    parser.add_argument("--pattern", default="", help="names of the set 'folder' (config.data.pattern)")
    parser.add_argument("--train-share", type=float, default=0.5, help="of the set 'folder' (default 0.5)")


def options_of(args):
    """Options of these flags."""
    return Options(args.variant, args.split, args.split_seed, args.csv, args.pattern, args.train_share)


def run(args):
    """Loads the folder and writes it; prints how to train from it."""
    places.in_utf8(args.output, "--output")
    dataset, options = read(args)
    folder = tfds_sets.build(dataset, args.output, options, not args.quiet)
    print(f"{folder}\nTrain from it with --config.data.source=tfds --config.data.root={folder}")


def synthetic_folder(root):
    """The folder of the synthetic set in a folder or its parent; DataError unless there is exactly one."""
    root = os.path.abspath(places.local(root, "--root"))
    folders = [root, *(os.path.join(root, kind.folder) for kind in synthetic.KINDS.values())]
    stored = [folder for folder in folders if synthetic.stored_kind(folder)]
    if not stored:
        raise DataError(
            f"{root} holds no synthetic set: python -m reid_jax.data synthesize --root {root} makes one"
        )
    if len(stored) > 1:
        raise DataError(f"{root} holds several synthetic sets; name one of {', '.join(stored)}")
    return stored[0]


def read(args):
    """(Dataset, Options) of the flags."""
    if args.name == "synthetic":
        return datasets.read_synthetic(synthetic_folder(args.root)), Options()
    options = options_of(args)
    dataset = datasets.load_folder(args.name, args.root, options, unlabelled=True)
    return dataset, LAYOUTS[args.name].check(options)
