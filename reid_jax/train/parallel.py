"""One step on any number of devices: pmap, shard_map or a single-device jit, chosen by a field.

A step is written per device and takes part in collectives over `AXIS`. `Runner` hides where the
state lives: it replicates a state, splits a batch, compiles a step and brings results back.
"""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from reid_jax.config import choice
from reid_jax.errors import ConfigError

AXIS = "device"
BACKENDS = ("pmap", "shard_map", "jit")


class Runner:
    """Runs per-device functions over `devices` (default: all) with one of BACKENDS.

    axis_name is what steps must use for collectives: AXIS, or None under "jit" (one device). Devices are
    ordered by process, so process i holds the i-th part of every global batch.
    """

    def __init__(self, backend="pmap", devices=None):
        self.backend = choice("train.backend", backend, BACKENDS)
        self.devices = list(devices or sorted(jax.devices(), key=lambda d: (d.process_index, d.id)))
        if backend == "jit":
            if jax.process_count() > 1:
                raise ConfigError("config.train.backend=jit is for one device; use pmap or shard_map")
            self.devices = jax.local_devices()[:1] if devices is None else self.devices[:1]
        self.local = [d for d in self.devices if d.process_index == jax.process_index()]
        self.axis_name = None if backend == "jit" else AXIS
        self.mesh = Mesh(np.array(self.devices), (AXIS,))

    def check_batch(self, size):
        """Raises ConfigError when a global batch of `size` cannot be split over the devices."""
        if size % len(self.devices):
            raise ConfigError(
                f"the batch of {size} images (data.ids x data.instances) cannot be split over "
                f"{len(self.devices)} devices: change data.ids or data.instances, use fewer devices "
                "(CUDA_VISIBLE_DEVICES), or set config.train.backend=jit for one device"
            )

    def replicate(self, tree):
        """Host or one-device tree -> the form that a compiled step takes, on every device."""
        if self.backend == "jit":
            return jax.device_put(tree, self.devices[0])
        if self.backend == "shard_map":
            sharding = NamedSharding(self.mesh, PartitionSpec())
            return jax.tree.map(lambda x: self._from_callback(np.asarray(x), sharding), tree)
        sharding = NamedSharding(self.mesh, PartitionSpec(AXIS))
        count = len(self.devices)

        def spread(x):
            x = np.asarray(x)
            return self._from_callback(np.broadcast_to(x, (count, *x.shape)), sharding)

        return jax.tree.map(spread, tree)

    def _from_callback(self, x, sharding):
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    def shard(self, batch):
        """This host's part of a batch (leading axis B) -> arrays spread over its devices."""
        if self.backend == "jit":
            return jax.device_put(batch, self.devices[0])
        sharding = NamedSharding(self.mesh, PartitionSpec(AXIS))
        parts = len(self.local)

        def split(x):
            x = np.asarray(x)
            if self.backend == "pmap":
                x = x.reshape(parts, len(x) // parts, *x.shape[1:])
            return jax.make_array_from_process_local_data(sharding, x)

        return jax.tree.map(split, batch)

    def compile(self, step, donate=True):
        """(state, batch) -> (state, metrics), compiled for all devices; the state is donated."""
        compiled = self._compile(step, (0,) if donate else ())
        if jax.process_count() > 1 and self.devices[0].platform == "cpu":
            # Queued steps of several processes with several CPU devices each can deadlock.
            return lambda state, batch: jax.block_until_ready(compiled(state, batch))
        return compiled

    def _compile(self, step, donate_argnums):
        if self.backend == "jit":
            return jax.jit(step, donate_argnums=donate_argnums)
        if self.backend == "pmap":
            return jax.pmap(step, axis_name=AXIS, devices=self.devices, donate_argnums=donate_argnums)
        spec = PartitionSpec()
        mapped = jax.shard_map(
            step,
            mesh=self.mesh,
            in_specs=(spec, PartitionSpec(AXIS)),
            out_specs=(spec, spec),
            check_vma=False,
        )
        return jax.jit(mapped, donate_argnums=donate_argnums)

    def compile_embed(self, embed):
        """(state, image u8[N,H,W,3]) -> f32[N,D] on this host; N divisible by the local devices.

        Each host embeds its own images: no collective.
        """
        if self.backend == "jit":
            return jax.jit(embed)
        local = Mesh(np.array(self.local), (AXIS,))
        split = NamedSharding(local, PartitionSpec(AXIS))
        mapped = jax.jit(
            jax.shard_map(
                embed,
                mesh=local,
                in_specs=(PartitionSpec(), PartitionSpec(AXIS)),
                out_specs=PartitionSpec(AXIS),
                check_vma=False,
            )
        )
        return lambda state, image: mapped(state, jax.device_put(image, split))

    def local_state(self, state):
        """The trained state as compile_embed's functions take it (on this host's devices)."""
        if self.backend == "jit":
            return state
        local = Mesh(np.array(self.local), (AXIS,))
        return jax.device_put(self.fetch(state), NamedSharding(local, PartitionSpec()))

    def fetch(self, tree):
        """The tree as numpy arrays, one copy (the first device's); launches no computation.

        Real copies: on the CPU a view would share the buffer that the next step is given.
        """

        def pick(x):
            if self.backend == "jit" or not isinstance(x, jax.Array):
                return np.array(x)
            data = np.array(x.addressable_shards[0].data)
            return data[0] if self.backend == "pmap" else data

        return jax.tree.map(pick, tree)
