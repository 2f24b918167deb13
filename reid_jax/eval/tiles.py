"""Features of a gallery on the device, tile by tile, and host memory that a CPU takes over without a copy."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from reid_jax.errors import NOT_FINITE, DataError

_TILE_BYTES = 8 << 20  # of the gallery in one matrix product on a CPU; larger ones gain nothing
_DEVICE_TILE_BYTES = 128 << 20  # on other devices
_HUGE = 1e37  # squared norms from here on could overflow in a distance
_ALIGN = 64  # bytes; the CPU takes over NumPy memory so aligned without a copy


class Tiles:
    """Features f[N,D] as tiles f[T,D] on the device; the last tile starts early enough to be whole.

    They stay on the device where that takes no copy (aligned host memory on a CPU) or where they fit;
    otherwise each pass reads them from the host again, two tiles being on the device at a time. On a CPU
    these go through two aligned buffers.
    """

    def __init__(self, array, tile_bytes=None):
        self.array, self.staged = array, None
        tiles = -(-array.nbytes // (tile_bytes or (_TILE_BYTES if on_cpu() else _DEVICE_TILE_BYTES)))
        self.size = min(len(array), -(-len(array) // (16 * tiles)) * 16)
        starts = np.arange(0, len(array), self.size)
        self.starts = np.minimum(starts, len(array) - self.size).tolist()
        self.resident = [self._put(start) for start in self.starts] if self._stays() else None
        if self.resident is None and on_cpu():
            self.staged = [aligned((self.size, array.shape[1]), array.dtype) for _ in range(2)]

    def _put(self, start):
        part = self.array[start : start + self.size]
        if self.staged:
            self.staged.reverse()
            np.copyto(self.staged[0], part)
            part = self.staged[0]
        return jax.device_put(part, may_alias=True)

    def _stays(self):
        if isinstance(self.array, jax.Array):
            return True
        if on_cpu():
            return self.array.ctypes.data % _ALIGN == 0 and self.array.flags.c_contiguous
        stats = jax.local_devices()[0].memory_stats() or {}
        free = stats.get("bytes_limit", 0) - stats.get("bytes_in_use", 0)
        return self.array.nbytes < free / 2

    def each(self, use, state):
        """state = use(state, tile, start) for every tile; returns the last state (a device array)."""
        if self.resident is not None:
            for start, tile in zip(self.starts, self.resident, strict=True):
                state = use(state, tile, start)
            return state
        tile = self._put(self.starts[0])
        for start, after in zip(self.starts, [*self.starts[1:], None], strict=True):
            state = use(state, tile, start)
            tile = None if after is None else self._put(after)  # while the device works
            jax.block_until_ready(state)
        return state

    def square_norms(self, side, keep):
        """Squared L2 norms f[N]; DataError naming the first kept row that is not finite."""
        square = np.empty(len(self.array), self.array.dtype)

        def use(_, tile, start):
            norms = _square_norms(tile)
            square[start : start + self.size] = norms
            return norms

        self.each(use, None)
        bad = np.flatnonzero(~(square < _HUGE) & keep)
        if len(bad):
            raise DataError(
                f"{len(bad)} of {len(square)} {side} features are not finite or too large for float32 "
                f"(first: row {bad[0]}); {NOT_FINITE}"
            )
        return square


@jax.jit
def _square_norms(tile):
    return jnp.sum(tile * tile, axis=1)


def aligned(shape, dtype=np.float32):
    """Uninitialised array on the host that a CPU device takes over without a copy."""
    size = np.dtype(dtype).itemsize * math.prod(shape)
    memory = np.empty(size + _ALIGN, np.uint8)
    start = -memory.ctypes.data % _ALIGN
    return memory[start : start + size].view(dtype).reshape(shape)


def take(array, rows):
    """Rows, bool[N] or i[n], of features f[N,D] as f[n,D] that a CPU device takes over without a copy."""
    rows = np.flatnonzero(rows) if np.asarray(rows).dtype == bool else rows
    out = aligned((len(rows), array.shape[1]), array.dtype)
    return np.take(array, rows, axis=0, out=out, mode="clip")  # other modes go through a copy


def on_cpu():
    """Whether arrays lie in host memory by default."""
    return jax.default_backend() == "cpu"
