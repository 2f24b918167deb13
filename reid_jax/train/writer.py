"""Metrics on disk: metrics.jsonl always, TensorBoard when tensorboardX is installed."""

import contextlib
import json
import os


class Silent:
    """What processes that are not the first have for a Writer."""

    def write(self, kind, step, epoch, seconds, values):
        """Writes nothing."""

    def close(self):
        """Nothing is open."""


class Writer:
    """Appends metric lines to WORKDIR/metrics.jsonl.

    On a resume the lines after `step` (written by steps that are now run again) are cut off, so a
    resumed run leaves the same file as an unbroken one, but for the seconds. stage: named in every line of
    a run with several stages; lines of the others stay. keep: function of a line of this stage, another rule
    of what stays.
    """

    def __init__(self, workdir, step=0, stage="", keep=None):
        self.path = os.path.join(workdir, "metrics.jsonl")
        self.stage = {"stage": stage} if stage else {}
        keep = keep or (lambda line: 0 < line["step"] <= step)
        kept = [x for x in read(self.path) if x.get("stage", "") != stage or keep(x)]
        part = f"{self.path}.part"
        with open(part, "w") as f:
            f.writelines(json.dumps(x) + "\n" for x in kept)
        os.replace(part, self.path)
        self.file = open(self.path, "a")
        self.board = _board(os.path.join(workdir, "tensorboard", stage), step)

    def write(self, kind, step, epoch, seconds, values):
        """One line; values are numbers or strings. Raises OSError with the path when it cannot be written."""
        line = {
            "kind": kind,
            **self.stage,
            "step": step,
            "epoch": round(epoch, 4),
            "seconds": round(seconds, 3),
        }
        try:
            self.file.write(json.dumps({**line, **values}) + "\n")
            self.file.flush()
        except OSError as e:
            raise OSError(e.errno, e.strerror, self.path) from e
        if self.board:
            tag = f"{kind}_{values['net']}" if "net" in values else kind
            for name, value in values.items():
                if isinstance(value, int | float):
                    self.board.add_scalar(f"{tag}/{name}", value, step)

    def close(self):
        """Closes the files; what a full disk keeps from being written now was said by `write`."""
        with contextlib.suppress(OSError):
            self.file.close()
        with contextlib.suppress(OSError):
            if self.board:
                self.board.close()


def _board(folder, step):
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(folder, purge_step=step + 1 if step else None)


def read(path):
    """The lines of a metrics.jsonl as dicts, up to the first that a kill or a full disk has damaged."""
    if not os.path.exists(path):
        return []
    lines = []
    with open(path, errors="replace") as f:
        for text in f:
            line = parse(text)
            if line is None:
                break
            lines.append(line)
    return lines


def parse(text):
    """A line of metrics.jsonl as a dict, None when it is damaged."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return line if isinstance(line, dict) and isinstance(line.get("step"), int) else None
