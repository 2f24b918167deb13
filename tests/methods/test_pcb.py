"""PCB: its loss by a loop over the stripes, its batches, its learning rates."""

import json

import jax
import numpy as np
import pytest
from small import difference, drawn, random_batch

from reid_jax import methods
from reid_jax.commands import convert
from reid_jax.data.rows import Rows
from reid_jax.fields import namespace
from reid_jax.methods import pcb
from reid_jax.models import heads, weights

PIDS = np.arange(24, dtype=np.int32) % 6


@pytest.fixture(scope="module")
def method():
    tree = methods.defaults("pcb")
    tree["data"].update(height=16, width=8, ids=2, instances=4)
    tree["model"].update(backbone="narrow", narrow_widths=(4, 8))
    tree["model"].update(head="stripes", stripes_parts=2, stripes_dim=5)
    tree["loss"].update(branches="sum", triplet_weight=0.0)
    tree["optim"].update(kind="sgd", lr=0.1, groups=(("^base/", 0.1, None),), weight_decay=0.0)
    zeros = np.zeros(24, np.int32)
    return pcb.Pcb(namespace(tree), methods.Info(6, 1, labelled=Rows(0, PIDS, zeros, zeros)))


@pytest.mark.slow
def test_loss_is_the_sum_over_the_stripes(method):
    """The step's, with its dropout, against a loop in float64; the backbone moves a tenth as far."""
    state, batch = drawn(method), random_batch(size=8)
    new, metrics = jax.jit(method.step)(state, {"train": batch})
    out, _ = method.encoder.apply(state.nets["net"], method.view(batch), True, method.key(state))
    total = 0.0
    for logits in np.asarray(out.logits, np.float64):
        terms = [np.log(np.exp(row).sum()) - row[pid] for row, pid in zip(logits, batch["pid"], strict=True)]
        total += np.mean(terms)
    assert len(out.logits) == 2
    np.testing.assert_allclose([metrics["ce"], metrics["loss"]], total, rtol=1e-5)

    def loss(params):
        variables = {**state.nets["net"], "params": params}
        out, _ = method.encoder.apply(variables, method.view(batch), True, method.key(state))
        chosen = [jax.nn.log_softmax(x)[np.arange(8), batch["pid"]] for x in out.logits]
        return -sum(x.mean() for x in chosen)

    before, after = state.nets["net"]["params"], new.nets["net"]["params"]
    gradient = jax.jit(jax.grad(loss))(before)
    for name, rate in (("base", 0.01), ("local_conv", 0.1), ("instance1", 0.1)):
        for w, v, g in zip(*(jax.tree.leaves(t[name]) for t in (before, after, gradient)), strict=True):
            np.testing.assert_allclose(w - v, rate * g, rtol=1e-3, atol=2e-7)


def test_an_epoch_holds_every_image_once(method):
    sampler = method.streams(None)["train"].sampler
    assert method.info.steps_per_epoch == sampler.batches_per_epoch == 3
    for epoch in range(3):
        assert sorted(sampler.epoch(epoch).ravel().tolist()) == list(range(24))
    assert not np.array_equal(sampler.epoch(0), sampler.epoch(1))


def test_test_feature_is_the_stripes_at_unit_length(method):
    feature = jax.jit(lambda s, x: method.embed(s, x, "net"))(drawn(method), random_batch(size=8)["image"])
    lengths = np.linalg.norm(np.asarray(feature).reshape(8, 2, 8), axis=2)
    np.testing.assert_allclose(lengths, 1, rtol=1e-5)


# ---- refined parts


def fields(**changes):
    tree = methods.defaults("pcb")
    tree["data"].update(height=16, width=8, ids=2, instances=4)
    tree["model"].update(backbone="narrow", narrow_widths=(4, 8), head="stripes")
    tree["model"].update(stripes_parts=2, stripes_dim=5, refined_dim=4)
    tree["loss"].update(branches="sum", triplet_weight=0.0)
    tree["optim"].update(kind="sgd", lr=0.1, weight_decay=0.0)
    tree["train"].update(epochs=2)
    tree["pcb"].update(changes)
    return namespace(tree)


@pytest.fixture(scope="module")
def refined():
    zeros = np.zeros(24, np.int32)
    return pcb.Rpp(fields(induce=3.0), methods.Info(6, 1, labelled=Rows(0, PIDS, zeros, zeros)))


@pytest.mark.slow
def test_induction_moves_the_pixels_classifier_alone(refined):
    state, batch = drawn(refined), {"train": random_batch(size=8)}
    induced, joint = refined.part(0), refined.part(1)
    assert (induced.name, induced.epochs, joint.steps, refined.part(2)) == ("induced", 3.0, 6, None)
    new, metrics = jax.jit(induced.step)(state, batch)
    before, after = state.nets["net"], new.nets["net"]
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), before, after)
    assert moved["params"].pop("local_mask")["kernel"]
    assert not any(jax.tree.leaves(moved)) and int(new.step) == 1
    together, _ = jax.jit(joint.step)(state, batch)
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), before, together.nets["net"])
    assert moved["params"]["base"]["conv1"]["kernel"] and moved["params"]["local_mask"]["kernel"]
    assert moved["batch_stats"]["feat_bn2d"]["mean"] and np.isfinite(metrics["loss"])


def test_refined_parts_by_a_loop(refined):
    """Every pixel's shares in float64; a mask that tells nothing gives the mean of the map, part by part."""
    head, rng = refined.network.top, np.random.default_rng(0)
    maps = rng.normal(size=(2, 3, 2, 8)).astype(np.float32)
    kernel, bias = rng.normal(size=(4, 2)), rng.normal(size=2)

    def vectors(kernel, bias):
        mask = {"local_mask": {"kernel": np.float32(kernel)[None, None], "bias": np.float32(bias)}}
        whole = head.apply({"params": mask}, lambda x, train: x, maps, False, method="pooled")
        return whole.reshape(2, 2, 8)

    for image, parts in zip(maps.astype(np.float64), vectors(kernel, bias), strict=True):
        grouped = image.reshape(6, 4, 2).mean(-1)
        logits = (grouped - grouped.mean(0)) @ kernel + bias
        shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        for i in range(2):
            want = sum(2 * shares[n, i] * image.reshape(6, 8)[n] for n in range(6)) / 6
            np.testing.assert_allclose(parts[i], want, atol=1e-5)
    flat = vectors(np.zeros((4, 2)), np.zeros(2))
    np.testing.assert_allclose(flat, np.repeat(maps.mean((1, 2))[:, None], 2, 1), atol=1e-6)


def test_refined_parts_begin_with_the_stripes_net(refined, method):
    earlier, state = drawn(method, 3).nets["net"], drawn(refined)
    net = refined.inherit(state, lambda stage, net: earlier, None).nets["net"]
    assert difference(net["params"].pop("local_mask"), state.nets["net"]["params"]["local_mask"]) == 0
    assert difference(net, earlier) == 0


def test_the_published_codes_way_has_no_induction():
    zeros = np.zeros(24, np.int32)
    built = pcb.Rpp(fields(induce=0.0), methods.Info(6, 1, labelled=Rows(0, PIDS, zeros, zeros)))
    assert built.part(0).name == "joint" and built.part(1) is None


@pytest.mark.slow
def test_parameters_and_keys_of_the_published_nets():
    """Counts at 751 identities; keys of PCB_RPP_for_reID and torchreid, read as written."""
    counts = {"stripes": 25_190_874, "refined": 25_192_416}
    for head, count in counts.items():
        net = heads.build(namespace(methods.defaults("pcb")["model"] | {"head": head}), 751)
        image = jax.ShapeDtypeStruct((1, 384, 128, 3), np.float32)
        shapes = jax.eval_shape(lambda x, net=net: net.init(jax.random.key(0), x, False), image)
        assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == count
    entries = weights.to_torch(jax.tree.map(lambda s: np.zeros(s.shape, np.int8), shapes), "pcb")
    assert entries["local_mask.weight"].shape == (6, 256, 1, 1)
    assert {"base.layer4.2.conv3.weight", "local_conv.weight", "feat_bn2d.running_var", "instance5.bias"} < {
        *entries
    }
    assert weights.guess(entries) == "pcb"
    there = weights.to_torch(jax.tree.map(lambda s: np.zeros(s.shape, np.int8), shapes), "pcb_torchreid")
    assert {"layer4.2.conv3.weight", "conv5.layers.0.weight", "conv5.layers.1.bias", "classifier.5.bias"} < {
        *there
    }
    assert weights.guess(there) == "pcb_torchreid" and len(there) == len(entries)


@pytest.mark.parametrize("layout", ["pcb", "pcb_torchreid"])
def test_weights_go_there_and_back(method, layout):
    net = drawn(method, 5).nets["net"]
    entries = {f"module.{k}": v for k, v in weights.to_torch(net, layout, counters=True).items()}
    back, report = weights.load(entries, jax.tree.map(np.zeros_like, net))
    assert difference(back, net) == 0 and report["layout"] == layout
    assert not report["unused"] + report["missing"]


def test_convert_makes_the_net_of_the_file(tmp_path, capsys):
    """Head and classes by the keys."""
    few = {"base.conv1.weight": (64, 3, 7, 7), "local_conv.weight": (256, 2048, 1, 1)}
    few |= {f"instance{i}.weight": (7, 256) for i in range(6)} | {"local_mask.bias": (6,)}
    np.savez(tmp_path / "w.npz", **{k: np.zeros(s, np.float32) for k, s in few.items()})
    assert convert.main([str(tmp_path / "w.npz"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["layout"], report["head"], report["unused"]) == ("pcb", "refined", [])
    assert set(report["used"]) == set(few)
