"""What a program runs on: said at its start; what was asked for and is missing is an error at once.

JAX takes the CPU where it cannot use a GPU, and says so in a warning among others.
"""

import glob
import logging
import os
import shutil
from collections import Counter

import jax

from reid_jax.errors import ConfigError

log = logging.getLogger(__name__)
ACCELERATED = ("cuda", "rocm", "gpu", "tpu")  # platforms as JAX_PLATFORMS calls them
EXTRAS = (
    "pip install -e '.[cuda12]' (driver 525 and newer) or '.[cuda13]' (driver 580 and newer, compute "
    "capability 7.5 and more)"
)


def start():
    """Says what JAX runs on, and warns where it leaves a GPU idle; to be called before the first computation.

    Processes of one run have joined before. Raises ConfigError when a platform of JAX_PLATFORMS cannot be
    had.
    """
    reason = missing_platform()
    if reason:
        raise ConfigError(reason)
    processes = jax.process_count()
    log.info("running on %s%s", described(), f" in {processes} processes" if processes > 1 else "")
    if jax.default_backend() == "cpu" and (sign := idle_gpu()):
        log.warning(
            "warning: only CPUs are used, though there seems to be a GPU (%s): for JAX to use it install its "
            "CUDA form, %s, and see what nvidia-smi says; set JAX_PLATFORMS=cpu where CPUs are meant",
            sign,
            EXTRAS,
        )


def described(devices=None):
    """'2 x NVIDIA H200'; devices: default, all of all processes."""
    kinds = Counter(d.device_kind for d in (jax.devices() if devices is None else devices))
    return ", ".join(f"{count} x {kind}" for kind, count in kinds.items())


def missing_platform():
    """Why JAX has no platform to run on, or not the first one of JAX_PLATFORMS; "" where it has.

    A list (cuda,cpu) names what all has to be there, as in JAX's documentation.
    """
    wanted = jax.config.jax_platforms or ""
    try:
        usable = jax.default_backend()
    except Exception as error:  # RuntimeError, AssertionError: the plugins' own
        reason = next(iter(str(error).splitlines()), "")[:300] or f"JAX finds no {wanted} device here"
    else:
        if wanted.split(",")[0] not in ACCELERATED or usable != "cpu":
            return ""
        reason = "JAX finds only CPUs here"
    if not wanted:
        return f"JAX cannot start: {reason}"
    return (
        f"JAX_PLATFORMS={wanted} cannot be had: {reason}. For GPUs install JAX's CUDA form, {EXTRAS}; for "
        "CPUs set JAX_PLATFORMS=cpu; unset it to take what there is"
    )


def idle_gpu():
    """What shows that there is an NVIDIA GPU, "" without one or where it was not to be used."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1", "NoDevFiles")
    if hidden or "cpu" in (jax.config.jax_platforms or ""):
        return ""
    nodes = sorted(glob.glob("/dev/nvidia[0-9]*"))
    return nodes[0] if nodes else shutil.which("nvidia-smi") or ""
