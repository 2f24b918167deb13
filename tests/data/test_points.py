"""Body points from files of every known form, who counts, true points; attributes from .mat files."""

import json

import numpy as np
import pytest
from batches import data_config, take
from PIL import Image
from scipy import io
from trees import market, picture

from reid_jax.data import attributes, datasets, points, synthetic
from reid_jax.data.synthetic import truth
from reid_jax.errors import ConfigError, DataError

RNG = np.random.default_rng(0)
PERSON = np.float32(RNG.uniform(1, 60, (18, 3)))
PERSON[:, 2] = np.linspace(0.1, 0.95, 18)


def flat(person):
    return np.float64(person).ravel().tolist()


def coco(person):
    """The 17 points of COCO in its order, of 18 whose neck is the middle of the shoulders."""
    return person[[0, 15, 14, 17, 16, 5, 2, 6, 3, 7, 4, 11, 8, 12, 9, 13, 10]]


def test_forms_of_files(tmp_path):
    """The same person as one file of all pictures or one for each, in four forms."""
    person = PERSON.copy()
    person[1] = (person[2] + person[5]) / 2
    body25 = np.insert(person, 8, 7, axis=0)
    body25 = np.vstack([body25, np.full((6, 3), 9, np.float32)])
    forms = {
        "open": {"x.jpg": {"version": "AlphaPose v0.2", "people": [{"pose_keypoints_2d": flat(person)}]}},
        "cmu": {"a/x.jpg": {"bodies": [{"joints": flat(person)}]}},
        "coco": [{"image_id": "x.jpg", "keypoints": flat(coco(person)), "score": 2.5}],
        "body25": {"x.jpg": {"people": [{"pose_keypoints_2d": flat(body25)}]}},
    }
    for name, tree in forms.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(tree))
        found = points.Files(str(tmp_path / f"{name}.json"))
        np.testing.assert_allclose(found.of("/d/a/x.png"), person, rtol=1e-6, err_msg=name)
        assert found.of("/d/a/y.png") is None
    folder = tmp_path / "sep-json"
    folder.mkdir()
    (folder / "x_keypoints.json").write_text(json.dumps(forms["open"]["x.jpg"]))
    (folder / "empty.json").write_text(json.dumps({"people": []}))
    found = points.Files(str(folder))
    np.testing.assert_allclose(found.of("/d/x.png"), person, rtol=1e-6)
    assert found.of("/d/empty.jpg") is None


def test_files_that_cannot_be_used(tmp_path):
    path = tmp_path / "p.json"
    for text, match in (
        ("{", "cannot be read as JSON"),
        ("3", "no points of AlphaPose"),
        ('{"people": [{"pose_keypoints_2d": [1, 2, 3]}]}', "1 points of a person"),
        ('{"x": {"people": [{"pose_keypoints_2d": [NaN, 2, 3]}]}}', "not finite"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=match):
            points.Files(str(path))
    with pytest.raises(DataError, match=r"neither a \.json file nor a folder"):
        points.Files(str(tmp_path / "nothing"))


def test_two_pictures_of_one_name(tmp_path):
    """Folders tell them apart; where they do not, and the points differ, it is an error."""
    for folder, x in (("a", 1.0), ("b", 2.0)):
        (tmp_path / folder).mkdir()
        person = PERSON.copy()
        person[:, 0] = x
        (tmp_path / folder / "x.json").write_text(
            json.dumps({"people": [{"pose_keypoints_2d": flat(person)}]})
        )
    found = points.Files(str(tmp_path))
    assert found.of("/set/b/x.jpg")[0, 0] == 2 and found.of("/set/a/x.jpg")[0, 0] == 1
    with pytest.raises(DataError, match="several points for /set/c/x"):
        found.of("/set/c/x.jpg")


def test_the_person_with_most_points():
    few, many = PERSON.copy(), PERSON.copy()
    few[:, 2], many[:, 2] = 0.2, 0.1  # 0.2 itself does not count
    many[:3, 2] = 0.3
    other = many[::-1].copy()
    assert points.person([few]) is None and points.person([]) is None
    assert points.person([few, many, other]) is many and points.person([few, many, other], last=True) is other


def test_records_carry_points_to_batches(tmp_path, caplog):
    root = market(tmp_path / "m")
    picture(root, "query", "0001_c1s1_000000_00.jpg", size=(10, 24))
    name = "0002_c1s1_000000_00"
    tree = {f"{name}.jpg": {"people": [{"pose_keypoints_2d": flat(PERSON)}]}}
    (tmp_path / "p.json").write_text(json.dumps(tree))
    data = data_config(name="market1501", root=str(root), height=16, width=8, points=str(tmp_path / "p.json"))
    d = datasets.load(data, str(tmp_path))
    known = {r.path.rpartition("/")[2]: r.labels for r in d.train}
    np.testing.assert_array_equal(known[f"{name}.jpg"]["points"], PERSON)
    assert known[f"{name}.jpg"]["size"].tolist() == [16, 8]
    assert sum(label["points"].any() for label in known.values()) == 1
    assert all(not r.labels["points"].any() for r in (*d.query, *d.gallery))
    (batch,) = take(d, data, 1)
    seen = [PERSON if name in d.train[i].path else 0 * PERSON for i in batch["index"]]
    np.testing.assert_array_equal(batch["points"], seen)
    (tmp_path / "p.json").write_text(json.dumps({"other.jpg": tree[f"{name}.jpg"]}))
    with pytest.raises(DataError, match="points of no training picture"):
        datasets.load(data, str(tmp_path))
    data.points = "true"
    with pytest.raises(ConfigError, match="is no synthetic set"):
        datasets.load(data, str(tmp_path))


def test_sizes_are_those_of_the_picture_as_seen(tmp_path):
    path, exif = tmp_path / "x.jpg", Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (12, 30)).save(path, exif=exif)
    turned, stored = points.size_of(path), points.size_of(path, False)
    assert turned.tolist() == [12, 30] and stored.tolist() == [30, 12]
    assert points.size_of(tmp_path / "none.jpg").tolist() == [1, 1]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    sizes = dict(train_ids=4, test_ids=3, cameras=3, images=2, height=64, width=32, distractors=6, junk=4)
    return synthetic.generate(str(tmp_path_factory.mktemp("synthetic")), progress=False, **sizes)


def test_true_points_of_synthetic_people(made):
    """Nearly all in the picture; heads above hips above feet; left and right change with the view."""
    found = truth.points(made)
    people = np.stack(
        [p for path, p in found.items() if not path.rpartition("/")[2].startswith(("0000", "-1"))]
    )
    assert people.shape == (42, 18, 3)
    inside = (people[..., 0] > 0) & (people[..., 0] < 32) & (people[..., 1] > 0) & (people[..., 1] < 64)
    assert inside.mean() > 0.95 and ((people[..., 2] > 0) == inside).all()
    nose, hips, feet = people[:, 0, 1], people[:, [8, 11], 1].mean(1), people[:, [10, 13], 1].mean(1)
    assert (nose < hips - 10).all() and (hips < feet - 10).all()
    right = people[:, 2, 0] < people[:, 5, 0]
    assert 0.1 < right.mean() < 0.9
    frontal = people[:, 0, 2] > 0.5  # the nose is seen
    assert right[frontal].mean() > 0.7 > 0.4 > right[~frontal].mean()
    empty = [p for path, p in found.items() if "/0000_" in path and not p.any()]
    assert len(empty) == 2  # every third distractor is an empty place


def test_attributes_of_synthetic_people(made, tmp_path):
    data = data_config(name="synthetic", root="", attributes="true", points="true")
    data.synthetic.train_ids, data.synthetic.test_ids = 4, 3
    for field, value in dict(cameras=3, images=2, height=64, width=32, distractors=6, junk=4).items():
        setattr(data.synthetic, field, value)
    data.root = made.rpartition("/")[0]
    d = datasets.load(data, str(tmp_path))
    assert d.attributes.shape == (4, len(truth.ATTRIBUTES)) and (d.attributes >= 0).all()
    assert (d.attributes < [n for _, n in truth.ATTRIBUTES]).all()
    people = [truth.person_of(0, pid) for pid in (1, 2, 3, 4)]
    assert d.attributes[:, 0].tolist() == [truth._UPPER.index(p.upper) for p in people]
    held = datasets.hold_out(d, 2)
    assert held.attributes.shape[0] == 2 and all(r.labels["points"].shape == (18, 3) for r in held.val_query)


def mat(path, name, ids):
    """A file like the published ones: a struct train of fields [1,P], and the names of the people."""
    plain, colours = attributes.FILES[name]
    fields = {f: np.uint8([1 + (i + n) % 2 for n in range(len(ids))]) for i, f in enumerate(plain)}
    for _, prefix, names in colours:
        for i, colour in enumerate(names):
            fields[prefix + colour] = np.uint8([2 if n == i else 1 for n in range(len(ids))])
    fields["image_index"] = np.array([f"{pid:04d}" for pid in ids], object)
    io.savemat(path, {name: {"train": fields, "test": {"x": 1}}})


@pytest.mark.parametrize("name", attributes.FILES)
def test_attributes_from_a_file(tmp_path, name):
    """Of people 2 and 7, who are in another order there, one of them unknown."""
    root = market(tmp_path / "m")
    data = data_config(name="market1501", root=str(root), attributes=str(tmp_path / f"{name}.mat"))
    mat(data.attributes, name, (7, 2, 9))
    d = datasets.load(data, str(tmp_path))
    count = len(attributes.FILES[name][0])
    assert d.attributes[1].tolist() == [i % 2 for i in range(count)] + [0, 0]  # label 1 is person 7, first
    assert d.attributes[0].tolist() == [(i + 1) % 2 for i in range(count)] + [1, 1]
    mat(data.attributes, name, (2,))
    assert (datasets.load(data, str(tmp_path)).attributes[1] == -1).all()
    mat(data.attributes, name, (100,))
    with pytest.raises(DataError, match="knows none of the 2 training identities"):
        datasets.load(data, str(tmp_path))
    data.attributes = str(tmp_path / "other.mat")
    with pytest.raises(DataError, match=r"must be market_attribute\.mat or duke_attribute\.mat"):
        datasets.load(data, str(tmp_path))


def test_no_colour_is_a_class_of_its_own():
    assert attributes.colour(np.array([[1, 2, 1], [1, 1, 1], [2, 2, 1]])).tolist() == [1, 3, 0]
