"""The training loop: every stage of every method goes through it. It knows parts, streams and states."""

from typing import NamedTuple


class At(NamedTuple):
    """Where a stage is; in every checkpoint."""

    part: int = 0  # parts that are done
    taken: int = 0  # steps taken of the next one
    step: int = 0  # steps taken of the stage
    round: int = 0  # rounds that are done

    def after_step(self):
        """One step on."""
        return self._replace(taken=self.taken + 1, step=self.step + 1)

    def after_part(self, round_):
        """At the start of the next part; round_: Part.round of the one that is done."""
        return At(self.part + 1, 0, self.step, round_ or self.round)


def fit(run, method, state, at):
    """Trains a stage from `at` to its end; returns its State, on the devices, and where it is then.

    run: a run.Run; state: host arrays. Raises signals.Stopped when it was asked to stop and has saved.
    """
    state = run.devices.replicate(state)
    while (part := method.part(at.part)) is not None:
        if part.begin is not None and not at.taken:
            state = run.begin(part, state, at)
        length, streams = run.length(part, state, at)
        if at.taken < length:
            step = run.devices.compile(part.step)
            with run.batches(streams, at.taken) as batches, run.bar(part, at, length) as bar:
                while at.taken < length:
                    state, metrics = step(state, next(batches))
                    at = at.after_step()
                    run.note(at, metrics, bar)
                    if at.taken < length:
                        run.between_steps(at, state)
            run.flush(at)
        at = at.after_part(part.round)
        run.after_part(at, part, state)
    return state, at
