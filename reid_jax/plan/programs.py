"""The programs of a run, compiled for devices that need not be there: steps of each part, and embedding."""

import re
import time
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from reid_jax import methods
from reid_jax.models import layers
from reid_jax.plan import hlo, reading
from reid_jax.train import preflight, stages
from reid_jax.train.devices import AXIS

USED = re.compile(r"(?:Used |memory required for [\w ]+\()([\d.]+)([BKMGT])i?B?\b")  # in a compiler's refusal


class Program(NamedTuple):
    """What a run compiles once, and shapes of its arguments; rows: pictures (or frames) of one device."""

    name: str
    function: object
    state: object
    batch: object
    rows: int
    trains: bool


class Plan(NamedTuple):
    """What the compiler says of a program on one device; bytes, but for what is named otherwise."""

    name: str
    rows: int
    trains: bool
    arguments: int
    temporaries: int
    results: int  # that are not given the place of an argument
    code: int
    flops: float
    moved: float  # to and from main memory, at most
    collectives: list
    seconds: float  # the compiler's own estimate, 0 where it gives none
    compiled_in: float  # seconds
    kernels: list = []  # [reading.Kernels], where the bytes go
    products: dict = {}  # {dtypes: number} of convolutions and dots

    @property
    def peak(self):
        """Bytes at once."""
        return self.arguments + self.temporaries + self.results + self.code


def of_stage(config, name, info, devices):
    """[Program] of a stage: the steps of its (first round's) parts, and the embedding of an evaluation.

    Errors: ConfigError for batches that the devices cannot share, and what the method itself refuses.
    """
    config, method = stages.build(config, name, info)
    stages.check_batch(config, devices)
    state, steps = stages.state_shapes(method), []
    for part in preflight.first_round(method):
        streams = preflight.streams_of(part, config, state)
        for stream, value in streams.items():
            value.check_shared(stream, len(devices.devices))
        if streams:
            batch = preflight.examples(streams, config)
            rows = sum(pictures(b["image"]) for b in batch.values()) // len(devices.devices)
            steps.append(Program(f"{name}: {part.name}", part.step, state, batch, rows, True))
    return [*steps, embedding(config, name, method, state)]


def embedding(config, name, method, state):
    """The Program of an evaluation: one device embeds config.eval.batch_size pictures, or frames in clips."""
    net = methods.choose_net(method, config.eval.net)[0]
    d = config.data
    rows = max(config.eval.batch_size // max(d.frames, 1), 1)
    shape = (rows, *([d.frames] if d.frames else []), d.height, d.width, 3)
    batch = {"image": np.zeros(shape, np.uint8), "camid": np.zeros(rows, np.int32)}
    for extra, value in method.info.labelled.extras.items() if method.info.labelled else ():
        batch[extra] = np.zeros((rows, *value.shape[1:]), value.dtype)

    def embed(state, batch):
        return method.embed_batch(state, batch, net)

    return Program(f"{name}: embed", embed, state, batch, pictures(batch["image"]), False)


def pictures(image):
    """How many pictures, or frames of clips, a batch [...,H,W,3] holds."""
    return int(np.prod(np.shape(image)[:-3]))


def compiled(program, devices):
    """(Plan, text of the compiled program); of one that its compiler finds too large the bytes alone, and "".

    The step is the one that trains: per device under the same axis name, its state given away.
    """
    chosen = devices.devices if program.trains else devices.devices[:1]
    mesh = Mesh(np.array(chosen), (AXIS,))
    whole, split = PartitionSpec(), PartitionSpec(AXIS)
    specs = dict(in_specs=(whole, split), out_specs=whole if program.trains else split)
    mapped = jax.shard_map(program.function, mesh=mesh, check_vma=False, **specs)
    donated = (0,) if program.trains else ()
    state, batch = (
        shaped(t, NamedSharding(mesh, s)) for t, s in ((program.state, whole), (program.batch, split))
    )
    began = time.monotonic()
    with layers.form("auto" if chosen[0].platform == "cpu" else "plain"):
        lowered = jax.jit(mapped, donate_argnums=donated).lower(state, batch)
        try:
            result = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if not (used := needed(str(error))):
                raise
            return refused(program, used, time.monotonic() - began), ""
    return planned(program, result, time.monotonic() - began), result.as_text()


def shaped(tree, sharding):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=sharding), tree)


def needed(message):
    """Bytes that a program needs by its compiler's refusal, 0 where the message is of something else."""
    match = USED.search(message) if "RESOURCE_EXHAUSTED" in message else None
    return round(float(match[1]) * 1024 ** "BKMGT".index(match[2])) if match else 0


def refused(program, used, seconds):
    """The Plan of a program that does not fit, of which no more is known."""
    return Plan(program.name, program.rows, program.trains, 0, used, 0, 0, 0.0, 0.0, [], 0.0, seconds)


def planned(program, result, seconds):
    """The Plan of a compiled program."""
    memory, cost = result.memory_analysis(), result.cost_analysis() or {}
    cost = cost[0] if isinstance(cost, list) else cost
    text = result.as_text()
    estimate = cost.get("optimal_seconds", 0.0)
    kernels = reading.kernels(text)
    moved = sum(k.bytes for k in kernels)
    return Plan(
        program.name,
        program.rows,
        program.trains,
        memory.argument_size_in_bytes,
        memory.temp_size_in_bytes,
        max(memory.output_size_in_bytes - memory.alias_size_in_bytes, 0),
        memory.generated_code_size_in_bytes,
        cost.get("flops", 0.0),
        min(cost.get("bytes accessed", 0.0) or moved, moved),  # the former has traffic on the chip in it
        hlo.collectives(text),
        estimate if estimate > 0 else 0.0,
        seconds,
        kernels,
        reading.products(text),
    )
