"""python -m reid_jax.data check: is this copy of a data set whole, readable and what was published?"""

import collections
import concurrent.futures
import dataclasses
import hashlib
import io
import json
import os
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from reid_jax import places
from reid_jax.data import build, decode, folders, synthetic, testable
from reid_jax.data.loaders import LAYOUTS, folder, walk
from reid_jax.data.loaders.common import Options, find_root
from reid_jax.errors import DataError
from reid_jax.fields import whole

ADVICE = {
    "count": "the copy is incomplete, or another version: unpack the archive again, or see --variant",
    "name": "they are skipped: remove what does not belong to the set, unpack misnamed files again",
    "unreadable": "copy them again or remove them (config.data.on_broken=skip trains and tests without them)",
    "overlap": "people would be tested on whom the network has seen: put the original split back (harmless "
    "only where a set numbers its test identities anew)",
    "match": "a run would end at its first evaluation, and is not started",
    "link": "copy or mount what they lead to, or remove them; they are left out",
    "duplicate": "the same file under two labels: compare with the original archive, remove the wrong one",
}


class Problem(NamedTuple):
    """Something wrong: a key of ADVICE, one line, the paths (or ids) it concerns."""

    kind: str
    message: str
    items: list


class File(NamedTuple):
    """What reading a file gave."""

    path: str
    size: int
    digest: bytes
    error: str = ""  # of a whole one
    turned: bool = False  # by its EXIF orientation
    deep: tuple = ()  # of grey pictures of more than 8 bits: lowest and highest value, the value of white


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


def paths_of(record):
    """The files of a record."""
    return record.frames or (record.path,)


# ---- files ----------------------------------------------------------------------------------------------
def read_files(paths, quick, threads, progress):
    """[File] of the paths, in their order."""
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        reads = pool.map(lambda path: read_file(path, quick), paths, chunksize=64)
        return list(tqdm(reads, total=len(paths), unit="file", disable=not progress))


def read_file(path, quick):
    """Reads, hashes and, unless quick, decodes a file."""
    try:
        with open(path, "rb") as f:
            data = f.read()
    except OSError as e:
        return File(path, 0, b"", e.strerror or str(e))
    fields = path, len(data), hashlib.blake2b(data, digest_size=16).digest()
    if not data:
        return File(*fields, "empty")
    turned = decode.orientation(data) != 1
    try:
        return File(*fields, "", turned, () if quick else values(data))
    except Exception as e:  # PIL's plugins raise whatever a damaged byte leads to
        return File(*fields, "no image" if isinstance(e, UnidentifiedImageError) else str(e) or repr(e))


def values(data):
    """File.deep of a picture, which is decoded."""
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        decode.rgb(image)
        if not decode.is_deep(image):
            return ()
        grey = decode.values_of(image)
        return float(grey.min()), float(grey.max()), decode.span(grey)[1]


def unreadable(files):
    """Files that cannot be read."""
    broken = [f"{f.path} ({f.error})" for f in files if f.error]
    return (
        [Problem("unreadable", f"{len(broken)} of {len(files)} files cannot be read", broken)]
        if broken
        else []
    )


def turned(files):
    """Notes on EXIF orientations."""
    count = sum(f.turned for f in files)
    text = f"{count} pictures have an EXIF orientation: they are turned as a viewer does, as long as "
    return [f"{text}config.data.exif is set"] if count else []


def deep(files):
    """Notes on grey pictures of more than 8 bits."""
    spans = [f.deep for f in files if f.deep]
    if not spans:
        return []
    low, high = min(f[0] for f in spans), max(f[1] for f in spans)
    white = collections.Counter(f"{f[2]:.12g}" for f in spans)
    scales = ", ".join(f"{top} in {n}" for top, n in white.items())
    return [
        f"{len(spans)} pictures have grey values of more than 8 bits, from {low:.6g} to {high:.6g}; white is "
        f"{scales}; one scale for all: config.data.grey=BLACK,WHITE"
    ]


def broken_links(left):
    """Links that lead nowhere."""
    paths = list(left.get(walk.BROKEN, ()))
    return [Problem("link", f"{len(paths)} {walk.BROKEN}", paths)] if paths else []


def left_out(left, root):
    """Notes on what is not read; of other files by their suffixes."""
    reasons = [r for r in left if r not in (walk.BROKEN, walk.OTHER)]
    notes = [f"pictures that are left out: {text}"] if (text := walk.told(left, reasons, root)) else []
    others = collections.Counter(os.path.splitext(p)[1].lower() for p in left.get(walk.OTHER, ()))
    shown = ", ".join(f"{suffix or 'without a suffix'} {n}" for suffix, n in others.most_common(8))
    return notes + ([f"{others.total()} files that are {walk.OTHER}: {shown}"] if others else [])


def duplicates(files, splits):
    """(problems, notes) of identical files under several names.

    A picture in query and gallery with one identity and camera is a note: the rule of evaluation removes it.
    """
    same = collections.defaultdict(list)
    for f in files:
        if f.size:
            same[f.size, f.digest].append(f.path)
    doubled = {path: key for key, paths in same.items() if len(paths) > 1 for path in paths}
    uses = collections.defaultdict(set)  # of a group of identical files: (split, pid, camid)
    for split, records in splits.items():
        for r in records:
            for key in {doubled[p] for p in paths_of(r) if p in doubled}:
                uses[key].add((split, r.pid, r.camid))
    kinds = collections.defaultdict(list)
    for key, labels in uses.items():
        kinds[judge(labels)].append(" = ".join(same[key]))
    problems = [
        Problem("duplicate", f"{len(kinds[text])} groups of identical files {text}", kinds[text])
        for text in (OTHER_IDS, OTHER_SIDE, OTHER_CAMERAS)
        if kinds[text]
    ]
    return problems, [f"{len(kinds[t])} groups of identical files {t}" for t in HARMLESS if kinds[t]]


OTHER_IDS = "with different identities"
OTHER_SIDE = "in train and in test"
OTHER_CAMERAS = "in query and gallery with different cameras"
HARMLESS = ("in query and gallery with one camera (they never match each other)", "within a split")


def judge(labels):
    """What identical files used as {(split, pid, camid)} amount to."""
    splits = {split for split, _, _ in labels}
    if len({pid for split, pid, _ in labels if split != "train"}) > 1:
        return OTHER_IDS
    if len({pid for split, pid, _ in labels if split == "train" and pid >= 0}) > 1:
        return OTHER_IDS
    if "train" in splits and len(splits) > 1:
        return OTHER_SIDE
    if len(splits) > 1:
        return HARMLESS[0] if len({camid for _, _, camid in labels}) == 1 else OTHER_CAMERAS
    return HARMLESS[1]


# ---- labels ---------------------------------------------------------------------------------------------
def wrong_counts(layout, counts):
    """Published counts that were not found."""
    wrong = [
        f"{counts.get(k, 0)} {k} instead of {n}" for k, n in layout.counts.items() if counts.get(k, 0) != n
    ]
    return [Problem("count", "counts differ from the published ones", wrong)] if wrong else []


def wrong_names(strange):
    """Entries that do not follow the layout."""
    text = f"{len(strange)} entries do not follow the layout's names"
    return [Problem("name", text, list(strange))] if strange else []


def overlap(layout, splits):
    """Identities in train and in test."""
    test = {r.pid for s, records in splits.items() if s != "train" for r in records}
    train = {r.pid for r in splits["train"] if r.pid >= 0} - ({0} if layout.distractors else set())
    both = sorted(train & test)
    text = f"{len(both)} identities are in train and in test"
    return [Problem("overlap", text, [f"id {pid}" for pid in both])] if both else []


def unmatched(splits, protocol):
    """A test set in which no query has a match."""
    query, gallery = splits["query"], splits["gallery"]
    flag = f"--config.eval.protocol={testable.ALL_PAIRS} (here --protocol={testable.ALL_PAIRS})"
    text = testable.impossible(query, gallery, protocol, flag) if query or gallery else ""
    return [Problem("match", text, [])] if text else []


def people(splits, protocol):
    """Notes on who can be trained and tested on."""
    train, query, gallery = (splits[s] for s in ("train", "query", "gallery"))
    notes, unknown = [], sum(r.pid < 0 for r in train)
    if unknown:
        notes.append(
            f"nobody is known on {unknown} of {len(train)} training pictures: methods that make their own "
            "labels train on them, the others leave them out"
        )
    if train and len({r.camid for r in train}) == 1:
        notes.append("all training pictures come from one camera; methods that compare cameras learn nothing")
    if not train:
        notes.append("there is nothing to train on; it can be tested on (config.eval.also)")
    if not query and not gallery:
        text = "there is nobody to test on: a run has no figures (config.eval.also names other sets)"
        return [*notes, text]
    counts = testable.matches(query, gallery, protocol)
    lonely = int((counts == 0).sum())
    if 0 < lonely < len(query):
        notes.append(f"{lonely} of {len(query)} queries have no match in the gallery and do not count")
    return notes


# ---- output ---------------------------------------------------------------------------------------------
def shorten(text, root):
    """Paths relative to root."""
    return str(text).replace(root + os.sep, "")


def describe(result, show):
    """The result for people: a table, problems with the way out, notes."""
    lines = [f"{result['title']} in {result['root']}", *table(result), f"{result['files']} files"]
    for problem in result["problems"]:
        items = problem["items"]
        lines += ["", f"PROBLEM: {problem['message']}", *(f"    {item}" for item in items[:show])]
        if len(items) > show:
            lines.append(f"    ... and {len(items) - show} more (--show, --json)")
        lines.append(f"  {problem['advice']}")
    lines += [f"note: {note}" for note in result["notes"]]
    return "\n".join([*lines, "", verdict(result)])


def verdict(result):
    """The last line."""
    kinds = dict.fromkeys(p["kind"] for p in result["problems"])
    return f"problems: {', '.join(kinds)}" if kinds else "no problem found"


def table(result):
    """Rows of found and published counts."""
    unit = "tracklets" if result["kind"] == "video" else "images"
    counts, published = result["counts"], result["published"]
    lines = [f"{'':<18}{'found':>10}{'published':>12}"]
    for key in dict.fromkeys((*counts, *published)):
        label = key.replace("images", unit)
        lines.append(f"{label:<18}{counts.get(key, 0):>10}{published.get(key, '-'):>12}")
    for split in result["frames"]:
        if unit == "tracklets":
            lines.append(f"{split + ' frames':<18}{result['frames'][split]:>10}{'-':>12}")
        lines.append(f"{split + ' cameras':<18}{result['cameras'][split]:>10}{'-':>12}")
    return lines


def write(path, result):
    """Writes the dict as JSON; DataError when that cannot be done."""
    try:
        with open(path, "w") as f:
            json.dump(result, f, indent=1)
    except OSError as e:
        raise DataError(f"cannot write --json={path}: {e.strerror or e}") from e
