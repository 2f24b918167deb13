"""A process that writes to a gallery, to be killed or to run out of room; says a line for all it has done.

python gallery_writer.py write GALLERY FIRST | fill GALLERY LIMIT | hold GALLERY
"""

import resource
import signal
import subprocess
import sys

import numpy as np

SIZE = 40  # entries of a batch


def batch(number):
    """f32[SIZE,24] of one batch."""
    return np.random.default_rng(number).standard_normal((SIZE, 24)).astype(np.float32)


def start(*arguments):
    """The process; a line of its stdout is read by `.stdout.readline()`."""
    command = [sys.executable, __file__, *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def say(*words):
    print(*words, flush=True)


def write(gallery, first):
    """Batches from `first` on, told of when confirmed; each third is deleted again."""
    number = int(first)
    while True:
        gallery.add_features(batch(number), person=f"batch{number}")
        say("added", number)
        if number % 3 == 2:
            gallery.remove(person=f"batch{number}")
            say("removed", number)
        number += 1


def fill(gallery, limit):
    """Batches until files may not grow beyond `limit` bytes; then their number and the error."""
    from reid_jax.errors import DataError

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
    for number in range(200):
        try:
            gallery.add_features(batch(number), person=f"batch{number}")
        except DataError as error:
            return say(number, error)
    say("no error")


def hold(gallery):
    """Holds the lock for writing until it reads a line."""
    with gallery.file.writing():
        say("held")
        sys.stdin.readline()


if __name__ == "__main__":
    from gallery_stub import Stub

    from reid_jax.serve import gallery as module

    module.BATCH = SIZE
    name, path, *others = sys.argv[1:]
    {"write": write, "fill": fill, "hold": hold}[name](
        module.Gallery(path, Stub(), precision="float32"), *others
    )
