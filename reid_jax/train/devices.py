"""One step on any number of devices, by pmap.

A step is written per device and takes part in collectives over `AXIS`. `Devices` hides where the state lives:
it replicates a state, splits a batch, compiles a step and brings results back.
"""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from reid_jax.errors import ConfigError

AXIS = "device"


class Devices:
    """Runs per-device functions over `devices` (default: all that the processes have).

    Devices are ordered by process, so process i holds the i-th part of every global batch.
    """

    axis_name = AXIS

    def __init__(self, devices=None):
        self.devices = list(devices or sorted(jax.devices(), key=lambda d: (d.process_index, d.id)))
        self.local = [d for d in self.devices if d.process_index == jax.process_index()]
        self.mesh = Mesh(np.array(self.devices), (AXIS,))
        self._steps = {}

    def check_batch(self, size, fields="data.ids x data.instances"):
        """Raises ConfigError when a global batch of `size` images cannot be split over the devices."""
        if size % len(self.devices):
            raise ConfigError(
                f"the batch of {size} images ({fields}) cannot be split over {len(self.devices)} devices: "
                "change data.ids or data.instances, or use fewer devices (CUDA_VISIBLE_DEVICES)"
            )

    def replicate(self, tree):
        """Host or one-device tree -> the form that a compiled step takes, on every device."""
        sharding = NamedSharding(self.mesh, PartitionSpec(AXIS))
        count = len(self.devices)

        def spread(x):
            x = np.asarray(x)
            copies = np.broadcast_to(x, (count, *x.shape))
            return jax.make_array_from_callback(copies.shape, sharding, lambda index: copies[index])

        return jax.tree.map(spread, tree)

    def shard(self, batch):
        """This host's part of a batch (leading axis B) -> arrays spread over its devices."""
        sharding, count = NamedSharding(self.mesh, PartitionSpec(AXIS)), len(self.local)

        def split(x):
            x = np.asarray(x)
            x = x.reshape(count, len(x) // count, *x.shape[1:])
            return jax.make_array_from_process_local_data(sharding, x)

        return jax.tree.map(split, batch)

    def compile(self, step, donate=True):
        """(state, batch) -> (state, metrics), compiled for all devices, once a step; donates the state."""
        if (step, donate) not in self._steps:
            donated = (0,) if donate else ()
            mapped = jax.pmap(step, axis_name=AXIS, devices=self.devices, donate_argnums=donated)
            self._steps[step, donate] = self._waiting(mapped)
        return self._steps[step, donate]

    def trace(self, step, state, batch):
        """Shapes of what a step gives, which computes nothing; state and batch: arrays or shapes, the global
        batch divisible by the devices. Raises what compiling the step would."""
        specs = dict(in_specs=(PartitionSpec(), PartitionSpec(AXIS)), out_specs=PartitionSpec())
        return jax.eval_shape(jax.shard_map(step, mesh=self.mesh, check_vma=False, **specs), state, batch)

    def _waiting(self, mapped):
        """Queued steps of several processes with several CPU devices each can deadlock: there, one by one."""
        if jax.process_count() > 1 and self.devices[0].platform == "cpu":
            return lambda state, batch: jax.block_until_ready(mapped(state, batch))
        return mapped

    def compile_embed(self, embed):
        """(state, arrays [N,...]) -> f32[N,D] on this host, by a pure function; the local devices divide N.

        Each host embeds its own images: no collective. state as `local_state` gives it.
        """
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
        return lambda state, batch: mapped(state, jax.device_put(batch, split))

    def local_state(self, state):
        """The trained state as compile_embed's functions take it (on this host's devices)."""
        local = Mesh(np.array(self.local), (AXIS,))
        return jax.device_put(self.fetch(state), NamedSharding(local, PartitionSpec()))

    def fetch(self, tree):
        """The tree as numpy arrays, one copy (the first device's); launches no computation.

        Real copies: on the CPU a view would share the buffer that the next step is given.
        """

        def first(x):
            return np.array(x.addressable_shards[0].data)[0] if isinstance(x, jax.Array) else np.array(x)

        return jax.tree.map(first, tree)
