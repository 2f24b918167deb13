"""What may be wrong with a copy of a data set, and what to do about it."""

from typing import NamedTuple

ADVICE = {
    "count": "the copy is incomplete, or another version: unpack the archive again, or see --variant",
    "name": "they are skipped: remove what does not belong to the set, unpack misnamed files again",
    "unreadable": "copy them again or remove them (config.data.on_broken=skip trains and tests without them)",
    "overlap": "people would be tested on whom the network has seen: put the original split back (harmless "
    "only where a set numbers its test identities anew)",
    "match": "a run would end at its first evaluation, and is not started",
    "link": "copy or mount what they lead to, or remove them; they are left out",
    "duplicate": "the same file under two labels: compare with the original archive, remove the wrong one",
}


class Problem(NamedTuple):
    """Something wrong: a key of ADVICE, one line, the paths (or ids) it concerns."""

    kind: str
    message: str
    items: list
