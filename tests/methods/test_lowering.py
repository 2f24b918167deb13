"""Every step lowers for GPUs and TPUs, which need not be there: no CPU form, no callback, no float64."""

import re

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from runs import tiny
from stage_cases import batches, facts, parts

from reid_jax import methods
from reid_jax.models import layers
from reid_jax.train import stages
from reid_jax.train.devices import AXIS, Devices

QUICK = {"baseline"}  # the others take a second or two to trace
CASES = [
    pytest.param(name, stage, marks=[pytest.mark.slow] * (name not in QUICK), id=f"{name}-{stage}")
    for name in methods.names()
    for stage in stages.of_config(tiny(name))
]


def lowered(step, state, batch):
    """StableHLO of a step over two devices, as GPUs and TPUs get it."""
    devices = Devices(jax.devices()[:2])
    whole = PartitionSpec()
    specs = dict(in_specs=(whole, PartitionSpec(AXIS)), out_specs=whole)
    mapped = jax.jit(jax.shard_map(step, mesh=devices.mesh, check_vma=False, **specs))
    with layers.form("plain"):
        return jax.export.export(mapped, platforms=("cuda", "tpu"))(state, batch).mlir_module()


def programs(name, stage, seed=0):
    """StableHLO of the step of each part of a stage."""
    config = tiny(name, data__ids=4, data__instances=4, seed=seed)
    stage_config, method = stages.build(config, stage, facts(config, cams=2))
    shapes = stages.state_shapes(method)
    memory = {k: np.zeros(v.shape, v.dtype) for k, v in shapes.memory.items()}
    if "labels" in memory:
        memory["labels"] = (np.arange(len(memory["labels"])) % 8).astype(np.int32)
    keyed = shapes._replace(key=jax.ShapeDtypeStruct((2,), np.uint32))
    for part in parts(method):
        batch = batches(part, shapes._replace(memory=memory), stage_config.data)
        yield lowered(part.step, keyed, batch)


@pytest.mark.parametrize("name, stage", CASES)
def test_step_lowers_for_accelerators(name, stage):
    for text in programs(name, stage):
        assert "stablehlo.all_reduce" in text
        assert not re.search(r"f64|callback", text)


@pytest.mark.slow
@pytest.mark.parametrize("name, stage", CASES)
def test_another_seed_compiles_nothing(name, stage):
    """The seed comes in by State.key: the programs are the same."""
    for a, b in zip(programs(name, stage, 5), programs(name, stage, 2**40 + 7), strict=True):
        assert a == b


def test_a_step_with_a_callback_is_refused():
    def step(state, batch):
        total = jax.pure_callback(np.sum, jax.ShapeDtypeStruct((), np.float32), batch)
        return jax.lax.pmean(state + total, AXIS)

    with pytest.raises(NotImplementedError, match="callback"):
        lowered(step, np.float32(0), np.zeros((2, 3), np.float32))
