"""`plan`: what is read of compiled programs, made-up training sets, the command on this machine."""

import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import config_of

from reid_jax import cli, methods
from reid_jax.commands import plan as command
from reid_jax.errors import ConfigError
from reid_jax.plan import chips, facts, hlo, programs, reading, ways
from reid_jax.train import stages
from reid_jax.train.devices import AXIS, Devices

TEXT = """
ENTRY %main {
  %a = f32[8,16]{1,0:T(8,128)} all-reduce(%x), channel_id=1, to_apply=%sum
  %b = (f32[4]{0}, /*index=1*/bf16[2,3]{1,0}) all-reduce(%y, %z), channel_id=2, to_apply=%sum
  %c = (u8[2,8]{1,0}, u8[4,8]{1,0}) all-gather-start(%g), dimensions={0}
  %d = u8[4,8]{1,0} all-gather-done(%c)
  %e = s32[]{:T(128)} add(%i, %j)
  %f = f32[2]{0} reduce-scatter(%k), frontend_attributes={chain_id="0"}, to_apply=%sum
  %h = f32[2]{0} reduce-scatter(%l), frontend_attributes={chain_id="0"}, to_apply=%sum
}
"""


def test_collectives_of_a_text():
    """Reductions of 8 * 16 floats, 4 floats, 2 * 3 halves; what begins and ends apart counts once."""
    found = {c.kind: c for c in hlo.collectives(TEXT)}
    assert found["all-reduce"] == hlo.Collective("all-reduce", 2, 4 * 128 + 4 * 4 + 2 * 6)
    assert found["all-gather"].calls == 1 and found["all-gather"].bytes == (16 + 32) // 2
    assert hlo.count(TEXT, "add") == (1, 4) and len(found) == 3
    assert found["reduce-scatter"] == ("reduce-scatter", 1, 8)  # two fusions share its work


KERNELS = """
%inner (p: bf16[2,8,8,4], w: bf16[3,3,4,8]) -> bf16[2,8,8,8] {
  %p = bf16[2,8,8,4]{3,2,1,0} parameter(0)
  %w = bf16[3,3,4,8]{3,2,1,0} parameter(1)
  %copy.9 = bf16[2,8,8,4]{0,3,2,1} copy(%p)
  ROOT %c = bf16[2,8,8,8]{3,2,1,0:T(8,128)(2,1)} convolution(%copy.9, %w), window={size=3x3 pad=1_1x1_1}
}

%moved (q: f32[16,8]) -> f32[8,16] {
  %q = f32[16,8]{1,0} parameter(0)
  ROOT %t = f32[8,16]{1,0} transpose(%q), dimensions={1,0}
}

%body (s: (s32[], f32[4])) -> (s32[], f32[4]) {
  %s = (s32[], f32[4]{0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %v = f32[4]{0} get-tuple-element(%s), index=1
  %e = f32[4]{0} exponential(%v)
  ROOT %r = (s32[], f32[4]{0}) tuple(%i, %e)
}

ENTRY %main (x: bf16[2,8,8,4], k: bf16[3,3,4,8], y: f32[16,8]) -> f32[4] {
  %x = bf16[2,8,8,4]{3,2,1,0} parameter(0)
  %k = bf16[3,3,4,8]{3,2,1,0} parameter(1)
  %y = f32[16,8]{1,0:T(8,128)} parameter(2)
  %f.1 = bf16[2,8,8,8]{3,2,1,0:T(8,128)(2,1)} fusion(%x, %k), kind=kOutput, calls=%inner
  %f.2.remat = bf16[2,8,8,8]{3,2,1,0} fusion(%x, %k), kind=kOutput, calls=%inner
  %f.3 = f32[8,16]{1,0} fusion(%y), kind=kLoop, calls=%moved
  %copy.1 = f32[8,16]{0,1} copy(%f.3)
  %w.1 = (s32[], f32[4]{0}) while(%start), body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %a = f32[8,16]{1,0} all-reduce(%copy.1), channel_id=1, to_apply=%sum
  %s.1 = ((f32[16,8]{1,0:T(8,128)}), f32[4,8]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%y), slice={[0:4]}
  %s.2 = f32[4,8]{1,0:T(8,128)S(1)} slice-done(%s.1)
  %c.1 = (f32[16,8]{1,0:T(8,128)S(1)}, f32[16,8]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%y)
  %m = f32[4,8]{1,0:T(8,128)S(1)} multiply(%s.2, %s.2)
  ROOT %z = f32[4]{0} get-tuple-element(%w.1), index=1
}
"""


def test_where_the_bytes_go():
    """By hand: two products, one again; a fused and a bare move; a loop; bytes in and out of each."""
    found = {k.purpose: k[1:] for k in reading.kernels(KERNELS)}
    convolution = 2 * (2 * 8 * 8 * 4 + 3 * 3 * 4 * 8 + 2 * 8 * 8 * 8)  # the copy within costs nothing
    assert found.pop("products") == found.pop("products, recomputed") == (1, convolution, 0)
    assert found.pop("layout") == (2, 4 * 4 * 128, 4 * 4 * 128)
    assert found.pop("elementwise") == (4, 3 * 4 * 8, 3 * 4 * 8)  # one on the chip
    assert found.pop("fetched ahead") == (2, 4 * (32 + 128), 4 * (32 + 128))
    assert found.pop("all-reduce") == (1, 8 * 128, 8 * 128)
    assert not found and reading.products(KERNELS) == {"bf16*bf16->bf16": 1}


def test_kernels_of_a_compiled_program():
    """All that a program reads and writes is in the sum, and a loop's body as often as it runs."""

    def f(a):
        return jax.lax.fori_loop(0, 5, lambda i, x: jnp.sin(x @ x), a)

    text = jax.jit(f).lower(jnp.ones((64, 64))).compile().as_text()
    assert sum(k.bytes for k in reading.kernels(text)) >= 5 * 4 * (2 * 64 * 64)


def test_frames_are_pictures():
    """A step's clips by their frames; an evaluation takes eval.batch_size frames at a time."""
    config = config_of("dsanet.py:smoke")
    info = facts.of_config(config, AXIS, (64, 640, 4))
    one = Devices(jax.devices()[:1])
    step, embed = programs.of_stage(config, "train", info, one)
    d = config.data
    assert step.rows == d.ids * d.instances * d.frames
    assert embed.batch["image"].shape[:2] == (config.eval.batch_size // d.frames, d.frames)
    assert embed.rows == config.eval.batch_size // d.frames * d.frames


def test_what_the_compiler_refuses(monkeypatch, capsys):
    """A TPU's compiler ends where a program is too large: that is a verdict, other errors are not."""
    text = "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. "
    text += "Used 28.50G of 15.75G hbm. Exceeded hbm capacity by 12.75G."
    other = "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries "
    assert programs.needed(f"{other}(27.61G) exceeds available HBM (15.75G).") == round(27.61 * 2**30)
    assert programs.needed(text) == int(28.5 * 2**30) and programs.needed("INTERNAL: no such thing") == 0
    program = programs.Program("train: train", lambda s, b: s + b, np.zeros(4), np.zeros(4), 4, True)

    def fail(message):
        def compile(self, *args, **kwargs):
            raise jax.errors.JaxRuntimeError(message)

        monkeypatch.setattr(jax.stages.Lowered, "compile", compile)
        return programs.compiled(program, Devices(jax.devices()[:1]))

    plan, kept = fail(text)
    assert plan.peak == int(28.5 * 2**30) and kept == ""
    place = command.Place("v5e:1x1", "v5e", None, chips.usable("v5e"), "v5e:1x1")
    command.print_plans([plan], place)
    shown = capsys.readouterr().out
    assert "train: train: does not fit: 28.5 of 15.75 GiB" in shown and "refuses it" in shown
    row = next(line for line in shown.splitlines() if line.startswith("| train: train"))
    assert row.replace(" ", "").startswith("|train:train|4|-|-|28.50|-|-|")
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        fail("INTERNAL: no such thing")


def test_topologies():
    assert chips.parse("v5e:2x4") == ("v5e", 8) and chips.parse("v5p:2x2x1") == ("v5p", 4)
    assert [chips.host(t) for t in ("v5e:1x1", "v5e:2x4", "v5p:2x2x2")] == [(1, 1, 1), (2, 2, 1), (2, 2, 1)]
    assert chips.larger("v5e:2x4") == "v5e:4x4" and chips.larger("v5p:2x2x1") == "v5p:2x2x2"
    for name in ("v5e", "v5e:8", "v9:2x2", "2x4"):
        with pytest.raises(ConfigError, match="--topology"):
            chips.parse(name)
    assert chips.usable("v5e") == 15.75 * 2**30


@pytest.mark.parametrize("most", [0, 1, 7, 64, 100])
def test_the_largest_that_fits(most):
    for start in (1, 16, 200):
        asked = []
        assert ways.largest(lambda n, asked=asked: asked.append(n) or n <= most, start) == most
        assert len(asked) == len(set(asked)) <= 20


@pytest.mark.parametrize("variant, labelled, hidden", [
    ("baseline.py:market", 751, 0), ("cluster_contrast.py:market", 0, 12936),
])  # fmt: skip
def test_a_set_of_the_published_size(variant, labelled, hidden):
    """Market-1501: 751 people in 12,936 pictures by 6 cameras; all identities have two pictures or more."""
    info = facts.of_config(config_of(variant), AXIS)
    assert (info.num_pids, info.num_cams, info.num_images) == (labelled, 6, 12936)
    assert (info.labelled is None) == (not labelled) and (info.unlabelled is None) == (not hidden)
    if labelled:
        assert np.bincount(info.labelled.pid).min() > 1
    info = facts.of_config(config_of(variant), AXIS, counts=(10, 100, 3))
    assert (info.num_pids, info.num_images, info.num_cams) == (10 if labelled else 0, 100, 3)


def test_a_target_beside_a_source():
    """The baseline leaves it alone: it has the source's identities and cameras."""
    changes = dict(data__name="dukemtmc+market1501", data__target="market1501")
    info = facts.of_config(config_of("baseline.py:market", **changes), AXIS)
    assert (info.num_pids, info.num_cams, info.num_images) == (702, 8, 12936)
    with pytest.raises(ConfigError, match="learns from identities only"):
        facts.of_config(config_of("baseline.py:market", data__target="market1501"), AXIS)


def test_command(tmp_path, capsys):
    """Arguments are the state and a device's part of the batch; a step takes several times an embedding."""
    target = tmp_path / "plan.json"
    flags = ["--config=configs/baseline.py:smoke", "--config.data.ids=8", "--devices=2", f"--json={target}"]
    assert command.main(flags) == 0
    shown = capsys.readouterr().out
    assert "train: embed" in shown and "| H100 SXM" in shown
    step, embed = json.loads(target.read_text())["programs"]
    config = cli.config_of_flags(flags[:2])
    method = methods.build(config, "train", facts.of_config(config, AXIS))
    state = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(stages.state_shapes(method)))
    data, rows = config.data, config.data.ids * config.data.instances // 2
    assert step["rows"] == rows
    assert 0 < step["arguments"] - state - rows * data.height * data.width * 3 < 0.1 * state + 200 * rows
    assert step["flops"] / step["rows"] > 2 * embed["flops"] / embed["rows"] > 0
    assert {c["kind"] for c in step["collectives"]} >= {"all-reduce"} and not embed["collectives"]


def test_what_does_not_fit(monkeypatch, capsys):
    """Each way is tried and told; the exit code says so."""
    place = command.Place("small", "", Devices(jax.devices()[:1]), 1000)
    monkeypatch.setattr(command, "place_of", lambda args: place)
    monkeypatch.setattr(programs, "compiled", lambda program, devices: (PLANS[program.trains], ""))
    assert command.main(["--config=configs/baseline.py:smoke", "--devices=1", "--search"]) == 1
    shown = capsys.readouterr().out
    assert "train: train: does not fit" in shown and "train: embed: fits" in shown
    assert "--config.model.dtype=bfloat16: does not fit" in shown and "--config.train.accumulate=4" in shown
    assert "the largest data.ids that fits is 0" in shown


PLANS = {
    trains: programs.Plan(f"train: {name}", 4, trains, size, 0, 0, 0, 1e9, 1e6, [], 0.0, 1.0)
    for trains, name, size in ((True, "train", 2000), (False, "embed", 10))
}


def test_what_cannot_be_planned(capsys):
    for flags, message in (
        (["--config=configs/baseline.py:smoke"], "--topology=v5e:2x4 or --devices"),
        (["--devices=1"], "--config=FILE"),
        (["--devices=1", "--config=configs/baseline.py:smoke", "--config.data.hight=3"], "hight"),
        (["--devices=99", "--config=configs/baseline.py:smoke"], "this machine has"),
    ):
        assert cli.exit_code(command.main, flags) == 2
        assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the tpu extra")
def test_a_slice_of_tpus(tmp_path):
    """The TPU compiler, without a TPU; in a process of its own, whose environment it reads."""
    import subprocess
    import sys

    target = tmp_path / "plan.json"
    flags = ["--config=configs/baseline.py:smoke", "--topology=v5e:1x1", f"--json={target}"]
    subprocess.run([sys.executable, "-m", "reid_jax", "plan", *flags], check=True)
    result = json.loads(target.read_text())
    assert result["memory"] == chips.usable("v5e") and all(p["peak"] > 0 for p in result["programs"])
