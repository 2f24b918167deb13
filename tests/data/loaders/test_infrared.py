"""SYSU-MM01 and RegDB in small, people missing in some cameras."""

import pytest
from batches import data_config
from loaded import files, labels, load
from trees import market, picture

from reid_jax.data import check, datasets
from reid_jax.errors import ConfigError, DataError


def sysu(root):
    """Ids 1 (train), 2 (val), 7 and 12 (test), two pictures a camera; 7 is not in camera 2, nor 12 in 6."""
    for pid in (1, 2, 7, 12):
        for camera in range(1, 7):
            if (pid, camera) not in ((7, 2), (12, 6)):
                for n in (1, 2):
                    picture(root, f"cam{camera}", f"{pid:04d}", f"{n:04d}.jpg")
    (root / "exp").mkdir()
    for name, text in (("train", "1"), ("val", "2"), ("test", "12,7")):
        (root / "exp" / f"{name}_id.txt").write_text(f"{text}\n")


def test_sysu_mm01(tmp_path):
    sysu(tmp_path / "SYSU-MM01")
    d = load("sysu_mm01", tmp_path)
    assert len(d.train) == 24 and d.num_train_pids == 2 and d.protocol == "sysu-all"
    assert labels(d.query) == [(p, c) for p, c in ((7, 2), (7, 5), (12, 2)) for _ in (1, 2)]
    seen = [(7, 0), (7, 3), (7, 4), (12, 0), (12, 1), (12, 3), (12, 4)]
    assert labels(d.gallery) == [x for x in seen for _ in (1, 2)]
    assert d.camera_names[:3] == ("visible c1", "visible c2", "infrared c3")
    assert load("sysu_mm01", tmp_path, variant="indoor").protocol == "sysu-indoor"
    assert check.check("sysu_mm01", str(tmp_path), quick=True)["counts"]["query ids"] == 2
    (tmp_path / "SYSU-MM01" / "exp" / "val_id.txt").write_text("2,x\n")
    with pytest.raises(DataError, match="val_id.txt: .*'x'"):
        load("sysu_mm01", tmp_path)


def test_light_is_a_domain(tmp_path):
    sysu(tmp_path / "SYSU-MM01")
    data = data_config(name="sysu_mm01", root=str(tmp_path), domains="modality", ids=2)
    d = datasets.load(data, None)
    assert d.domain_names == ("visible", "infrared")
    assert all(r.domain == int(r.camid in (2, 5)) for r in (*d.train, *d.query, *d.gallery))
    data = data_config(name="market1501", root=market(tmp_path / "market1501"), domains="modality", ids=2)
    with pytest.raises(ConfigError, match="has no infrared cameras"):
        datasets.load(data, None)


def test_regdb(tmp_path):
    """Each trial its own people; test identities count anew and get numbers of their own."""
    for trial, (train, test) in enumerate((((0, 1), (0, 1)), ((1,), (0, 1, 2))), 1):
        for part, ids in (("train", train), ("test", test)):
            for light in ("Visible", "Thermal"):
                lines = []
                for pid in ids:
                    name = f"{light}/{10 * trial + pid}/{part}_{light[0].lower()}_{pid}.bmp"
                    picture(tmp_path, "RegDB", *name.split("/"))
                    lines.append(f"{name} {pid}\n")
                path = tmp_path / "RegDB" / "idx" / f"{part}_{light.lower()}_{trial}.txt"
                path.parent.mkdir(exist_ok=True)
                path.write_text("".join(lines))
    d = load("regdb", tmp_path)
    assert labels(d.train) == [(0, 0), (1, 0), (0, 1), (1, 1)] and d.protocol == "all-pairs"
    assert labels(d.query) == [(2, 0), (3, 0)] and labels(d.gallery) == [(2, 1), (3, 1)]
    back = load("regdb", tmp_path, variant="thermal")
    assert (back.query, back.gallery) == (d.gallery, d.query)
    second = load("regdb", tmp_path, split=1)
    assert second.num_train_pids == 1 and len(second.query) == 3 and files(second.query)[0] == "test_v_0.bmp"
    assert d.camera_names == ("visible", "infrared")
