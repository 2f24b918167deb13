"""Stopping on request: SIGTERM and SIGINT are noted, and training leaves after the step in hand."""

import signal
import threading
from typing import Any

from reid_jax.train import processes


class Stopped(Exception):
    """Training was asked to stop (SIGTERM, SIGINT) and has saved; args: stage, step."""


class StopSignal:
    """Notes SIGTERM and SIGINT, so that training can save and leave; a second signal ends at once.

    With several processes JAX notes SIGTERM, and all leave after the same step.
    """

    def __init__(self):
        self.requested: Any = None

    def __enter__(self):
        self.old = {}
        if threading.current_thread() is threading.main_thread():
            several = processes.several()
            self.old[signal.SIGINT] = signal.signal(signal.SIGINT, self.hand_on if several else self.note)
            if not several:
                self.old[signal.SIGTERM] = signal.signal(signal.SIGTERM, self.note)
        return self

    def due(self, step):
        """Whether to save and leave after this step; to be asked after every one."""
        return processes.stop_due(step) if processes.several() else bool(self.requested)

    def hand_on(self, signum, frame):
        """Signal handler: SIGINT to where JAX notes it."""
        del signum, frame
        signal.raise_signal(signal.SIGTERM)

    def note(self, signum, frame):
        """Signal handler."""
        del frame
        if self.requested:
            signal.signal(signum, signal.SIG_DFL)
            signal.raise_signal(signum)
        self.requested = signum

    def __exit__(self, *error):
        for s, handler in self.old.items():
            signal.signal(s, handler)
