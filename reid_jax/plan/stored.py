"""Plans as files: what `reid_jax plan --json` wrote, for the benchmarks that stand on it."""

import json
import math

from reid_jax.errors import ConfigError


def read(path):
    """{"place", "devices", "programs": its steps}; ConfigError for a file that is no plan or has no step."""
    try:
        with open(path, encoding="utf-8") as f:
            plan = json.load(f)
        steps = [step(p) for p in plan["programs"] if p["trains"]]
        found = {"place": str(plan["place"]), "devices": int(plan["devices"]), "programs": steps}
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise ConfigError(f"--plan={path} is no file of reid_jax plan --json: {error}") from error
    if not steps:
        raise ConfigError(f"--plan={path} has no step")
    return found


def step(program):
    """What benchmarks need of a program's figures; ValueError for such as no program has."""
    collectives = [
        {"kind": str(c["kind"]), "calls": int(c["calls"]), "bytes": float(c["bytes"])}
        for c in program["collectives"]
    ]
    flops, moved, rows = float(program["flops"]), float(program["moved"]), int(program["rows"])
    if not (0 < flops < math.inf and 0 < moved < math.inf and rows > 0):
        raise ValueError(f"{flops} FLOPs, {moved} bytes and {rows} rows of {program['name']}")
    return {
        "name": str(program["name"]),
        "rows": rows,
        "flops": flops,
        "moved": moved,
        "collectives": collectives,
    }
