"""Several processes of one run: joining them, and agreeing on what one of them found or decided.

Process 0 writes all files; the others read them, so --workdir lies on a file system that all of them see.
Everything here is free with one process. What the processes tell each other here goes through JAX's
coordination service: a process may wait for long without holding a collective open, and a lost one ends
the others.
"""

import contextlib
import itertools
import json
import logging
import os
import sys
import threading

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from reid_jax import errors
from reid_jax.config import flatten
from reid_jax.errors import ConfigError, DataError, ProcessError, ReidError

LONGEST = 6 * 3600  # seconds that one process may work while the others wait for it
OWN_FIELDS = ("data.root", "data.workers", "data.threads", "data.prefetch", "data.cache_mib")  # of a process
_BLOCK = 2**26  # bytes of a part that are gathered at a time
_number = itertools.count()  # of exchanges so far; the same on all processes
log = logging.getLogger(__name__)


def started_by_a_launcher():
    """Whether srun or mpirun says that this process is one of several."""
    counts = (os.environ.get(name, "") for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"))
    return any(c.isdigit() and int(c) > 1 for c in counts)


def join(coordinator=None, num_processes=None, process_id=None, join_timeout=300, lost_timeout=60):
    """Joins the processes of this run; to be called before JAX uses any device.

    coordinator: HOST:PORT of process 0, which listens there. What is None is found out by JAX from Slurm,
    Open MPI, a TPU pod or Kubernetes. join_timeout: seconds to wait for all of them. lost_timeout: seconds
    after which a process that is not heard of counts as lost, which ends the others. Raises ConfigError when
    the settings do not fit, ProcessError when the processes do not find each other.
    """
    check_join(coordinator, num_processes, process_id, join_timeout, lost_timeout)
    watch = threading.Timer(join_timeout, give_up, (join_timeout,))  # JAX itself would abort
    watch.daemon = True
    watch.start()
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            initialization_timeout=join_timeout + 30,
            heartbeat_timeout_seconds=lost_timeout,
        )
    except (ValueError, TypeError) as e:
        raise ConfigError(
            f"the processes of this run are not known ({e}): neither Slurm, Open MPI, a TPU pod nor "
            "Kubernetes tells them; give --coordinator=HOST:PORT --num_processes=N --process_id=I, or "
            "--nodistributed"
        ) from e
    except RuntimeError as e:
        raise ProcessError(f"this process could not join the others of its run: {e}") from e
    finally:
        watch.cancel()


def give_up(join_timeout):
    """Ends this process, which waits for others inside JAX."""
    sys.stderr.write(
        f"error: the processes of this run did not find each other within {join_timeout} s "
        "(--join_timeout): start all of them, with the same --coordinator, at a port of process 0 that is "
        "free and that the others can reach\n"
    )
    sys.stderr.flush()
    os._exit(1)


def check_join(coordinator, num_processes, process_id, join_timeout, lost_timeout):
    """Raises ConfigError for settings of `join` that cannot be meant."""
    host, _, port = (coordinator or "host:1").rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(f"--coordinator is {coordinator!r}; it must be HOST:PORT of process 0")
    if num_processes is not None and num_processes < 1:
        raise ConfigError(f"--num_processes is {num_processes}; it must be at least 1")
    if process_id is not None and not 0 <= process_id < (num_processes or process_id + 1):
        raise ConfigError(f"--process_id is {process_id}; --num_processes={num_processes} count from 0")
    for name, value in (("join_timeout", join_timeout), ("lost_timeout", lost_timeout)):
        if value < 1:
            raise ConfigError(f"--{name} is {value}; it must be at least 1 second")


def several():
    """Whether this run has more than one process."""
    return jax.process_count() > 1


def first():
    """Whether this is process 0, which writes all files."""
    return jax.process_index() == 0


def wait():
    """Until all processes are here."""
    if several():
        multihost.get_barrier_sync_fn()(key=f"reid_jax/wait/{next(_number)}", timeout_ms=LONGEST * 1000)


def from_first(function):
    """What function() gives on process 0, on all processes; only that one calls it.

    The result must be fit for JSON. A ReidError that it raises is raised on all of them.
    """
    if not several():
        return function()
    client, key = multihost.get_jax_distributed_client(), f"reid_jax/value/{next(_number)}"
    if not first():
        answer = json.loads(client.blocking_key_value_get(key, LONGEST * 1000))
        if "error" in answer:
            part()
            raise getattr(errors, answer["error"], ReidError)(answer["message"])
        return answer["value"]
    try:
        value = function()
    except ReidError as e:
        client.key_value_set(key, json.dumps({"error": type(e).__name__, "message": str(e)}))
        part()
        raise
    client.key_value_set(key, json.dumps({"value": value}))
    return value


def part():
    """Waits a little before all end with the same error: process 0 holds what the others still read."""
    with contextlib.suppress(Exception):
        multihost.get_barrier_sync_fn()(key=f"reid_jax/part/{next(_number)}", timeout_ms=30_000)


def first_then_all(function):
    """function() of each process's own; the others call it when process 0 is done with it."""
    results = []
    from_first(lambda: results.append(function()))
    return results[0] if results else function()


def arrays_from_first(tree):
    """A tree of arrays as process 0 has it, as numpy on all; shapes and types must agree."""
    wait()  # here, not in a collective
    return multihost_utils.broadcast_one_to_all(tree) if several() else tree


def parts(count):
    """The slices of `count` rows that the processes work on; none is empty unless there are fewer rows."""
    ends = [i * count // jax.process_count() for i in range(jax.process_count() + 1)]
    return [slice(*pair) for pair in itertools.pairwise(ends)]


def gather(part, count):
    """f32[count,D] of all processes' rows f32[n,D], n as `parts` says."""
    if not several():
        return part
    sizes = [p.stop - p.start for p in parts(count)]
    part = np.pad(part, ((0, max(sizes) - len(part)), (0, 0)))
    rows = max(_BLOCK // max(part.shape[1] * part.itemsize, 1), 1)
    wait()
    blocks = [multihost_utils.process_allgather(part[i : i + rows]) for i in range(0, len(part), rows)]
    whole = np.concatenate(blocks, 1)  # [processes,rows,D]
    return np.concatenate([block[:n] for block, n in zip(whole, sizes, strict=True)])


def stop_due(step):
    """Whether all processes are to save and leave after this step, because one of them got a SIGTERM.

    To be asked after every step. JAX chooses a step that none has passed yet.
    """
    return multihost_utils.reached_preemption_sync_point(step)


def check_same_config(config):
    """Raises ConfigError when this process was started with another config than process 0."""
    theirs, ours = (flatten(c) for c in (from_first(lambda: config), config))
    fields = [f for f in sorted({*theirs, *ours}) if not f.startswith(OWN_FIELDS)]
    lines = [
        f"  {f}: {theirs.get(f)!r} there, {ours.get(f)!r} here"
        for f in fields
        if theirs.get(f) != ours.get(f)
    ]
    if lines:
        raise ConfigError("\n".join((f"{me()} has another config than process 0:", *lines)))


def check_same_data(dataset):
    """Raises DataError when this process finds other images than process 0."""
    if several() and from_first(dataset.fingerprint) != dataset.fingerprint():
        raise DataError(
            f"{me()} finds another {dataset.name} in {dataset.root} than process 0: all need the same files"
        )


def check_shared(path):
    """Raises DataError when this process does not see a file that process 0 has written."""
    if not os.path.exists(path):
        raise DataError(
            f"{me()} does not see {path}, which process 0 has written: --workdir must lie on a file system "
            "that all processes share"
        )


def me():
    """This process, in words."""
    return f"process {jax.process_index()} of {jax.process_count()}"


def leave():
    """Ends the run for all processes together, when process 0 has written what it had to."""
    if jax.distributed.is_initialized():
        wait()
        jax.distributed.shutdown()


def fail(code):
    """Ends this process with an exit code, without waiting for the others, who may wait for it."""
    if not jax.distributed.is_initialized():
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
