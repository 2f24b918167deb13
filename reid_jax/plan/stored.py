"""Plans as files: what `reid_jax plan --json` wrote, for the benchmarks that stand on it."""

import json

from reid_jax.errors import ConfigError


def read(path):
    """{"place", "devices", "programs": steps alone}; ConfigError for a file that is no plan or has none."""
    try:
        with open(path, encoding="utf-8") as f:
            plan = json.load(f)
        steps = [p for p in plan["programs"] if p["trains"]]
        found = {"place": plan["place"], "devices": int(plan["devices"]), "programs": steps}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"--plan={path} is no file of reid_jax plan --json: {error}") from error
    if not steps:
        raise ConfigError(f"--plan={path} has no step")
    return found
