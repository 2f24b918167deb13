"""Accelerators: their memory, peak, bandwidth, and the topologies that the TPU compiler knows by name."""

import contextlib
import importlib.util
import math
import os
import re
from typing import NamedTuple

from reid_jax.errors import ConfigError

GIB = 2**30


class Chip(NamedTuple):
    """Vendor's figures of one chip."""

    title: str
    memory: float  # GiB
    tflops: float  # bfloat16, dense
    bandwidth: float  # GB/s of its memory
    link: float  # GB/s to its neighbours, all links in one direction
    source: str


CLOUD = "cloud.google.com/tpu/docs, system architecture"
CHIPS = {
    "v4": Chip("TPU v4", 32, 275, 1200, 150, CLOUD),
    "v5e": Chip("TPU v5e", 16, 197, 819, 100, CLOUD),
    "v5p": Chip("TPU v5p", 95, 459, 2765, 300, CLOUD),
    "v6e": Chip("TPU v6e", 32, 918, 1640, 224, CLOUD),
    "a100": Chip("A100 SXM 80 GB", 80, 312, 2039, 300, "NVIDIA A100 data sheet"),
    "h100": Chip("H100 SXM", 80, 989, 3350, 450, "NVIDIA H100 data sheet"),
    "h200": Chip("H200 SXM", 141, 989, 4800, 450, "NVIDIA H200 data sheet"),
}
# Names of the compiler's generations: accelerator type of a slice of n chips.
TYPES = {"v4": ("v4-{}", 2), "v5e": ("v5litepod-{}", 1), "v5p": ("v5p-{}", 2), "v6e": ("v6e-{}", 1)}
RESERVED = {"v5e": 0.25}  # GiB that the compiler keeps for itself


def at_peaks(name, flops, moved):
    """(seconds of computing FLOPs, seconds of moving bytes) at a chip's peaks: what they take at least."""
    return flops / CHIPS[name].tflops / 1e12, moved / CHIPS[name].bandwidth / 1e9


def usable(name):
    """Bytes of a chip's memory that a program may have."""
    return int((CHIPS[name].memory - RESERVED.get(name, 0)) * GIB)


def parse(topology):
    """(generation, number of chips) of a name such as v5e:2x4; ConfigError for another form."""
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+){1,2})", topology)
    if not match or match[1] not in TYPES:
        example = "v5e:2x4, v5p:2x2x1"
        raise ConfigError(
            f"--topology={topology} is none: use GENERATION:AxB of {', '.join(TYPES)}: {example}"
        )
    return match[1], math.prod(map(int, match[2].split("x")))


def larger(topology):
    """The name of a slice with twice the chips."""
    generation, sides = topology.split(":")
    sides = [int(s) for s in sides.split("x")]
    smallest = min(range(len(sides)), key=lambda i: (sides[i], -i if len(sides) == 2 else i))
    sides[smallest] *= 2
    return f"{generation}:{'x'.join(map(str, sides))}"


def host(topology):
    """(x, y, z): chips of one host, 2x2x1 as the compiler supposes, or the whole slice if that is less."""
    sides = [int(s) for s in topology.split(":")[1].split("x")]
    return min(sides[0], 2), min(sides[1], 2), 1


@contextlib.contextmanager
def environment(topology):
    """What the TPU compiler asks of the environment, where there is no TPU."""
    generation, chips = parse(topology)
    form, cores = TYPES[generation]
    values = {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": form.format(chips * cores),
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # several plans at a time: no chip is taken
    }
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def devices(topology):
    """The devices of a topology, which can be compiled for and nothing else.

    ConfigError: a name that the compiler does not know; no compiler installed.
    """
    parse(topology)
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(
            "--topology needs the TPU compiler: pip install 'reid-jax[tpu]' (no TPU is needed), or plan for "
            "this machine's devices with --devices"
        )
    from jax.experimental import topologies

    with environment(topology):
        try:
            described = topologies.get_topology_desc(
                platform="tpu", topology_name=topology, chips_per_host_bounds=host(topology)
            )
            return list(described.devices)
        except Exception as error:  # the compiler's own, of no common type
            reason = str(error).splitlines()[0]
            raise ConfigError(
                f"--topology={topology}: the TPU compiler does not know it ({reason})"
            ) from error


def of_device(device):
    """Name of the chip in CHIPS that a device of this machine is, "" for another."""
    title = device.device_kind.lower()
    known = {"v5 lite": "v5e", "v5p": "v5p", "v5": "v5p", "v6 lite": "v6e", "v4": "v4"}
    known |= {"a100": "a100", "h100": "h100", "h200": "h200"}
    return next((name for text, name in known.items() if text in title), "")
