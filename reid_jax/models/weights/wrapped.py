"""The network inside a state dictionary: what trainers and repositories wrap around it, taken away.

A LightningModule keeps its network as an attribute of any name, a teacher stands beside its student, a trunk
is called encoder, a net adapted to another domain has a norm for each. `recognise` finds the trunk by the
names inside it and gives all keys as a layout of `names` has them; no key is lost on the way.
"""

import re
from collections import Counter
from typing import NamedTuple

from reid_jax import models
from reid_jax.errors import WeightsError
from reid_jax.models.weights import names

_TESTED = ("mean_net",)  # of several networks the one that its own repository tests
_ATTRIBUTES = ("base", "backbone", "model")  # names of a trunk that layouts know
_NAMED = re.compile(r"conv1|bn1|layer\d(_\d+)?")  # the first module of a key inside a trunk
_HEADS = {m.split(".")[0] for frame in names.LAYOUTS.values() for k in frame if k != "base" for m in frame[k]}
_HEADS -= {"", "fc"}  # a trunk has an fc too, ImageNet's


class Recognised(NamedTuple):
    """A state dictionary in the names of a layout."""

    entries: dict  # {key in the layout: array}
    origin: dict  # {key in the layout: key in the file, as `names.strip` leaves it}
    beside: list  # keys in the file that lie outside the network
    layout: str
    notes: list  # sentences on what was chosen


def recognise(entries, layout=""):
    """Recognised of {key: array} of a file.

    layout: one of names.layouts(); '' tells it from the keys. Raises WeightsError when a key is there twice.
    """
    stripped = _stripped(entries)
    layouts = models.keys()
    if layout in layouts or (not layout and names.guess(stripped) in layouts):  # which know their fronts
        return plain(entries, layout)
    if any(re.match(r"(params|batch_stats|E_id|E_con)\.", key) for key in stripped):
        return plain(entries, layout)
    front, numbered, notes = _trunk(stripped)
    origin = _renamed(stripped, front, numbered, "" in names.LAYOUTS.get(layout, {}).get("base", ()))
    origin, domain = _of_one_domain(origin)
    renamed = {key: stripped[there] for key, there in origin.items()}
    beside = sorted(set(stripped) - set(origin.values()))
    return Recognised(renamed, origin, beside, layout or names.guess(renamed), notes + domain)


def plain(entries, layout=""):
    """The same where nothing is wrapped around the network: all keys as they are."""
    stripped = _stripped(entries)
    return Recognised(stripped, {k: k for k in stripped}, [], layout or names.guess(stripped), [])


def _stripped(entries):
    stripped = {}
    for key, value in entries.items():
        if names.strip(key) in stripped:
            raise WeightsError(
                f"has {names.strip(key)} twice, with and without 'module.' or '_orig_mod.' in front"
            )
        stripped[names.strip(key)] = value
    return stripped


def _trunk(entries):
    """(what stands before the trunk's modules, whether they are numbered, notes); ((), False, []) without."""
    places = [place for key in entries if (place := _place(key.split(".")))]
    counts = Counter(front for front, _, _ in places)
    blocks = {front for front, numbered, block in places if block or not numbered}
    most = max((counts[front] for front in blocks), default=0)
    fronts = [front for front in counts if front in blocks and counts[front] == most]
    if not fronts:
        return (), False, []
    chosen = next((f for f in fronts if set(f) & set(_TESTED)), fronts[0])
    others = [".".join(f) for f in fronts if f != chosen]
    text = f"several networks: took the one under {'.'.join(chosen)!r}, not {', '.join(map(repr, others))}"
    numbered = (chosen, False) not in {(front, numbered) for front, numbered, _ in places}
    return chosen, numbered, [f"{text}; choose with key"] if others else []


def _place(parts):
    """(front, whether numbered, whether of a block) where a key enters a trunk, None if it does not."""
    for i, part in enumerate(parts[:-1]):
        if _NAMED.fullmatch(part):
            return tuple(parts[:i]), False, part.startswith("layer")
        if re.fullmatch(r"\d", part):
            block = parts[i + 1].isdigit() and i + 3 < len(parts)
            if block or i + 2 == len(parts):
                return tuple(parts[:i]), True, block
    return None


def _renamed(entries, front, numbered, bare):
    """{key: key in the file} with the trunk called as in a layout and nothing before the network.

    bare: whether the layout that was asked for has no name for the trunk.
    """
    keys = {key: tuple(key.split(".")) for key in entries}
    depth = len(front)
    below = {parts[depth] for parts in keys.values() if parts[:depth] == front and len(parts) > depth}
    # whether the trunk's modules are the network's own
    trunk_is_net = not numbered and (not front or bare or below & _HEADS)
    outer = front if trunk_is_net else front[:-1]
    known = bool(front) and not numbered and front[-1] in _ATTRIBUTES
    attribute = front[-1] if known else "base"
    trunk = {
        k
        for k, parts in keys.items()
        if not trunk_is_net and parts[:depth] == front and (front or _place(parts))
    }
    origin = {f"{attribute}.{'.'.join(keys[key][depth:])}": key for key in entries if key in trunk}
    for key, parts in keys.items():
        if key not in trunk and parts[: len(outer)] == outer:
            origin.setdefault(".".join(parts[len(outer) :]), key)
    return origin


def _of_one_domain(origin):
    """(the same with norms of several domains called as plain ones, notes): the target's, the last, is used.

    SpCL calls them BN_S and BN_T, OpenUnReID dsbn.0, dsbn.1, ...
    """
    numbers = {int(m[1]) for key in origin if (m := re.search(r"\.dsbn\.(\d+)\.", key))}
    last = f"dsbn.{max(numbers)}" if numbers else "BN_T"
    inside = f".{last}."
    if not any(inside in key for key in origin):
        return origin, []
    renamed = {key.replace(inside, "."): there for key, there in origin.items()}
    if len(renamed) < len(origin):
        return origin, []
    return renamed, [f"norms of several domains: those of the target, {last}, are used"]
