"""What was found of a copy, for people and as JSON."""

import json
import os

from reid_jax.errors import DataError


def shorten(text, root):
    """Paths relative to root."""
    return str(text).replace(root + os.sep, "")


def describe(result, show):
    """The result for people: a table, problems with the way out, notes."""
    lines = [f"{result['title']} in {result['root']}", *table(result), f"{result['files']} files"]
    for problem in result["problems"]:
        items = problem["items"]
        lines += ["", f"PROBLEM: {problem['message']}", *(f"    {item}" for item in items[:show])]
        if len(items) > show:
            lines.append(f"    ... and {len(items) - show} more (--show, --json)")
        lines.append(f"  {problem['advice']}")
    lines += [f"note: {note}" for note in result["notes"]]
    return "\n".join([*lines, "", verdict(result)])


def verdict(result):
    """The last line."""
    kinds = dict.fromkeys(p["kind"] for p in result["problems"])
    return f"problems: {', '.join(kinds)}" if kinds else "no problem found"


def table(result):
    """Rows of found and published counts."""
    unit = "tracklets" if result["kind"] == "video" else "images"
    counts, published = result["counts"], result["published"]
    lines = [f"{'':<18}{'found':>10}{'published':>12}"]
    for key in dict.fromkeys((*counts, *published)):
        label = key.replace("images", unit)
        lines.append(f"{label:<18}{counts.get(key, 0):>10}{published.get(key, '-'):>12}")
    for split in result["frames"]:
        if unit == "tracklets":
            lines.append(f"{split + ' frames':<18}{result['frames'][split]:>10}{'-':>12}")
        lines.append(f"{split + ' cameras':<18}{result['cameras'][split]:>10}{'-':>12}")
    return lines


def write(path, result):
    """Writes the dict as JSON; DataError when that cannot be done."""
    try:
        with open(path, "w") as f:
            json.dump(result, f, indent=1)
    except OSError as e:
        raise DataError(f"cannot write --json={path}: {e.strerror or e}") from e
