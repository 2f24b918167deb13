"""Which sets train and which are tested: the protocols of the literature, as rows of a table."""

import dataclasses
from typing import NamedTuple

from reid_jax.data.loaders import LAYOUTS
from reid_jax.errors import ConfigError

SHORT = {
    "market1501": "M",
    "dukemtmc": "D",
    "msmt17": "MS",
    "cuhk02": "C2",
    "cuhk03": "C3",
    "cuhk_sysu": "CS",
}
SYNTHETIC = ("synthetic", "synthetic2", "synthetic3", "synthetic4")


class Domain(NamedTuple):
    """A data set in one of its forms."""

    name: str
    variant: str = ""

    @classmethod
    def of(cls, text):
        """'cuhk03/labeled' -> Domain."""
        name, _, variant = text.partition("/")
        return cls(name, variant)

    @property
    def short(self):
        """As tables call it."""
        return SHORT.get(self.name, self.name)

    @property
    def label(self):
        """Name and form, also as a file is called."""
        return f"{self.name}-{self.variant}" if self.variant else self.name


@dataclasses.dataclass(frozen=True)
class Row:
    """One training and what it is tested on; train_on: as config.data.train_on."""

    name: str
    sources: tuple[Domain, ...]
    targets: tuple[Domain, ...]
    train_on: str = "train"
    without: tuple[str, ...] = ()  # sets of the protocol that are left out

    @property
    def trained_on(self):
        """'M + MS (all pictures), without CS', for the table."""
        text = " + ".join(d.short for d in self.sources)
        text += " (all pictures)" if self.train_on == "all" else ""
        lacks = ", ".join(SHORT.get(name, name) for name in self.without)
        return f"{text}, without {lacks}" if lacks else text


def leave_one_out(sources, targets, train_on="train", rows=None):
    """Rows that train on all sources but the tested one; sources, targets: Domains of the same sets."""
    names = [d.name for d in targets] if rows is None else rows
    of = {d.name: d for d in targets}
    return [Row(n, tuple(d for d in sources if d.name != n), (of[n],), train_on) for n in names]


def _choice_of_four(train_on):
    """Protocols 2 and 3: CUHK-SYSU trains always and is never tested."""
    variant = "no-val" if train_on == "train" else ""
    sources = tuple(map(Domain.of, ("market1501", "msmt17/" + variant, "cuhk_sysu", "cuhk03/labeled")))
    targets = tuple(map(Domain.of, ("cuhk03/labeled", "msmt17", "market1501")))
    return leave_one_out(sources, targets, train_on)


def _four(cuhk03):
    """M3L's four sets, CUHK03 training in the given form."""
    four = tuple(map(Domain, ("market1501", "dukemtmc", "cuhk03", "msmt17")))
    forms = {"cuhk03": cuhk03}
    sources = tuple(Domain(d.name, forms.get(d.name, "")) for d in four)
    return leave_one_out(sources, tuple(Domain(d.name, "detected" * (d.name == "cuhk03")) for d in four))


def _single():
    """One source: Market-1501 and DukeMTMC-reID to each other, MSMT17 (its training part, all) to both."""
    m, d, ms = (Domain(name) for name in ("market1501", "dukemtmc", "msmt17"))
    return [
        Row("market1501", (m,), (d,)),
        Row("dukemtmc", (d,), (m,)),
        Row("msmt17", (ms,), (m, d)),
        Row("msmt17-all", (ms,), (m, d), "all"),
    ]


_FIVE = ("market1501", "dukemtmc", "cuhk02", "cuhk03/detected", "cuhk_sysu")
_SMALL = ("viper", "prid", "grid", "ilids")
PROTOCOLS = {
    "1": [Row("small", tuple(map(Domain.of, _FIVE)), tuple(map(Domain.of, _SMALL)), "all")],
    "2": _choice_of_four("train"),
    "3": _choice_of_four("all"),
    "four": _four("classic-both"),
    "four-np": _four("detected"),
    "single": _single(),
    "synthetic": leave_one_out(*[tuple(map(Domain, SYNTHETIC))] * 2),
}

# (identities, images) of sources as published: {(set, form, train_on): counts}
COUNTS = {
    ("market1501", "", "train"): (751, 12936),
    ("market1501", "", "all"): (1501, 29419),
    ("dukemtmc", "", "train"): (702, 16522),
    ("dukemtmc", "", "all"): (1812, 36411),
    ("cuhk02", "", "all"): (1816, 7264),
    ("cuhk03", "detected", "train"): (767, 7365),
    ("cuhk03", "labeled", "train"): (767, 7368),
    ("cuhk03", "classic-both", "train"): (1367, 26263),
    ("cuhk03", "detected", "all"): (1467, 14097),
    ("cuhk03", "labeled", "all"): (1467, 14096),
    ("cuhk_sysu", "", "train"): (11934, 34574),
    ("cuhk_sysu", "", "all"): (11934, 34574),
    ("msmt17", "", "train"): (1041, 32621),
    ("msmt17", "no-val", "train"): (1041, 30248),
    ("msmt17", "", "all"): (4101, 126441),
}


def published(row):
    """[(ids, images) or None] of the sources of a Row, in order."""
    return [COUNTS.get((*domain, row.train_on)) for domain in row.sources]


def splits_of(domain, both_directions=False):
    """Numbers of the splits that a Domain is tested by: all of its small sets, else the first.

    VIPeR's odd splits search the other way round; they count where both_directions.
    """
    if domain.name not in LAYOUTS:
        return [0]
    count = LAYOUTS[domain.name].form(domain.variant).num_splits
    return list(range(0, count, 2 if domain.name == "viper" and not both_directions else 1))


def without(rows, names):
    """Rows without the sets `names`; ConfigError for one that no row has, or when no row is left."""
    known = {d.name for row in rows for d in (*row.sources, *row.targets)}
    if missing := sorted(set(names) - known):
        raise ConfigError(f"--without {missing[0]}: no row has it; there are {', '.join(sorted(known))}")
    remaining = []
    for row in rows:
        gone = tuple(d.name for d in (*row.sources, *row.targets) if d.name in names)
        sources, targets = (
            tuple(d for d in part if d.name not in names) for part in (row.sources, row.targets)
        )
        if sources and targets:
            remaining.append(dataclasses.replace(row, sources=sources, targets=targets, without=gone))
    if not remaining:
        raise ConfigError(f"--without {' '.join(names)} leaves no row to train and test")
    return remaining
