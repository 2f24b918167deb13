"""python -m reid_jax.data check: is this copy of a data set whole, readable and what was published?"""

import dataclasses
import os

from reid_jax import places
from reid_jax.data import build, folders, synthetic, testable
from reid_jax.data.check.files import broken_links, deep, duplicates, left_out, read_files, turned, unreadable
from reid_jax.data.check.identities import overlap, people, unmatched, wrong_counts, wrong_names
from reid_jax.data.check.output import describe, shorten, write
from reid_jax.data.check.problems import ADVICE
from reid_jax.data.loaders import LAYOUTS, folder, walk
from reid_jax.data.loaders.common import Options, find_root
from reid_jax.fields import whole


def flags(parser):
    """Flags of the command."""
    build.source_flags(parser)
    parser.add_argument(
        "--protocol",
        choices=("auto", "market", testable.ALL_PAIRS, "single-shot", "single-gallery"),
        default="auto",
        help="by which it will be tested (config.eval.protocol); auto: the set's own (default)",
    )
    parser.add_argument("--quick", action="store_true", help="read the files, but decode none")
    parser.add_argument(
        "--threads", type=whole(1), default=os.cpu_count() or 1, help="(default: one for each core)"
    )
    parser.add_argument("--show", type=whole(0), default=5, help="paths printed of each problem (default 5)")
    written = places.argument("--json", places.written)
    parser.add_argument("--json", metavar="FILE", type=written, help="write everything found")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(args):
    """Checks, prints; returns 1 when something is wrong."""
    how = args.quick, max(args.threads, 1), not args.quiet, args.protocol
    result = check(args.name, args.root, build.options_of(args), *how)
    print(describe(result, args.show))
    if args.json:
        write(args.json, result)
    return 1 if result["problems"] else 0


def check(name, root, options=None, quick=False, threads=1, progress=False, protocol="auto"):
    """Everything there is to say about a copy, as a dict for JSON.

    {"title", "kind", "root", "counts", "published", "frames" {split: n}, "cameras" {split: n}, "files",
    "problems": [{"kind", "message", "advice", "items"}], "notes", "left_out": {reason: {path: number of
    pictures}}}. Paths are relative to root. Errors: as
    folders.load_folder, when so much is missing that nothing can be counted.
    """
    layout, root, splits, strange, left = read(name, root, options or Options())
    paths = testable.paths_of(r for records in splits.values() for r in records)
    files = read_files(paths, quick, threads, progress)
    counts = folders.count(splits)
    doubled, notes = duplicates(files, splits)
    problems = [*wrong_counts(layout, counts), *wrong_names(strange), *unreadable(files)]
    problems += [*overlap(layout, splits), *doubled, *broken_links(left)]
    protocol = layout.protocol if protocol == "auto" else protocol
    problems, notes = problems + unmatched(splits, protocol), notes + people(splits, protocol)
    notes += [*turned(files), *deep(files), *left_out(left, root)]
    return {
        "title": layout.title,
        "kind": layout.kind,
        "root": root,
        "counts": counts,
        "published": dict(layout.counts),
        "frames": {s: sum(map(len, records)) for s, records in splits.items()},
        "cameras": {s: len({r.camid for r in records}) for s, records in splits.items()},
        "files": len(files),
        "problems": [
            {
                "kind": p.kind,
                "message": p.message,
                "advice": ADVICE[p.kind],
                "items": [shorten(item, root) for item in p.items],
            }
            for p in problems
        ],
        "notes": notes,
        "left_out": {r: {shorten(p, root): n for p, n in paths.items()} for r, paths in left.items()},
    }


def read(name, root, options):
    """(Layout, root, {split: records as published, junk left out}, strange paths, see walk.noting)."""
    if name == "synthetic":
        root, options = build.synthetic_folder(root), Options()
        layout = LAYOUTS[synthetic.layout_of(synthetic.stored_kind(root))]
    else:
        layout = LAYOUTS[name]
    options = layout.check(options)
    layout = layout.form(options.variant)
    root = find_root(layout, os.path.abspath(places.local(root, "--root")))
    reading, left = folders.read(layout, root, options)
    if name == "folder" and (path := folder.csv_path(root, options)):
        left[f"not in {os.path.basename(path)}"] = unlisted(root, reading.splits)
    splits = folders.clean(layout, root, reading.splits, unlabelled=True, needed=())
    unknown = not any(r.pid >= 0 for r in splits["train"])  # a folder of pictures that nobody has labelled
    strange = folders.skipped(reading, unknown)
    if name == "synthetic":
        layout = dataclasses.replace(layout, title="synthetic set", counts={})
    about = {"kind": reading.kind or layout.kind, "protocol": reading.protocol or layout.protocol}
    return dataclasses.replace(layout, **about), root, splits, strange, left


def unlisted(root, splits):
    """{path: 1} of pictures below root that a table does not name."""
    with walk.noting():
        pictures = walk.pictures(root)
    names = set(testable.paths_of(r for records in splits.values() for r in records))
    real = {os.path.realpath(path) for path in names} if any(real for _, real in pictures) else set()
    return {path: 1 for path, target in pictures if path not in names and target not in real}
