"""Every variant of every config loads, and the paper's settings are the paper's."""

import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest
from stage_cases import facts, labelled, parts

from reid_jax import methods
from reid_jax.config import defaults
from reid_jax.errors import ConfigError
from reid_jax.fields import flatten, namespace, plain
from reid_jax.methods import _optim
from reid_jax.train import stages
from reid_jax.train.devices import AXIS

ROOT = Path(__file__).parent.parent / "configs"
FILES = sorted(ROOT.glob("*.py"))


def module(path):
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def variants():
    return [(f.stem, v) for f in FILES for v in module(f).VARIANTS]


def get(name, variant):
    return module(next(f for f in FILES if f.stem == name)).get_config(variant)


BUILT = {("baseline", "market"), ("dsanet", "mars")}
# Seconds even at smoke's size; their own tests build them.
DEEP = {"direid", "dgnet", "camstyle", "hacnn", "osnet"}


def is_small(variant):
    """Whether a variant's steps are run elsewhere, at its own size."""
    return variant.startswith(("smoke", "synthetic"))


BEHIND_A_DASH = {  # rows whose steps are others than their variant's
    ("agw_infrared", "sysu-base"),
    *(("lifelong", f"order1-{row}") for row in ("lwf", "joint", "krkc")),
}


def chosen():
    """(name, variant, whether to trace the steps): most methods are built quickly, the rest is slow."""
    for v in sorted(BEHIND_A_DASH):
        yield pytest.param(*v, True, marks=pytest.mark.slow)
    for v in variants():
        quick = v in BUILT or (v[1].startswith("smoke") and v[0] not in DEEP)
        yield pytest.param(*v, False, marks=() if quick else pytest.mark.slow)
        if not is_small(v[1]):
            yield pytest.param(*v, True, marks=pytest.mark.slow)


@pytest.mark.parametrize("name, variant, traced", list(chosen()))
def test_variant_builds_its_method(name, variant, traced):
    """Networks, optimisers, streams and, where traced, the steps of every part at the variant's own size."""
    config = get(name, variant)
    for stage in stages.of_config(config):
        pids = 64 * len(config.data.name.split("+"))
        stage_config, method = stages.build(config, stage, facts(config, pids=pids, cams=2))
        state = stages.state_shapes(method)
        for part in parts(method):
            host = state._replace(memory=labelled(state.memory))
            made = {n: s.example(stage_config.data, s.size) for n, s in part.streams(host).items()}
            if traced:
                check_step(part.step, state, made)
        image = np.zeros((2, *method.blank().shape[1:]), np.uint8)
        feature = jax.eval_shape(lambda s, x, m=method: m.embed(s, x, m.nets[0]), state, image)
        assert feature.shape[0] == 2
    assert plain(config)["method"] == config.method


def check_step(step, state, batches):
    """A step keeps the shapes of its state and gives numbers."""
    new, metrics = jax.make_jaxpr(step, axis_env=[(AXIS, 1)], return_shape=True)(state, batches)[1]
    assert shapes(new) == shapes(state)
    assert all(v.shape == () for v in metrics.values())


def shapes(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


def test_every_config_has_smoke_and_refuses_unknown_variants():
    for file in FILES:
        assert "smoke" in module(file).VARIANTS
        with pytest.raises(ConfigError, match="no variant 'nonsense'; it has"):
            module(file).get_config("nonsense")


def test_fields_are_the_documented_defaults():
    """A variant changes values of known fields and adds none."""
    for name, variant in variants():
        tree = plain(get(name, variant))
        known, fields = set(flatten(methods.defaults(tree["method"]))), set(flatten(tree))
        assert {field for field in fields if not field.startswith("stages.")} == known


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
    assert (t.dsanet.lam_dis, t.dsanet.lam_ic, t.dsanet.fwg_std) == (1, 1, 2**0.5)


def test_rows_of_dsanets_table_2():
    rows = module(next(f for f in FILES if f.stem == "dsanet")).ROWS
    assert len(rows) == 8
    built = [plain(get("dsanet", f"smoke-{row}"))["dsanet"] for row in rows]
    assert len({str(b) for b in built}) == 8 and built[-1] == plain(get("dsanet", "smoke"))["dsanet"]
    with pytest.raises(ConfigError, match="smoke-tlm_fwg_no_ic"):
        get("dsanet", "smoke-nonsense")


def test_rows_of_camstyles_table():
    rows = {r: get("camstyle", f"market-{r}") for r in ("real", "real_erasing", "erasing")}
    assert {r: (c.train.skip, c.camstyle.styles, c.data.erase) for r, c in rows.items()} == {
        "real": (("styles",), 0, 0.0),
        "real_erasing": (("styles",), 0, 0.5),
        "erasing": ((), 8, 0.5),
    }
    whole = get("camstyle", "market")
    assert (whole.train.skip, whole.camstyle.styles, whole.data.erase) == ((), 8, 0.0)
    with pytest.raises(ConfigError, match="market-real_erasing"):
        get("camstyle", "market-nonsense")


def test_adl_has_the_papers_settings():
    t = get("adl", "market")
    assert (t.data.height, t.data.width, t.data.ids, t.data.instances) == (256, 128, 16, 4)
    assert t.data.erase_fill == (0.4914, 0.4822, 0.4465) and (t.data.pad_crop, t.data.flip) == (10, 0.5)
    assert t.data.erase == 0.5 and t.data.erase_area == (0.02, 0.4) and t.data.erase_aspect == 0.3
    model = t.model
    assert (model.backbone, model.norm, model.pool, model.last_stride) == ("resnet50", "aibn", "auto", 1)
    assert (t.loss.triplet, t.loss.margin, t.optim.weight_decay) == ("euclidean", 0.3, 5e-4)
    adl, intra, inter = t.adl, t.adl.intra, t.adl.inter
    assert (intra.clusters, intra.instances, intra.lr, intra.head_lr, intra.epochs) == (600, 8, 5e-4, 5e-3, 2)
    assert (inter.clusters, inter.lr, inter.head_lr, inter.epochs) == (800, 1e-3, 1e-2, 2)
    assert (adl.rounds, adl.mode, adl.momentum, adl.triplet) == (40, "original", 0.9, 1)
    assert (adl.k1, adl.k2, adl.lambda_value, adl.mix, adl.mix_power) == (20, 6, 0.3, 0.02, 0.6)
    assert (adl.lam, adl.lam_cam, t.train.eval_every) == (0.5, 0.1, 5)
    assert get("adl", "msmt17").adl.intra.epochs == 12 and get("adl", "duke").adl.intra.epochs == 2


def test_rows_of_adls_table_4():
    rows = {row: get("adl", f"smoke-{row}").adl for row in module(ROOT / "adl.py").ROWS}
    game, refined = ("intra", "inter"), (1, 2, 3, 4)
    found = {row: (t.frifm_stages, t.adversarial_stages) for row, t in rows.items()}
    assert found == {
        "baseline": ((), ()),
        "frifm": (refined, ()),
        "adl": ((), game),
        "full": (refined, game),
    }
    assert str(get("adl", "smoke").adl) == str(rows["full"])
    with pytest.raises(ConfigError, match="market-frifm"):
        get("adl", "smoke-nonsense")


def test_cluster_contrast_has_the_published_settings():
    t = get("cluster_contrast", "market")
    assert (t.data.ids, t.data.instances, t.data.pad_crop) == (16, 16, 10)
    optim, own = t.optim, t.cluster_contrast
    assert (optim.lr, optim.weight_decay, optim.milestones, optim.gamma) == (3.5e-4, 5e-4, (20, 40), 0.1)
    assert (own.rounds, own.steps, own.k1, own.k2, own.eps, own.min_samples) == (50, 200, 30, 6, 0.6, 4)
    assert (own.momentum, own.temperature, own.hard) == (0.1, 0.05, False)
    assert (t.model.head, t.model.pool, t.model.gem_p) == ("contrast", "gem", 3.0)
    assert get("cluster_contrast", "msmt17").cluster_contrast.steps == 400


def test_ise_is_cluster_contrast_with_supports():
    market, msmt17 = (get("cluster_contrast", f"{name}-ise") for name in ("market", "msmt17"))
    found = [
        (t.cluster_contrast.support, t.cluster_contrast.support_weight, t.cluster_contrast.eps)
        + (t.cluster_contrast.steps, t.cluster_contrast.rounds, t.cluster_contrast.momentum)
        + (t.cluster_contrast.hard, t.optim.milestones)
        for t in (market, msmt17)
    ]
    assert found[0] == (True, 0.1, 0.4, 400, 70, 0.2, True, (30, 60))
    assert found[1] == (True, 0.01, 0.7, 400, 50, 0.1, False, (20, 40))


def test_mmt_has_the_published_settings():
    t = get("mmt", "duke2market")
    assert (t.data.name, t.data.target, t.mmt.clusters) == ("dukemtmc+market1501", "market1501", 500)
    assert (t.data.ids, t.data.instances, t.data.pad_crop, t.optim.lr) == (16, 4, 10, 3.5e-4)
    assert (t.mmt.rounds, t.mmt.steps, t.mmt.soft_ce, t.mmt.soft_triplet, t.mmt.alpha) == (
        40,
        400,
        0.5,
        0.8,
        0.999,
    )
    assert (t.model.stem_relu, t.train.skip) == (False, ("source3",))
    assert (t.mmt.source_epoch, t.train.epochs, t.train.steps, t.optim.milestones) == (100, 80, 0, (40, 70))
    assert (t.optim.first_epoch, t.optim.warmup_epochs, t.stages.adapt.optim.warmup_epochs) == (1, 10, 0)
    assert get("mmt", "market2duke").mmt.clusters == 700
    assert get("mmt", "market2msmt17").data.target == "msmt17"
    meb, alone = get("mmt", "duke2market-meb"), get("mmt", "duke2market-baseline")
    assert (len(meb.mmt.backbones), meb.mmt.authority, meb.mmt.steps) == (3, "minibatch", 800)
    assert meb.train.skip == () and (meb.mmt.source_epoch, meb.train.epochs) == (200, 80)
    assert (meb.optim.first_epoch, meb.optim.milestones) == (0, (40, 70))
    assert get("mmt", "duke2msmt17-dbscan").mmt.clusters == 4000
    unlabelled = get("mmt", "duke2market-joint_alone")
    assert (unlabelled.data.name, unlabelled.data.target, unlabelled.mmt.clusters) == ("market1501", "", 2000)
    assert (len(alone.mmt.backbones), alone.mmt.teachers) == (1, False)
    dbscan = get("mmt", "duke2market-dbscan").mmt
    assert (dbscan.cluster, dbscan.jaccard, dbscan.k1, dbscan.rho) == ("dbscan", "torchreid", 20, 0.0016)


def test_ice_and_pplr_have_the_published_settings():
    t = get("ice", "market")
    assert (t.data.ids, t.data.instances, t.data.erase) == (8, 4, 0.6)
    assert (t.ice.rounds, t.ice.steps, t.ice.eps, t.ice.alpha) == (40, 400, 0.55, 0.999)
    rate = _optim.schedule(t.optim, methods.Info(2, 2, steps_per_epoch=400, total_steps=16000), 1.0)
    np.testing.assert_allclose(
        [rate(0), rate(400 * 5), rate(4000), rate(15999)], [0.1, 0.55, 1, 1], rtol=1e-5
    )
    t = get("pplr", "market-cameras")
    assert (t.data.height, t.data.ids, t.data.instances, t.model.head) == (384, 16, 4, "necks")
    assert (t.pplr.cameras, t.pplr.eps, t.pplr.rounds, t.pplr.steps) == (True, 0.4, 50, 400)
    assert (t.optim.milestones, get("pplr", "duke").pplr.eps, get("pplr", "msmt17").data.name) == (
        (20, 40),
        0.5,
        "msmt17",
    )


def test_agw_for_infrared_has_the_published_settings():
    t = get("agw_infrared", "sysu")
    assert (t.data.height, t.data.width, t.data.ids, t.data.instances, t.data.erase) == (288, 144, 8, 4, 0.0)
    assert t.model.second_stem == (2, 5) and t.model.nl_blocks == (0, 2, 3, 0) and t.model.nl_inner == 1
    assert (
        t.model.stem_relu and t.model.last_stride == 1 and t.loss.label_smooth == 0 and t.train.epochs == 81
    )
    optim = namespace(plain(t)["optim"])
    rate = _optim.schedule(optim, methods.Info(2, 2, steps_per_epoch=1, total_steps=81), optim.lr)
    expected = [0.01, 0.05, 0.1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001]
    np.testing.assert_allclose([rate(e) for e in (0, 4, 9, 10, 19, 20, 49, 50, 80)], expected, rtol=1e-5)
    assert get("agw_infrared", "regdb").model.second_stem == (1,)
    assert get("agw_infrared", "regdb-base").loss.mining == "hard"


def test_agw_has_the_published_settings():
    t = get("agw", "market")
    assert (t.method, t.data.ids, t.data.instances, t.data.pad_crop) == ("baseline", 16, 4, 10)
    loss = t.loss.mining, t.loss.soft_margin, t.loss.wrt_guard, t.loss.center
    assert loss == ("weighted", True, 1e-6, 5e-4)
    assert (t.model.neck, t.model.pool, t.model.stem_relu) == ("bnneck", "gem", False)
    info = methods.Info(2, 2, steps_per_epoch=3, total_steps=360)
    rate = _optim.schedule(t.optim, info, 1.0)
    rates = [float(rate(3 * epoch + 2)) for epoch in (0, 8, 9, 38, 39, 68, 69)]  # theirs, less 1
    np.testing.assert_allclose(rates, [0.109, 0.901, 1, 1, 0.1, 0.1, 0.01], rtol=1e-5)
    fast = get("agw", "fastreid_market")
    assert (fast.loss.center, fast.loss.smoothing, fast.model.pool) == (0.0, "others", "gem_fixed")
    assert get("agw", "duke-no_wrt").loss.mining == "hard" and get("agw", "msmt17").data.name == "msmt17"


def test_sbs_has_fast_reids_settings():
    t = get("sbs", "market")
    assert (t.data.height, t.data.width, t.data.ids, t.data.instances) == (384, 128, 4, 16)
    head = t.model.classifier, t.model.classifier_scale, t.model.classifier_margin
    assert head == ("circle", 64, 0.35) and (t.loss.feature, t.loss.soft_margin) == ("after_bn", True)
    assert (t.optim.freeze, t.optim.freeze_steps, t.optim.freeze_norms_eval) == (("^base/",), 1000, False)
    assert (t.train.epochs, t.data.autoaugment, t.loss.smoothing) == (60, 0.1, "others")
    assert get("sbs", "synthetic-arcface").model.classifier == "arcface"


def test_osnet_has_torchreids_settings():
    """Rate, batch, epochs and milestones of each recipe; the classifier alone for ten epochs; no erasing."""
    for recipe, backbone, lr, batch, epochs, milestones in (
        ("", "osnet_x1_0", 1.5e-3, 64, 250, None),
        ("-step", "osnet_x1_0", 1.5e-3, 64, 150, (60, 120)),
        ("-x0_75", "osnet_x0_75", 1.5e-3, 64, 150, (60, 120)),
        ("-x0_5", "osnet_x0_5", 3e-3, 128, 180, (80, 160)),
        ("-x0_25", "osnet_x0_25", 3e-3, 128, 180, (80, 160)),
        ("-ibn", "osnet_ibn_x1_0", 1.5e-3, 64, 150, (60, 120)),
        ("-ain", "osnet_ain_x1_0", 1.5e-3, 64, 100, None),
    ):
        t = get("osnet", f"market{recipe}")
        assert (t.model.backbone, t.model.head, t.model.fc_dim) == (backbone, "fc", 512)
        assert (t.optim.kind, t.optim.lr, t.optim.weight_decay) == ("amsgrad", lr, 5e-4)
        assert (t.data.ids * t.data.instances, t.data.batches, t.data.erase) == (batch, "shuffled", 0)
        assert t.train.epochs == epochs and t.optim.freeze_epochs == 10
        assert (t.optim.schedule == "step") == bool(milestones)
        assert milestones is None or t.optim.milestones == milestones
        assert (t.loss.label_smooth, t.loss.triplet_weight) == (0.1, 0)
        assert t.eval.distance == ("cosine" if recipe == "-ain" else "euclidean")
    paths = ("base/conv1/kernel", "fc_0/bias", "classifier/kernel")
    frozen = [_optim._any(t.optim.freeze, path) for path in paths]
    assert frozen == [True, True, False]


def test_rows_of_domain_generalisation_have_their_sources_settings():
    """Erasing is off everywhere; one net and one recipe for each row."""
    rows = {row: get("dg", f"sources-{row}") for row in module(ROOT / "dg.py").ROWS}
    assert all(t.data.erase == 0 and t.method == "baseline" for t in rows.values())
    norms = {row: t.model.norm for row, t in rows.items() if t.model.norm != "batch"}
    same = ("ibn_a", "ibn_b", "dualnorm", "bin")
    assert norms == {row: row for row in same} | {"dualnorm_v2": "dualnorm"}
    t = rows["dualnorm_v2"]
    assert (t.model.backbone, t.model.last_stride, t.data.batches) == ("mobilenetv2_x1_0", 2, "shuffled")
    assert (t.optim.kind, t.optim.lr, t.optim.nesterov, t.optim.milestones) == ("sgd", 0.01, True, (100,))
    assert (t.loss.triplet_weight, t.loss.label_smooth, t.eval.mirror, t.train.epochs) == (0, 0.1, True, 150)
    assert rows["bin"].optim.groups == (("(^|/)gate$", 10.0, 0.0),)
    t = rows["mixstyle"]
    assert (t.optim.lr, t.optim.weight_decay, t.optim.groups[0][1], t.train.epochs) == (0.05, 1e-5, 0.2, 60)
    assert (t.model.head, t.data.ids * t.data.instances) == ("fc", 32)
    t = rows["mixstyle_cross"]
    assert (t.data.batches, t.model.style_domains, t.model.style_run) == ("domains", 4, t.data.instances)
    t = rows["dsu"]
    assert (t.loss.soft_margin, t.data.epoch_steps, t.train.epochs, t.optim.lr) == (True, 100, 80, 3.5e-4)
    assert get("dg", "market-dsu").train.steps == 8000 and get("dg", "duke-balanced").data.ids == 2


def test_hacnn_has_the_papers_settings():
    t = get("hacnn", "market")
    assert (t.data.height, t.data.width, t.data.ids * t.data.instances) == (160, 64, 32)
    assert (t.optim.lr, t.optim.weight_decay, t.train.epochs, t.optim.milestones) == (5e-4, 5e-4, 150, ())
    assert (t.loss.branches, t.loss.label_smooth, t.data.flip, t.data.erase) == ("sum", 0, 0, 0)


def test_schedule_steps_at_the_milestones():
    config = namespace(defaults())
    info = methods.Info(2, 2, steps_per_epoch=7, total_steps=7 * 240)
    lr = _optim.schedule(config.optim, info, 3e-4)
    for epoch in (0, 59, 60, 119, 120, 179, 180, 239):
        want = 3e-4 * 0.1 ** sum(m <= epoch for m in (60, 120, 180))
        for step in (7 * epoch, 7 * epoch + 6):
            assert abs(float(lr(step)) - want) < 1e-9, epoch


def test_unknown_method():
    with pytest.raises(ConfigError, match="aanet, adl, baseline, .*dsanet, efl"):
        methods.find("nonsense")
