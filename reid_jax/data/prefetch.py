"""Batches that wait on the devices before a step asks for them."""

import collections
from concurrent.futures import ThreadPoolExecutor


class OnDevice:
    """Iterator over place(batch) for each batch, `count` of them made ahead by one thread, in order.

    batches: an iterator, closed with this one when it has close(). place: puts a batch on the devices, such
    as train.devices.Devices.shard. count: 0 makes each batch when it is asked for, without a thread. An
    exception of either comes out of next() where its batch would have; iteration then ends.
    """

    def __init__(self, batches, place, count):
        self._batches, self._place, self._pool, self._open = batches, place, None, True
        if count:
            self._pool = ThreadPoolExecutor(1, "device-prefetch")
            self._ahead = collections.deque(self._pool.submit(self._make) for _ in range(count))

    def _make(self):
        return self._place(next(self._batches))

    def __iter__(self):
        return self

    def __next__(self):
        if not self._open:
            raise StopIteration
        try:
            if self._pool is None:
                return self._make()
            batch = self._ahead.popleft().result()
        except BaseException:
            self.close()
            raise
        self._ahead.append(self._pool.submit(self._make))
        return batch

    def close(self):
        """Ends the thread, after the batch it is making, and closes the batches; may be called again."""
        if not self._open:
            return
        self._open = False
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._ahead.clear()
        if hasattr(self._batches, "close"):
            self._batches.close()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()


class Together:
    """Iterator of {name: next batch} over iterators by name; ends when one does, and closes them all."""

    def __init__(self, iterators):
        self.iterators = iterators

    def __iter__(self):
        return self

    def __next__(self):
        return {name: next(batches) for name, batches in self.iterators.items()}

    def close(self):
        """Closes all of them."""
        for batches in self.iterators.values():
            batches.close()
