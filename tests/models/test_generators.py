"""Published keys of networks with image generators, and whole networks from them."""

import pathlib
import re

import jax
import numpy as np
import pytest

from reid_jax.methods import Info
from reid_jax.methods.dgnet import swap
from reid_jax.models import heads, weights
from reid_jax.parity import case, nets
from reid_jax.parity.sup import generation
from reid_jax.train import stages

CASES = pathlib.Path(__file__).parents[1] / "cases"
PREFIX = {"E_s": "gen.", "G": "gen.", "D": "dis.", "E_a": "id.", "T": "teacher."}


@pytest.mark.slow
def test_every_leaf_of_dgnet_has_its_published_key():
    """Against the keys and shapes of a recorded iteration, both ways; all of them are found."""
    recorded = case.load(CASES / "sup__dgnet_step.npz")
    config = generation._step_config(recorded.config, recorded.arrays["in/x_a"].shape)
    method = swap.Dgnet(config, Info(recorded.config.ID_class, 1))
    used = set()
    for name, shapes in stages.state_shapes(method).nets.items():
        entries = recorded.weights(PREFIX[name])
        assert weights.guess(entries) == "dgnet"
        filled, report = weights.load(entries, jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes))
        assert report["layout"] == "dgnet" and not report["missing"]
        used |= {PREFIX[name] + key for key in report["used"]}
        written = weights.to_torch(filled, "dgnet")
        assert {k: v.shape for k, v in written.items()}.items() <= {
            k: v.shape for k, v in entries.items()
        }.items()
        for key, value in written.items():
            np.testing.assert_array_equal(value, entries[key])
    idle = r"num_batches|\.fc\.|dec\.model\.1\..*running"
    every = {k.partition("/")[2] for k in recorded.arrays if k.startswith("shape/")}
    assert not [k for k in every - used if not re.search(idle, k)]


def test_camstyles_network():
    net = nets.build(7, head="classblock", classblock_dim=5, backbone="slim", slim_blocks=(1, 1))
    shapes = jax.eval_shape(heads.encoder(net).init, jax.random.key(0), np.zeros((1, 16, 16, 3), np.float32))
    written = weights.to_torch(jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes), "camstyle")
    assert {"base.conv1.weight", "feat.weight", "feat_bn.running_mean", "classifier.bias"} <= written.keys()
    assert written["classifier.weight"].shape == (7, 5) and not [k for k in written if "block" in k]
