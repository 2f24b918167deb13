"""What is noticed when a run's training data change, and what is not."""

import dataclasses
import json
import shutil

import numpy as np
from trees import folder, market, picture, viper

from reid_jax.config import defaults, namespace
from reid_jax.data import datasets, marks
from reid_jax.data.records import Dataset, Record


def dataset(order=range(12), pids=None, cams=None):
    """12 pictures of 4 people by 2 cameras, in any order and with any labels."""
    pids, cams = np.arange(12) // 3 if pids is None else pids, np.arange(12) % 2 if cams is None else cams
    train = tuple(Record(f"/data/x/{n}.png", int(pids[n]), int(cams[n])) for n in order)
    return Dataset("x", "/data", train, (), (), ("c1", "c2"))


def differences(a, b):
    """Of two data sets, of the first as it comes out of a file."""
    return marks.differences(json.loads(json.dumps(marks.of(a))), marks.of(b))


def test_what_differs_is_counted():
    whole = dataset()
    assert differences(whole, dataset()) == []
    swapped = np.array([0, 2, 1, 3])[np.arange(12) // 3]
    assert differences(whole, dataset(pids=swapped)) == [
        "pictures: 12 there, 12 now (0 new, 0 gone)",
        "identities: 4 there, 4 now (2 differ, on 6 pictures)",
        "cameras: 2 there, 2 now",
    ]
    other = differences(whole, dataset(cams=np.zeros(12)))
    assert other[1:] == ["identities: 4 there, 4 now", "cameras: 2 there, 1 now (1 differ, on 6 pictures)"]
    fewer = differences(whole, dataset(order=range(9)))
    assert fewer[:2] == ["pictures: 12 there, 9 now (0 new, 3 gone)", "identities: 4 there, 3 now"]
    assert differences(dataset(order=range(9)), whole)[0] == "pictures: 9 there, 12 now (3 new, 0 gone)"
    assert differences(whole, dataset(order=range(11, -1, -1)))[-1] == "the pictures come in another order"


def test_attributes_and_other_labels_count():
    whole = dataset()
    table = dataclasses.replace(whole, attributes=np.zeros((4, 2), np.int32))
    assert differences(whole, table)[-1] == "attributes or other labels differ"
    one, two = (
        dataclasses.replace(whole, train=tuple(dataclasses.replace(r, labels={"a": k}) for r in whole.train))
        for k in (1, 2)
    )
    assert differences(one, two)[-1] == "attributes or other labels differ" and not differences(one, one)


def test_frames_of_tracklets_count():
    clip = Record("/data/a.png", 0, 0, ("/data/a.png", "/data/b.png"))
    cut = dataclasses.replace(clip, frames=clip.frames[:1])
    first, second = (Dataset("x", "/data", (r,), (), (), ("c1",), kind="video") for r in (clip, cut))
    assert "1 new, 1 gone" in differences(first, second)[0] and not differences(first, first)


def load(data, **fields):
    for name, value in fields.items():
        setattr(data, name, value)
    return datasets.load(data, None)


def test_a_data_set_may_be_moved(tmp_path):
    """One set, and joined ones whose folders do not move together."""
    data = namespace(defaults()["data"])
    data.ids = 2
    folder(tmp_path / "a" / "own")
    one = load(data, name="folder", root=str(tmp_path / "a" / "own"))
    shutil.copytree(tmp_path / "a", tmp_path / "far" / "away")
    assert differences(one, load(data, root=str(tmp_path / "far" / "away" / "own"))) == []
    market(tmp_path / "m" / "market1501")
    viper(tmp_path / "v" / "VIPeR")
    joined = load(data, name="market1501+viper", root=f"{tmp_path / 'm'},{tmp_path / 'v'}")
    shutil.move(tmp_path / "v", tmp_path / "m" / "inside")
    moved = load(data, root=f"{tmp_path / 'm'},{tmp_path / 'm' / 'inside'}")
    assert differences(joined, moved) == []
    picture(tmp_path / "m" / "market1501" / "bounding_box_train", "0002_c1s1_000009_00.jpg")
    assert "1 new" in differences(joined, load(data))[0]
