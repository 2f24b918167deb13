"""One run of random weights, shared by the tests of what uses it; nothing is trained for it."""

import contextlib
import json
import os

import jax
import numpy as np
import pytest
import small
from PIL import Image
from runs import load, tiny

from reid_jax import methods
from reid_jax.data import synthetic
from reid_jax.eval import store
from reid_jax.fields import namespace, plain
from reid_jax.train import checkpoint, restore, stages
from reid_jax.train.devices import Devices

SIZES = dict(height=32, width=16, train_ids=6, test_ids=4, cameras=3, images=2, distractors=2, junk=2)
STEP = 12


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Folder with `run`, whose features are in eval/ as after training, and its test `pictures`."""
    folder = tmp_path_factory.mktemp("serve")
    config = tiny("baseline", data__name="market1501", model__narrow_widths=(4, 8))
    dataset = load(config, synthetic.generate(str(folder / "data"), progress=False, **SIZES))
    workdir = str(folder / "run")
    checkpoint.claim_workdir(workdir, plain(config))
    save(workdir, methods.Info(dataset.num_train_pids, len(dataset.camera_names)))
    run = restore.run(workdir, Devices(jax.devices()[:1]))
    features = run.features({"query": dataset.query, "gallery": dataset.gallery}, dataset.root)
    store.save(os.path.join(workdir, "eval", "final.npz"), features)
    final = {"nets": {"net": {"rank1": 50.0, "mAP": 40.0}}, "net": "net", "protocol": "market"}
    with open(os.path.join(workdir, "eval", "final.json"), "w") as file:
        json.dump(final | {"split": "test", "step": STEP}, file)
    os.symlink(os.path.join(dataset.root, "query"), folder / "pictures")
    return folder


def save(workdir, info):
    """A checkpoint of random weights, as training leaves one."""
    _, method = stages.build(namespace(stages.of_run(workdir)), "train", info)
    meta = {"num_pids": info.num_pids, "num_cams": info.num_cams, "layout": checkpoint.LAYOUT}
    with contextlib.closing(checkpoint.Checkpoints(workdir, "train")) as checkpoints:
        checkpoints.save(STEP, small.random_state(method), meta, wait=True)


@pytest.fixture(scope="session")
def files(trained):
    """Paths of six pictures."""
    return [str(p) for p in sorted((trained / "pictures").glob("*.jpg"))[:6]]


@pytest.fixture(scope="session")
def arrays(files):
    """The same as u8[h,w,3]."""
    return [np.asarray(Image.open(path)) for path in files]
