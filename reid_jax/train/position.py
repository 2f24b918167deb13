"""Where a stage is, as its checkpoints say."""

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


def of_checkpoint(meta):
    """At of a checkpoint's meta; those of layout 1 know their step alone."""
    fields = {k: meta[k] for k in At._fields if k in meta}
    return At(**{"taken": meta["step"], **fields} if "part" not in meta else fields)
