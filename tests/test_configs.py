"""Every variant of every config loads, and the paper's settings are the paper's."""

import importlib.util
from pathlib import Path

import jax
import pytest

from reid_jax import config as c
from reid_jax import methods
from reid_jax.errors import ConfigError
from reid_jax.train import checkpoint, stages

FILES = sorted((Path(__file__).parent.parent / "configs").glob("*.py"))


def module(path):
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def variants():
    return [(f.stem, v) for f in FILES for v in module(f).VARIANTS]


def get(name, variant):
    return module(next(f for f in FILES if f.stem == name)).get_config(variant)


SAME_NET = {("efl", v) for v in ("duke", "msmt17", "me_reid", "mars")}  # as market; as mars_ap3d, but smaller
SAME_NET |= {("baseline", v) for v in ("duke", "msmt17", "me_reid")}
SAME_NET |= {("dsanet", v) for v in ("duke_video", "ls_vid")}


SLOW = {("efl", "mars_ap3d")}


def traced():
    for v in variants():
        if v not in SAME_NET:
            yield pytest.param(*v, marks=pytest.mark.slow if v in SLOW else ())


@pytest.mark.parametrize("name, variant", traced())
def test_variant_builds_its_method(name, variant):
    """Networks, optimisers and one step can be traced at the variant's own size."""
    config = get(name, variant)
    info = methods.Info(num_pids=20, num_cams=6, steps_per_epoch=10, total_steps=100)
    for method in methods.find(config.method).stages(config, info).values():
        state = stages.state_shapes(config, method)
        batch = stages.example_batch(config, 8)
        new, metrics = jax.eval_shape(method.step, state, batch)
        assert jax.tree.map(lambda x: (x.shape, x.dtype), new) == jax.tree.map(
            lambda x: (x.shape, x.dtype), state
        )
        assert all(v.shape == () for v in metrics.values())
        feature = jax.eval_shape(lambda s, x, m=method: m.embed(s, x, m.nets[0]), new, batch["image"])
        assert feature.shape[0] == 8
    assert checkpoint.plain(config)["method"] == config.method


def test_every_config_has_smoke_and_refuses_unknown_variants():
    for file in FILES:
        assert "smoke" in module(file).VARIANTS
        with pytest.raises(ConfigError, match="no variant 'nonsense'; it has"):
            module(file).get_config("nonsense")


def test_fields_are_the_documented_defaults():
    """A variant changes values of known fields and adds none."""
    known = set(c.flatten(c.defaults() | {"efl": c.efl_defaults(), "dsanet": c.dsanet_defaults()}))
    for name, variant in variants():
        assert set(c.flatten(checkpoint.plain(get(name, variant)))) <= known


@pytest.mark.parametrize(
    "variant, ids, instances", [("market", 16, 8), ("msmt17", 16, 16), ("me_reid", 16, 4)]
)
def test_efl_has_the_papers_settings(variant, ids, instances):
    t = get("efl", variant)
    assert (t.data.ids, t.data.instances) == (ids, instances)
    assert (t.data.height, t.data.width) == (256, 128)
    assert t.model.backbone == "resnet50" and t.train.epochs == 240
    assert (t.optim.lr, t.optim.weight_decay, t.efl.mi_lr) == (3e-4, 5e-4, 1e-5)
    assert t.optim.milestones == (60, 120, 180) and t.optim.gamma == 0.1 and t.optim.warmup_steps == 0
    assert (t.efl.alpha, t.efl.lambda_mi, t.efl.lambda_kl, t.efl.n_mi) == (0.999, 1e-4, 0.5, 10)
    assert t.data.flip == 0.5 and t.data.erase == 0.5 and t.data.pad_crop == 0


@pytest.mark.parametrize("variant, backbone", [("mars", "c2d_resnet50"), ("mars_ap3d", "ap3dnl_resnet50")])
def test_efl_on_clips_has_the_papers_settings(variant, backbone):
    t = get("efl", variant)
    assert (t.data.ids, t.data.instances, t.data.frames, t.data.stride) == (12, 4, 4, 8)
    assert t.model.backbone == backbone and t.model.pool == "max" and t.train.epochs == 240


def test_dsanet_has_the_papers_settings():
    t = get("dsanet", "ls_vid")
    assert (t.data.ids, t.data.instances, t.data.frames, t.data.clip) == (8, 4, 8, "rrs")
    assert (t.optim.lr, t.optim.weight_decay, t.train.epochs) == (3.5e-4, 5e-4, 200)
    assert t.optim.milestones == (40, 80, 120, 160)
    assert (t.loss.triplet, t.loss.feature, t.loss.margin) == ("euclidean", "before_bn", 0.3)
    assert (t.dsanet.lam, t.dsanet.lam_cam) == (0.1, 0.5) and get("dsanet", "mars").dsanet.lam_cam == 0.1


def test_rows_of_dsanets_table_2():
    rows = module(next(f for f in FILES if f.stem == "dsanet")).ROWS
    assert len(rows) == 8
    built = [checkpoint.plain(get("dsanet", f"smoke-{row}"))["dsanet"] for row in rows]
    assert (
        len({str(b) for b in built}) == 8 and built[-1] == checkpoint.plain(get("dsanet", "smoke"))["dsanet"]
    )
    with pytest.raises(ConfigError, match="smoke-tlm_fwg_no_ic"):
        get("dsanet", "smoke-nonsense")


def test_schedule_steps_at_the_milestones():
    from reid_jax.methods import parts

    config = c.namespace(c.defaults())
    info = methods.Info(2, 2, steps_per_epoch=7, total_steps=7 * 240)
    lr = parts.schedule(config.optim, info, 3e-4)
    for epoch in (0, 59, 60, 119, 120, 179, 180, 239):
        want = 3e-4 * 0.1 ** sum(m <= epoch for m in (60, 120, 180))
        for step in (7 * epoch, 7 * epoch + 6):
            assert abs(float(lr(step)) - want) < 1e-9, epoch


def test_unknown_method():
    with pytest.raises(ConfigError, match="baseline, dsanet, efl"):
        methods.find("nonsense")
