"""Metrics on disk: metrics.jsonl always, TensorBoard when tensorboardX is installed."""

import contextlib
import json
import os


class Silent:
    """What processes that are not the first have for a Writer."""

    lines = 0

    def write(self, kind, step, epoch, seconds, values):
        """Writes nothing."""

    def close(self):
        """Nothing is open."""


class Writer:
    """Appends metric lines to WORKDIR/metrics.jsonl; `lines` counts them.

    meta: of the checkpoint that the run goes on from ({"step": 0} for none). Lines of this stage that were
    written after it are cut off (its steps are now run again), so a resumed run leaves the same file as an
    unbroken one, but for the seconds. stage: named in every line of a run with several stages; lines of the
    others stay.
    """

    def __init__(self, workdir, stage="", meta=None):
        meta = meta or {"step": 0}
        self.path = os.path.join(workdir, "metrics.jsonl")
        self.stage = {"stage": stage} if stage else {}
        lines = [x for i, x in enumerate(read(self.path)) if x.get("stage", "") != stage or older(x, i, meta)]
        self.lines, whole = len(lines), f"{self.path}.part"
        with open(whole, "w") as f:
            f.writelines(json.dumps(x) + "\n" for x in lines)
        os.replace(whole, self.path)
        self.file = open(self.path, "a")
        self.board = _board(os.path.join(workdir, "tensorboard", stage), meta["step"])

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
            self.lines += 1
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


def older(line, number, meta):
    """Whether a line, the number-th of the file, was there when the checkpoint of meta was saved."""
    return number < meta["lines"] if "lines" in meta else 0 < line["step"] <= meta["step"]


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
