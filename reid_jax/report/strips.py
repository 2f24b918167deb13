"""Retrieval strips: a query and what ranks first for it, before and after (as in EFL's Figure 3).

The kind of a gallery entry, seen from its query: "same_id", "same_cam" (other identity, seen by the
query's own camera: the mistake EFL is about) or "other_cam" (other identity, other camera).
"""

import base64
import io
import math
from pathlib import Path

import numpy as np
from PIL import Image

from reid_jax.data import decode, tfds_sets

KINDS = ("same_id", "same_cam", "other_cam")
_THUMB = (96, 192)  # width, height in pixels: sharp at twice the size shown
_FRAME, _GAP = (84, 168), 4  # of a tracklet's frame, and between its frames
_SHARE = {"fixed": 0.5, "still": 0.25, "right": 0.25}  # of the strips


def kinds(ranked):
    """Kinds of the listed gallery entries, str[Q,topk]; "" where the list has ended."""
    index = ranked.retrieval.top_index
    same_id = ranked.gallery.pid[index] == ranked.query.pid[:, None]
    same_cam = ranked.gallery.camid[index] == ranked.query.camid[:, None]
    listed = np.where(same_id, "same_id", np.where(same_cam, "same_cam", "other_cam"))
    return np.where(index < 0, "", listed)


def same_rows(before, after):
    """Rows of before.query for the queries of `after`, i[Q]; -1 for a query that is not in both."""
    where = {p: i for i, p in enumerate(before.query.path)}
    rows = np.array([where.get(p, -1) for p in after.query.path], int)
    agree = (before.query.pid[rows] == after.query.pid) & (before.query.camid[rows] == after.query.camid)
    return np.where((rows >= 0) & agree, rows, -1)


def groups(after, before=None):
    """{group: query rows, the most instructive first} over the queries with a match.

    fixed: top-1 was an other-id same-camera image before and is right now; still: it is such an image
    now; right: right now. Groups do not overlap. A strong fall of same-camera images in the list comes
    first in `fixed` and `still` lists the most confident mistakes first; `right` is in random, seeded order.
    """
    listed = kinds(after)
    now, valid = listed[:, 0], after.retrieval.valid
    fixed, fall = np.zeros(len(now), bool), np.zeros(len(now))
    if before is not None:
        rows = same_rows(before, after)
        earlier = kinds(before)[rows]
        fixed = (rows >= 0) & (earlier[:, 0] == "same_cam") & (now == "same_id") & valid
        fall = (earlier == "same_cam").sum(1) - (listed == "same_cam").sum(1)
    still, right = (now == "same_cam") & valid, (now == "same_id") & valid & ~fixed
    shuffled = np.random.default_rng(0).permutation(len(now))
    return {
        "fixed": _ordered(fixed, -fall),
        "still": _ordered(still, -after.retrieval.top_score[:, 0]),
        "right": [int(i) for i in shuffled if right[i]],
    }


def _ordered(mask, key):
    rows = np.flatnonzero(mask)
    return rows[np.argsort(key[rows], kind="stable")].tolist()


def choose(rows_of, pids, count):
    """[(query row, group)]: `count` rows of `groups`, half of them fixed, the rest still wrong or right.

    A group that has too few leaves its places to the others. Within a group every identity appears once
    before one appears twice. rows_of: result of `groups`; pids: i[Q].
    """
    spread = {name: _distinct(rows, pids) for name, rows in rows_of.items()}
    taken = {name: min(len(rows), int(count * _SHARE[name])) for name, rows in spread.items()}
    for name, rows in spread.items():
        taken[name] += min(len(rows) - taken[name], count - sum(taken.values()))
    return [(row, name) for name, rows in spread.items() for row in rows[: taken[name]]]


def _distinct(rows, pids):
    """`rows` in order, repeats of an identity behind the first images of all identities."""
    seen, turn = {}, []
    for row in rows:
        pid = int(pids[row])
        seen[pid] = seen.get(pid, 0) + 1
        turn.append(seen[pid])
    return [rows[i] for i in np.argsort(turn, kind="stable")]


def build(after, before, count, root, frames=None, pixels=decode.AS_SEEN):
    """Strips for the page: (strips, thumbnails, counts of the groups).

    after, before: Ranked, before may be None. root: folder of the pictures or None. frames, pixels:
    see `Thumbnails`. A strip is a dict with group, query and rows; a row has a list of entries, each with
    thumb, kind, score, pid, camid.
    """
    thumbs = Thumbnails(root, frames, pixels)
    rows_of = groups(after, before)
    now = kinds(after)
    if before is not None:
        matching, earlier = same_rows(before, after), kinds(before)
    strips = []
    for row, group in choose(rows_of, after.query.pid, count):
        rows = []
        if before is not None and matching[row] >= 0:
            rows.append({"when": "before", "entries": _entries(before, earlier, matching[row], thumbs)})
        rows.append({"when": "after", "entries": _entries(after, now, row, thumbs)})
        strips.append({"group": group, "query": _picture(after.query, row, thumbs), "rows": rows})
    return strips, thumbs, {name: len(rows) for name, rows in rows_of.items()}


def _entries(ranked, listed, row, thumbs):
    retrieval = ranked.retrieval
    return [
        {**_picture(ranked.gallery, g, thumbs), "kind": str(kind), "score": float(score)}
        for g, score, kind in zip(
            retrieval.top_index[row], retrieval.top_score[row], listed[row], strict=True
        )
        if g >= 0
    ]


def _picture(features, row, thumbs):
    path = str(features.path[row])
    pid, camid = int(features.pid[row]), int(features.camid[row])
    return {"thumb": thumbs.add(path), "path": path, "pid": pid, "camid": camid}


class Thumbnails:
    """Small JPEG data URIs of pictures below `root` (or in a built set, tfds:FOLDER), each picture once.

    frames: {path of a tracklet: paths of its frames to show}, None for images. pixels: a decode.Pixels.
    uris: {number: data URI}; missing: {path: reason} of pictures that could not be shown.
    """

    def __init__(self, root, frames=None, pixels=decode.AS_SEEN):
        self.frames, self.pixels = frames or {}, pixels
        self.built = str(root) if str(root).startswith(tfds_sets.PREFIX) else ""
        self.root = Path(root).resolve() if root and not self.built else None
        self.uris, self.missing, self._numbers = {}, {}, {}

    def add(self, path):
        """The picture's number, None when it cannot be shown (`missing` says why)."""
        if path not in self._numbers:
            self._numbers[path] = self._load(path)
        return self._numbers[path]

    def _load(self, path):
        try:
            if path in self.frames:
                data = _jpeg(sheet([self._picture(p, _FRAME) for p in self.frames[path]]))
            else:
                data = _jpeg(self._picture(path, _THUMB))
        except Exception as e:  # PIL's plugins raise whatever a damaged byte leads to
            self.missing[path] = _reason(e)
            return None
        number = len(self.uris)
        self.uris[number] = "data:image/jpeg;base64," + base64.b64encode(data).decode("ascii")
        return number

    def _picture(self, path, size):
        """The picture as the network saw it, at most `size` large."""
        image = decode.picture(self._contents(path), self.pixels, size)
        image.thumbnail(size, Image.Resampling.LANCZOS)
        return image

    def _contents(self, path):
        """Bytes of a file below the root, or from a built set (data.tfds_sets)."""
        if self.built:
            return tfds_sets.contents(f"{self.built}//{path}")
        return self._inside(path).read_bytes()

    def _inside(self, path):
        """The resolved file; ValueError when it is not below the root (links are followed first)."""
        if self.root is None:
            raise ValueError("the folder of the data set is not known")
        file = (self.root / path).resolve()
        if not file.is_relative_to(self.root):
            raise ValueError("outside the data set's folder")
        if not file.is_file():
            raise FileNotFoundError("no such file")
        return file


def _reason(error):
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, ValueError) and error.args:
        return str(error.args[0])
    return "not a readable picture"


def _jpeg(image):
    out = io.BytesIO()
    image.save(out, "JPEG", quality=82, optimize=True)
    return out.getvalue()


def sheet(pictures):
    """Pictures of one size, row by row in an almost square sheet with white gaps."""
    columns = math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    width, height = (max(sides) for sides in zip(*(p.size for p in pictures), strict=True))
    whole = (columns * (width + _GAP) - _GAP, rows * (height + _GAP) - _GAP)
    paper = Image.new("RGB", whole, "white")
    for i, picture in enumerate(pictures):
        paper.paste(picture, (i % columns * (width + _GAP), i // columns * (height + _GAP)))
    return paper


def read_frames(path):
    """{tracklet: paths of its frames to show} of eval/frames.npz, {} when there is none."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            return dict(zip(stored["path"].tolist(), stored["frames"].tolist(), strict=True))
    except Exception:  # damaged bytes make zipfile and numpy fail in many ways
        return {}
