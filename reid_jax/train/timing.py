"""How fast a run is."""

import time

import numpy as np


class Rate:
    """Images per second between logging points; evaluation and compilation are left out."""

    def __init__(self):
        self.last, self.rates = None, []

    def note(self, step, batch):
        """A logging point at `step`; batch: images in a step."""
        now = time.monotonic()
        if self.last and step > self.last[0]:
            self.rates.append((step - self.last[0]) * batch / max(now - self.last[1], 1e-9))
        self.last = step, now

    def pause(self):
        """What comes now is not training."""
        self.last = None

    def recent(self):
        """The newest rate, as text."""
        return f"{self.rates[-1]:.0f}" if self.rates else "?"

    def median(self):
        """Median over the run; None when nothing was measured."""
        return float(np.median(self.rates)) if self.rates else None
