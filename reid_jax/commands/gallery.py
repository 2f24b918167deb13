"""Galleries of people: built from pictures, searched, changed and checked.

    python -m reid_jax gallery build people.sqlite pictures --model runs/a --camera-from folder
    python -m reid_jax gallery search people.sqlite query.jpg -k 10 --not-camera door --fpir 0.1
    python -m reid_jax gallery remove people.sqlite --person anna
    python -m reid_jax gallery --help; python -m reid_jax gallery search --help

SOURCE is a picture, a folder of pictures, or a table (.csv) with a column path and any of person (pid),
camera (camid), time and tracklet. Pictures are not copied: the gallery holds their features and where they
lie.
"""

import datetime
import json
import os

from tqdm import tqdm

from reid_jax import cli, places
from reid_jax.errors import ConfigError, DataError, ReidError
from reid_jax.serve import arguments
from reid_jax.serve.gallery import NOT_REACHED, Gallery, exists, is_address, shown
from reid_jax.serve.merge import merge
from reid_jax.serve.sources import pictures_of
from reid_jax.tables import comma_separated, markdown, visible, write_text

EXAMPLES = """
python -m reid_jax gallery build people.sqlite pictures --model runs/a --camera-from folder
python -m reid_jax gallery add people.sqlite more --camera door
python -m reid_jax gallery search people.sqlite query.jpg -k 10 --not-camera door --fpir 0.1
python -m reid_jax gallery remove people.sqlite --person anna
python -m reid_jax gallery purge people.sqlite --older-than-days 30
python -m reid_jax gallery label people.sqlite --id 3,4 --person anna
python -m reid_jax gallery calibrate people.sqlite
python -m reid_jax gallery info people.sqlite
python -m reid_jax gallery log people.sqlite --last 20
python -m reid_jax gallery verify people.sqlite
python -m reid_jax gallery compact people.sqlite
python -m reid_jax gallery merge a.sqlite b.sqlite --output both.sqlite
"""
MEGABYTE = 1 << 20
LONG = 100  # pictures, from which on a bar shows how far they are


def main(argv=None):
    """Entry point; returns the exit code."""
    args = parse(argv)
    args.shown = shown(args.gallery) if "gallery" in args else ""
    return ACTIONS[args.action](args)


# ---- parsing
def parse(argv):
    """Command line -> namespace."""
    parser = cli.parser("gallery", __doc__)
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    add = {name: cli.action(actions, "gallery", name, f.__doc__, EXAMPLES) for name, f in ACTIONS.items()}
    for name in add.keys() - {"merge"}:
        add[name].add_argument("gallery", metavar="GALLERY", type=place)
    for name in ("build", "add"):
        _source_flags(add[name])
    add["build"].add_argument(
        "--precision", choices=("float16", "float32"), default="float16", help="of vectors"
    )
    for name in ("build", "add", "search", "info"):
        text = "run or export the features come from (default: what built the gallery)"
        add[name].add_argument("--model", required=name == "build", help=text)
    add["build"].add_argument("--index", action="store_true", help="also build the approximate index")
    _search_flags(add["search"])
    _change_flags(add)
    merged = add["merge"].add_argument
    merged("galleries", metavar="GALLERY", nargs="+", type=place)
    merged("--output", required=True, metavar="GALLERY", type=place, help="a new file, or an empty database")
    for name in ("search", "info", "log"):
        add[name].add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args(argv)


def _source_flags(parser):
    add = parser.add_argument
    add("sources", metavar="SOURCE", nargs="+", type=places.argument("SOURCE"))
    for field in ("camera", "person", "tracklet"):
        add(f"--{field}", help=f"{field} of all pictures")
        more = f", group {field} or the first, finds in its path below SOURCE"
        text = "the name of each picture's folder, or what a regular expression" + more
        add(f"--{field}-from", metavar="folder|REGEX", help=text if field == "camera" else "as --camera-from")
    add("--time", help="of all pictures, with a zone: 2026-05-01T12:00:00+02:00")
    add("--time-from", metavar="mtime|REGEX", help="the file's time of change, or a part of its path")
    add("--on-broken", choices=("stop", "skip"), default="stop", help="pictures that cannot be read")
    add("--again", action="store_true", help="also add pictures that are there already")


def _search_flags(parser):
    add = parser.add_argument
    add("queries", metavar="PICTURE", nargs="*", type=places.argument("PICTURE"), help="of one person")
    add("--id", type=int, help="search for what is like an entry instead")
    add("-k", type=int, default=10, help="number of hits (default: 10)")
    for name in ("camera", "not-camera", "person"):
        add(f"--{name}", action="append", help="may be repeated")
    add("--since", help="with a zone: 2026-05-01T12:00:00Z")
    add("--until")
    add("--fpir", type=float, help="rate of strangers that may be taken for somebody: marks hits as unknown")
    add("--rerank", action="store_true", help="order the first 200 by k-reciprocal neighbours")
    add("--expand", type=int, default=0, metavar="N", help="average the query with its first N hits")
    add("--group", choices=("person", "tracklet"), help="the best hit of each")
    add("--ann", action="store_true", help="use the approximate index where it is right")
    add("--csv", metavar="FILE", type=places.argument("--csv", places.written), help="also write a table")


def _change_flags(add):
    for name in ("person", "camera", "source"):
        add["remove"].add_argument(f"--{name}")
    for name in ("remove", "label"):
        text = "ids, comma-separated"
        add[name].add_argument("--id", type=_ids, required=name == "label", metavar="IDS", help=text)
    add["label"].add_argument("--person", help="name; without it the name is taken away")
    add["purge"].add_argument("--older-than-days", type=float, required=True, metavar="DAYS")
    add["log"].add_argument("--last", type=int, metavar="N", help="rows (default: all)")


def _ids(text):
    return [int(part) for part in text.split(",")]


def place(text):
    """A gallery's file, or the address of a server."""
    return text if is_address(text) else places.written(text, "GALLERY")


# ---- actions
def build(args):
    """make a gallery of pictures"""
    if exists(args.gallery):
        raise DataError(f"{args.shown} exists; add to it (gallery add), or choose another name")
    listed = pictures_of(args)
    with _opened(args, precision=args.precision) as gallery:
        try:
            _add(gallery, args, listed)
        except (ReidError, KeyboardInterrupt):
            if not len(gallery) and not is_address(args.gallery):  # so that the same command can be run again
                gallery.close()
                os.remove(args.gallery)
            raise
        if args.index:
            print(f"{args.shown}: index built, recall {gallery.build_index():.4f}")


def add(args):
    """add pictures; those that are there are left out"""
    listed = pictures_of(args)
    with _opened(args) as gallery:
        _add(gallery, args, listed)


def _add(gallery, args, listed):
    paths, columns = listed
    options = {"on_broken": args.on_broken, "known": "add" if args.again else "skip"}
    with tqdm(total=len(paths), unit="picture", disable=len(paths) < LONG) as bar:
        ids = gallery.add(paths, **columns, source=paths, told=bar.update, **options)
    added = sum(i is not None for i in ids)
    left = f", {len(ids) - added} left out (there already, or broken)" if added < len(ids) else ""
    print(f"{args.shown}: {added} pictures added{left}; {len(gallery)} entries")


def search(args):
    """who is this?"""
    if bool(args.queries) == (args.id is not None):
        raise ConfigError("gallery search needs pictures or --id")
    names = ("k", "camera", "not_camera", "person", "since", "until", "fpir", "rerank", "expand", "group")
    options = {name: getattr(args, name) for name in names}
    ann = "auto" if args.ann else "off"
    with _opened(args, mode="r", ann=ann, log_searches=True, needs_model=args.id is None) as gallery:
        hits = gallery.search(args.queries if args.id is None else args.id, **options)
    head = ["id", "score", "person", "camera", "time", "source"]
    rows = [[h.id, f"{h.score:.4f}", _who(h), h.camera or "", _time(h.time), h.source or ""] for h in hits]
    if args.csv:
        write_text(args.csv, comma_separated(head, rows))
    if args.json:
        print(json.dumps([{**h.__dict__, "time": _time(h.time)} for h in hits], indent=1))
    else:
        print(
            markdown(head, [[str(c) for c in row] for row in rows]) if rows else "no entry passes the filters"
        )


def _who(hit):
    return "unknown" if hit.unknown else hit.person or ""


def _time(moment):
    return moment.isoformat().replace("+00:00", "Z") if moment else ""


def remove(args):
    """delete entries for good: of a person, a camera, a source, or by id"""
    with Gallery(args.gallery) as gallery:
        by = {n: getattr(args, n) for n in ("person", "camera", "source")}
        count = gallery.remove(**by, ids=args.id)
    if not count:  # of a name that is written otherwise, say
        wanted = ", ".join(f"{n} {v}" for n, v in (*by.items(), ("id", args.id)) if v is not None)
        raise DataError(f"nothing was deleted: {args.shown} has no entry of {wanted}")
    print(f"{args.shown}: {count} entries deleted. {NOT_REACHED}")


def purge(args):
    """delete entries by age"""
    with Gallery(args.gallery) as gallery:
        count = gallery.purge(older_than_days=args.older_than_days)
    print(f"{args.shown}: {count} entries deleted. {NOT_REACHED}")


def label(args):
    """name entries, or take their name away"""
    with Gallery(args.gallery) as gallery:
        print(f"{args.shown}: {gallery.label(args.id, args.person)} entries changed")


def calibrate(args):
    """measure thresholds on the named entries, and keep them"""
    with Gallery(args.gallery) as gallery:
        calibration = gallery.calibrate()
    sizes = f"{calibration['queries']} queries of {calibration['people']} people"
    print(f"{args.shown}: {sizes}, {calibration['gallery']} entries")
    for key, title in (("fmr", "pairs of two persons above"), ("fpir", "strangers with a hit above")):
        head = [title, "similarity", "right ones above"]
        rows = [[f"{r:.2%}", f"{s:.4f}", f"{h:.1%}"] for r, s, h in calibration[key]]
        print(markdown(head, rows) if rows else f"{title}: too few for any rate")


def info(args):
    """what is in it"""
    with Gallery(args.gallery, _model(args.model), mode="r") as gallery:
        about = gallery.info()
    if args.json:
        print(json.dumps(about, default=_time, indent=1))
        return
    cameras = about.pop("cameras")
    shown = ", ".join(f"{n} ({c})" for n, c in list(cameras.items())[:20]) or "none"
    rates = ", ".join(f"{r:g}: {s:.3f}" for r, s, *_ in about.pop("thresholds")) or "none"
    about["bytes"] = f"{about['bytes'] / MEGABYTE:.1f} MiB"
    for name, value in {**about, "cameras": shown, "similarity at fpir": rates}.items():
        text = _time(value) if isinstance(value, datetime.datetime) else value
        print(visible(f"{name:<20}{'' if text is None else text}"))


def log(args):
    """what was done with it"""
    with Gallery(args.gallery, mode="r") as gallery:
        rows = gallery.history(args.last)
    for row in rows:
        if args.json:
            print(json.dumps({**row, "time": _time(row["time"])}))
        else:
            detail = ", ".join(f"{k} {v}" for k, v in row["detail"].items() if v not in (None, {}))
            chain = f" [{row['chain']}]" if row["chain"] else ""
            print(visible(f"{_time(row['time'])}{chain}  {row['actor']}  {row['action']}  {detail}"))


def verify(args):
    """look for damage: pages, checksums, the audit's chain"""
    with Gallery(args.gallery, mode="r") as gallery:
        problems = gallery.verify()
    if problems:
        raise DataError(f"{args.shown} is damaged; restore a backup:\n" + "\n".join(problems[:20]))
    print(f"{args.shown}: whole")


def compact(args):
    """give free space back"""
    with Gallery(args.gallery) as gallery:
        before, after = gallery.compact()
    print(f"{args.shown}: {before / MEGABYTE:.1f} -> {after / MEGABYTE:.1f} MiB")


def merge_all(args):
    """several galleries of one model as one"""
    shifts = merge(args.galleries, args.output, arguments.user())
    for path, shift in zip(args.galleries, shifts, strict=True):
        print(f"{shown(path)}: ids + {shift}")


ACTIONS = {
    "build": build, "add": add, "search": search, "remove": remove, "purge": purge, "label": label,
    "calibrate": calibrate, "info": info, "log": log, "verify": verify, "compact": compact,
    "merge": merge_all,
}  # fmt: skip


# ---- models
def _opened(args, needs_model=True, **options):
    """The Gallery with the model of --model, or that which built it."""
    source = args.model
    if args.action != "build" and not exists(args.gallery):  # a name with a slip, say: no new one
        raise DataError(f"there is no gallery {args.shown}; build it: reid_jax gallery build")
    if source is None:
        with Gallery(args.gallery, mode="r") as gallery:
            source = gallery.file.meta.get("source")
        if not source and needs_model:
            raise ConfigError(f"{args.shown} does not say what built it; give --model")
    try:
        model = _model(source) if needs_model else None
    except ConfigError as error:
        way = "" if args.model else f"; it built {args.shown}, and --model says where it is now"
        raise ConfigError(f"{error}{way}") from error
    return Gallery(args.gallery, model, source=_recorded(source or ""), **options)


def _recorded(source):
    """What the gallery keeps of --model, so that it is known in other folders too."""
    return source if not source or "://" in source else os.path.abspath(places.local(source, "--model"))


def _model(source):
    """The Embedder of a run or an export; None for None."""
    if source is None:
        return None
    import reid_jax

    return reid_jax.load(source)


if __name__ == "__main__":
    cli.run(main)
