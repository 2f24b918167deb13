"""Airport (ALERT): filepath.txt, personID.txt, camID.txt, a line for each picture (cam\\person\\image)."""

import os

from reid_jax.data.loaders.common import (
    Layout,
    Reading,
    check_present,
    draw_half,
    inside,
    of_ids,
    query_and_gallery,
    read_lines,
)
from reid_jax.data.records import Record
from reid_jax.errors import DataError

LISTS = ("filepath.txt", "personID.txt", "camID.txt")
PERSONS = range(11001, 1_320_011)  # other numbers are boxes that were matched to nobody


def read(root, options):
    """A drawn split, for want of a public one: half of the persons seen by two cameras or more train.

    Query: the first picture of each other such person and camera; gallery: the rest, the persons seen by one
    camera and, as distractors, the boxes of nobody.
    """
    records = read_lists(root, options)
    cameras = {}
    for r in records:
        cameras.setdefault(r.pid, set()).add(r.camid)
    ids = [pid for pid, seen in cameras.items() if pid and len(seen) > 1]
    train, test = draw_half(ids, len(ids) // 2, options)
    trained = set(train)
    left = [r for r in records if r.pid not in trained]
    tested = set(test)
    query, gallery = query_and_gallery([r for r in left if r.pid in tested])
    gallery += [r for r in left if r.pid not in tested]
    splits = {"train": of_ids(records, train), "query": query, "gallery": gallery}
    return Reading(splits, [], {"train_ids": train})


def read_lists(root, options):
    """Records of the three lists, in their order; DataError naming the first line that does not fit."""
    path = os.path.join(root, LISTS[0])
    names, pids, camids = (read_lines(os.path.join(root, name)) for name in LISTS)
    if not len(names) == len(pids) == len(camids):
        raise DataError(
            f"{root}: {', '.join(LISTS)} have {len(names)}, {len(pids)} and {len(camids)} lines; they must "
            "have one for each picture: copy the three files again"
        )
    records, seen = [], {}
    for number, (name, pid, camid) in enumerate(zip(names, pids, camids, strict=True), 1):
        file = inside(root, name.replace("\\", "/"), f"{path}, line {number},")
        if not pid.isdigit() or not camid.isdigit():
            raise DataError(
                f"line {number} of {root}'s lists: person {pid!r}, camera {camid!r} are no numbers"
            )
        if seen.setdefault(file, number) != number:
            raise DataError(f"{path} names {name!r} on lines {seen[file]} and {number}; remove one")
        records.append(Record(file, int(pid) if int(pid) in PERSONS else 0, int(camid)))
    check_present([r.path for r in records], root, options)
    return records


LAYOUTS = {
    "airport": Layout(
        "Airport",
        read,
        ("AirportALERT", "Airport", "airport"),
        (LISTS,),
        "AirportALERT/\n    filepath.txt  personID.txt  camID.txt  (one line a picture)\n"
        "    CAMERA/PERSON/IMAGE.png  (as filepath.txt names them)",
        "Ask its authors for a copy: http://www.northeastern.edu/alert/transitioning-technology/"
        "alert-datasets/alert-airport-re-identification-dataset/",
        {"images": 39902, "cameras": 6},
        terms="not stated; ask its authors (Camps et al., 2017)",
        num_splits=10,
        distractors=True,
    ),
}
