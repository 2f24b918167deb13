"""The parity command: every recorded case passes, and what is wrong is noticed."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from reid_jax import cli
from reid_jax.errors import DataError
from reid_jax.parity import __main__ as command
from reid_jax.parity import case, compare, drift, run

CASES = pathlib.Path(__file__).parents[1] / "cases"


LONG = {  # many seconds to compile
    *(f"direid__{name}" for name in ("content_encoder", "content_encoder_train", "dil_losses", "dil_steps")),
    *(f"direid__{name}" for name in ("gan_losses_1scale", "gan_losses_3scale", "discriminator", "generator")),
    *(f"efl__{name}" for name in ("ap3dnl_resnet50", "c2d_resnet50", "resnest50", "resnest50_s1")),
    *("direid__dfen", "direid__dfen_dual", "dsanet__net_full_eval", "efl__train_step_b"),
    *("sup__agw_net", "sup__fastreid_resnet", "dg__agw_net"),
    *("sup__osblock_in_inside", "sup__osnet", "sup__osnet_ibn", "sup__osnet_ain", "sup__osnet_train"),
    *("sup__osnet_ain_train", "sup__hacnn", "sup__hacnn_train", "dg__dualnorm_mobilenet"),
    *("sup__cyclegan", "sup__dgnet_decoder", "sup__dgnet_discriminator", "sup__dgnet_step"),
    *("sup__param_counts", "sup__pyramid", "sup__mgn_head", "sup__fastreid_losses", "sup__embedding_head"),
    *(
        "sup__dgnet_encoder",
        "sup__osblock",
        "uns__dsbn_net",
        "uns__ise_losses",
        "direid__reid_losses",
        "direid__triplet",
        "direid__attention",
        "dsanet__tlm",
        "dg__ibn_net",
        "uns__pplr_losses",
        "uns__ice_losses",
        "dg__metabin_step",
        "dsanet__net_train",
        "efl__resnet50_mmt",
    ),
    *("direid__degradation_encoder", "efl__resnet50_mmt_train", "eval__market_size", "uns__mmt_source_step"),
    *("dg__m3l_step", "dg__snr_net"),
    *("adl__backbone", "dg__dualnorm_resnet", "efl__resnet50_plain", "uns__mmt_step", "sup__jpm"),
    *("uns__meb_step", "uns__spcl_uda_step", "uns__dsbn", "uns__cc_memory"),
    *("efl__train_step_a", "adl__adl_objective", "adl__adl_modules", "adl__aibn_block", "dsanet__fwg"),
    *("dsanet__param_counts", "dsanet__net_eval", "direid__classifier", "dg__bin_layer", "dg__snr_block"),
    *("sup__vit", "sup__rpp_head", "sup__pgfa_head", "sup__pcb_head", "sup__wrt"),
}
RECORDED = [
    pytest.param(p, marks=[pytest.mark.slow] * (p.stem in LONG), id=p.stem)
    for p in sorted(p for kind in ("adl", "d*", "e*", "sup", "uns") for p in CASES.glob(f"{kind}__*.npz"))
]


@pytest.mark.parametrize("path", RECORDED)
def test_recorded_case(path):
    report = run.report(path, {}, float32=False)
    assert report["ok"], "\n".join(run.details(report))
    assert report["arrays"]


def change(source, target, **arrays):
    """A copy of a case with arrays replaced; None removes one."""
    with np.load(source) as stored:
        kept = {k: stored[k] for k in stored.files}
    for name, value in arrays.items():
        name = name.replace("__", "/")
        kept.pop(name, None)
        if value is not None:
            kept[name] = value
    np.savez(target, **kept)


def test_a_changed_number_fails(tmp_path):
    target = tmp_path / "efl__ema.npz"
    with np.load(CASES / "efl__ema.npz") as stored:
        value = stored["out/step5/bn.bias"].copy()
    value[0] += 2e-5 * np.abs(value).max()
    change(CASES / "efl__ema.npz", target, **{"out/step5/bn.bias": value})
    report = run.report(target, {}, float32=False)
    assert not report["ok"] and report["worst"] == "out/step5/bn.bias"
    assert 1.9e-5 < report["float64"] < 2.1e-5


def test_an_array_nobody_computes_fails(tmp_path):
    change(CASES / "efl__ema.npz", tmp_path / "efl__ema.npz", out__other=np.zeros(3, np.float32))
    report = run.report(tmp_path / "efl__ema.npz", {}, float32=False)
    assert not report["ok"] and "not computed" in "\n".join(run.details(report))


def test_other_sizes_and_fields(tmp_path):
    """A runner takes sizes and fields from the case: a longer clip, other lengths."""
    lengths = np.array([1, 5, 6, 9, 17, 18, 41], np.int64)
    expected = {1: [0] * 6, 5: [0, 1, 2, 3, 4, 0], 6: range(6), 9: range(6), 17: range(0, 12, 2)}
    expected |= {18: range(0, 12, 2), 41: range(0, 48, 8)}
    arrays = {f"out/index_{n}": np.array(list(v), np.int64) for n, v in expected.items()}
    meta = np.array(json.dumps({"mode": "eval", "config": {"size": 6}}))
    np.savez(tmp_path / "efl__begin_crop.npz", meta=meta, **{"in/lengths": lengths}, **arrays)
    report = run.report(tmp_path / "efl__begin_crop.npz", {}, float32=False)
    assert report["ok"], report


@pytest.mark.slow
def test_whole_net_by_its_config(tmp_path):
    """net__NAME: the net follows from the config; here under a recorded reference's weights."""
    meta = {"mode": "eval", "config": {"backbone": "resnet50", "neck": "none"}, "reference": "r"}
    meta = np.array(json.dumps(meta))
    drop = {"shape/classifier.weight": None, "shape/classifier.bias": None}
    change(CASES / "efl__resnet50_plain.npz", tmp_path / "net__mine.npz", meta=meta, **drop)
    report = run.report(tmp_path / "net__mine.npz", {}, float32=False)
    assert report["ok"], report
    meta = np.array(json.dumps({"mode": "eval", "config": {"backbon": "resnet50"}}))
    change(CASES / "efl__resnet50_plain.npz", tmp_path / "net__mine.npz", meta=meta)
    assert "backbon," in run.report(tmp_path / "net__mine.npz", {})["error"]


def test_command(tmp_path, capsys):
    folder = tmp_path / "cases"
    (folder / "below").mkdir(parents=True)
    shutil.copy(CASES / "efl__ema.npz", folder)
    shutil.copy(CASES / "efl__club.npz", folder / "below")
    out = tmp_path / "out.json"
    assert command.main([str(folder), "--json", str(out)]) == 0
    lines = capsys.readouterr().out.strip().split("\n")
    assert lines[-1].startswith("parity: 2 cases, 2 passed, 0 failed, worst ")
    assert "Linear95/CLUB@57b4ad7" in lines[1]
    reports = {r["case"]: r for r in json.loads(out.read_text())}
    assert reports["efl__club"]["float64"] < 1e-6 < 1e-4
    assert reports["efl__ema"]["float64"] < reports["efl__ema"]["float32"]


def test_own_runner(tmp_path, capsys):
    meta = np.array(json.dumps({"reference": "mine", "mode": "eval"}))
    np.savez(tmp_path / "my__double.npz", meta=meta, **{"in/x": np.arange(3.0), "out/y": 2 * np.arange(3.0)})
    runners = tmp_path / "runners.py"
    runners.write_text("def my__double(case):\n    return {'out/y': 2 * case.input('x')}\n")
    assert command.main([str(tmp_path / "my__double.npz")]) == 1
    assert "no runner for my__double" in capsys.readouterr().out
    assert command.main([str(tmp_path / "my__double.npz"), "--runners", str(runners)]) == 0
    runners.write_text("def my__double(case):\n    return {'out/y': case.nothing}\n")
    assert command.main([str(tmp_path / "my__double.npz"), "--runners", str(runners)]) == 1
    assert "AttributeError" in capsys.readouterr().out


def test_what_cannot_be_run(tmp_path, capsys):
    assert cli.exit_code(command.main, [str(tmp_path)]) == 2  # no case in it
    assert cli.exit_code(command.main, [str(tmp_path / "absent.npz")]) == 2
    assert "absent.npz does not exist" in capsys.readouterr().err
    (tmp_path / "efl__club.npz").write_bytes(b"no archive")
    assert command.main([str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "no readable parity case" in out and out.strip().endswith("1 cases, 0 passed, 1 failed")
    for name in ("efl___to_ours", "efl__jax", "case__load", "run__report", "os__system", "efl", "a-b__c"):
        with pytest.raises(DataError, match="no runner"):
            run.find_runner(name, {})


def test_a_case_without_weights_is_named(tmp_path):
    change(CASES / "efl__splat.npz", tmp_path / "efl__splat.npz", **{"param/fc1.bias": None})
    assert "fc1.bias" in run.report(tmp_path / "efl__splat.npz", {}, float32=False)["error"]


@pytest.mark.parametrize(
    "got,want,gradient,expected",
    [
        ([1.0, 2.0], [1.0, 2.0], False, 0),
        ([1.0, 2.2], [1.0, 2.0], False, 0.1),
        ([0.0], [1e-7], False, 0.1),  # the floor of the scale is 1e-6
        ([1e-7], [0.0], True, 1e-6),
        ([1e-7], [0.0], False, 0.1),
        ([np.nan], [1.0], False, np.inf),
        ([np.nan], [np.nan], False, 0),
        ([np.inf], [np.inf], False, 0),
    ],
)
def test_error(got, want, gradient, expected):
    found = compare.error(np.array(got), np.array(want, np.float32), gradient)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_integers_partitions_and_shapes():
    want = np.array([0, 0, 1, -1])
    assert compare.outcome("out/a", np.array([0, 0, 1, -1]), want).ok
    assert not compare.outcome("out/a", np.array([1, 1, 0, -1]), want).ok
    assert compare.outcome("out/a", compare.Partition([1, 1, 0, -1]), want).ok
    for wrong in ([0, 1, 2, -1], [0, 0, 0, -1], [0, 0, 1, 2], [-1, -1, 1, 0]):
        assert not compare.outcome("out/a", compare.Partition(wrong), want).ok
    assert compare.outcome("out/a", np.ones((2, 1, 3)), np.ones((2, 3), np.float32)).ok
    assert not compare.outcome("out/a", np.ones((3, 2)), np.ones((2, 3), np.float32)).ok
    assert compare.outcome("out/a", compare.Within([1.001], 1e-2), np.ones(1, np.float32)).ok


def test_recipe_is_the_recorded_one():
    """Against numbers drawn here step by step."""
    import zlib

    rng = np.random.default_rng([3, zlib.crc32(b"bn1.running_var")])
    np.testing.assert_array_equal(
        case.recipe("bn1.running_var", (4,), 3), rng.uniform(0.5, 1.5, 4).astype(np.float32)
    )
    assert case.recipe("bn1.num_batches_tracked", (), 3).dtype == np.int64
    big = case.recipe("conv.weight", (50, 40, 3, 3), 0)
    assert abs(big.std() - 360**-0.5) < 1e-3


@pytest.mark.parametrize("train", [pytest.param(False, marks=pytest.mark.slow), True])
def test_drift_of_a_narrow_net(train):
    found = drift.measure("narrow", train, 4, 64, 32)
    assert 0 < found["float32"]["error"] < 1e-4 < found["bfloat16"]["error"] < 0.5
    assert -1e-12 < found["float32"]["angle"] < found["bfloat16"]["angle"]
