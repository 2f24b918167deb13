"""What a test set needs: queries that match somebody, and pictures that can be read."""

import concurrent.futures
import dataclasses
import os
from collections import Counter

import numpy as np
from tqdm import tqdm

from reid_jax.data import decode, images
from reid_jax.errors import DataError

ALL_PAIRS = "all-pairs"  # the protocol that leaves out nothing
_CHUNK = 64  # pictures that a thread reads at a time


# ---- people ---------------------------------------------------------------------------------------------
def matches(query, gallery, protocol="market"):
    """i64[Q]: how many other pictures of the gallery show a query's person, by one of eval's protocols.

    query, gallery: records. All protocols but "all-pairs" leave out those of the query's own camera. Junk
    (-1) matches nothing. A picture that lies in query and gallery is no match of itself.
    """
    usable = [r for r in gallery if r.pid != -1]
    people, cameras = Counter(r.pid for r in usable), Counter((r.pid, r.camid) for r in usable)
    twice = Counter((r.path, r.pid) for r in usable)

    def count(r):
        if r.pid == -1:
            return 0
        return people[r.pid] - (twice[r.path, r.pid] if protocol == ALL_PAIRS else cameras[r.pid, r.camid])

    return np.array([count(r) for r in query], np.int64)


def impossible(query, gallery, protocol="market", all_pairs=""):
    """Why nothing can be tested on these records and what to do about it, "" when something can.

    all_pairs: the flag that counts pictures of the query's own camera too, "" where there is none.
    """
    if not query or not gallery:
        return f"there is no picture in {'gallery' if query else 'query'}"
    if matches(query, gallery, protocol).any():
        return ""
    text = f"none of the {len(query)} queries has a match in the gallery: "
    if not {r.pid for r in query if r.pid != -1} & {r.pid for r in gallery}:
        return f"{text}nobody in query is in gallery too; give a person the same identity (pid) in both"
    if protocol == ALL_PAIRS:
        return f"{text}every query finds itself alone; put other pictures of its person into the gallery"
    text += "its people are seen there by the query's own camera only"
    cameras = {r.camid for r in (*query, *gallery)}
    text += ", as all pictures come from one camera" if len(cameras) == 1 else ""
    text += f", which the protocol ({protocol}) leaves out; say which camera took each picture (camid)"
    useful = all_pairs and matches(query, gallery, ALL_PAIRS).any()
    return text + (f", or count pictures of the same camera too with {all_pairs}" if useful else "")


# ---- pictures -------------------------------------------------------------------------------------------
def paths_of(records):
    """The files of records, every one once, in order."""
    return list(dict.fromkeys(p for r in records for p in r.frames or (r.path,)))


def unreadable(paths, data, progress=False):
    """{position in paths: why} of the pictures that an evaluation could not read.

    Reads all of them as an evaluation does. data: the config's section.
    """
    decoder, size = decode.of(data), (data.height, data.width)

    def read(start):
        broken = {}
        for i in range(start, min(start + _CHUNK, len(paths))):
            try:
                images.read(paths[i], *size, decoder)
            except DataError as e:
                broken[i] = str(e)
        return broken

    starts, problems = range(0, len(paths), _CHUNK), {}
    shown = dict(desc="test pictures", unit="picture", total=len(paths), disable=not progress, delay=2)
    with concurrent.futures.ThreadPoolExecutor(cores()) as pool, tqdm(**shown) as bar:
        for start, broken in zip(starts, pool.map(read, starts), strict=True):
            problems |= broken
            bar.update(min(_CHUNK, len(paths) - start))
    return problems


def cores():
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def without(records, broken):
    """tuple of the records without the pictures whose paths are in `broken`; tracklets lose frames."""
    remaining = []
    for r in records:
        frames = tuple(p for p in r.frames if p not in broken)
        if r.frames and len(frames) < len(r.frames):
            remaining += [dataclasses.replace(r, path=frames[0], frames=frames)] if frames else []
        elif r.path not in broken:
            remaining.append(r)
    return tuple(remaining)


def relative(paths, root):
    """tuple of paths relative to root."""
    return tuple(os.path.relpath(p, root) for p in paths)
