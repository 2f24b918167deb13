"""The sets of a row on the disk: found by name, opened, counted and checked before anything trains."""

import copy
import os
from typing import NamedTuple

from reid_jax import places
from reid_jax.data import datasets, union
from reid_jax.data.loaders import LAYOUTS
from reid_jax.data.loaders.common import Options
from reid_jax.dg import protocols
from reid_jax.errors import ConfigError, DataError


class Where(NamedTuple):
    """Where sets lie and how splits are drawn."""

    root: str  # the folder that holds them
    at: dict  # {set: a folder of its own}
    data: object  # the config's section, for synthetic sets
    drawn: str  # folder for synthetic sets, one of each seed in it
    split_seed: int = 0

    def folder(self, name):
        """Folder for the loader of a set: its own or the parent."""
        folder = self.at.get(name) or self.root
        if not folder:
            raise DataError(f"where is {LAYOUTS[name].title}? Give --root, the folder that holds the sets")
        return places.local(folder, "--root")


def is_synthetic(name):
    """Whether a set is one of the drawn ones."""
    return bool(datasets.SYNTHETIC.fullmatch(name))


def check_names(rows):
    """ConfigError for sets that are not known or cannot be joined; DataError for ones that share people."""
    for row in rows:
        for domain in (*row.sources, *row.targets):
            if not is_synthetic(domain.name) and domain.name not in LAYOUTS:
                known = ", ".join(n for n in LAYOUTS if LAYOUTS[n].kind == "image")
                raise ConfigError(f"no data set is called {domain.name!r}; there are {known}, synthetic ...")
        names = [d.name for d in row.sources]
        if len({is_synthetic(n) for n in (*names, *(d.name for d in row.targets))}) > 1:
            raise ConfigError(f"row {row.name}: synthetic sets go with each other only")
        if is_synthetic(names[0]) and len(names) < 2:
            raise ConfigError(f"row {row.name}: of synthetic sets two or more train; name three or more")
        for target in row.targets:
            if target.name in names:
                raise ConfigError(f"row {row.name}: {target.name} trains and is tested; leave it out of one")
            union.check_overlap_with_test(names, target.name)


def synthetic_data(where, seed):
    """The config's data section for the drawn sets of a seed; every set has a style of its own."""
    data = copy.deepcopy(where.data)
    data.root = os.path.join(where.drawn, f"seed-{seed}")
    data.synthetic.seed, data.synthetic.style = seed, max(data.synthetic.style, 1)
    return data


def source(domain, where, train_on, seed=0):
    """Dataset of a source, as it trains."""
    if is_synthetic(domain.name):
        data = synthetic_data(where, seed)
        data.train_on = train_on
        return datasets.load_synthetic(data, None, domain.name)
    options = Options(domain.variant, seed=where.split_seed, everything=train_on == "all")
    return datasets.load_folder(domain.name, where.folder(domain.name), options, check_counts=False)


def target(domain, where, split=0, seed=0):
    """Dataset of one split of a target."""
    if is_synthetic(domain.name):
        return datasets.load_synthetic(synthetic_data(where, seed), None, domain.name)
    options = Options(domain.variant, split, where.split_seed)
    return datasets.load_folder(
        domain.name, where.folder(domain.name), options, check_counts=False, needed=("query", "gallery")
    )


def flags(row, where, seed):
    """Flags of reid_jax.main that make a run train on the sources of a Row, and see nothing else."""
    names = [d.name for d in row.sources]
    variants = [d.variant for d in row.sources]
    if is_synthetic(names[0]):
        data = synthetic_data(where, seed)
        roots = [data.root]
        extra = [f"--config.data.synthetic.{k}={data.synthetic[k]}" for k in ("seed", "style")]
    else:
        roots = [source(d, where, row.train_on, seed).root for d in row.sources]
        extra = [f"--config.data.split_seed={where.split_seed}"]
    extra += ["--config.data.domains=set"] if len(names) > 1 else []
    return [
        f"--config.data.name={'+'.join(names)}",
        f"--config.data.root={','.join(roots)}",
        f"--config.data.variant={'+'.join(variants) if any(variants) else ''}",
        f"--config.data.train_on={row.train_on}",
        *("--config.data.split=0", "--config.data.test=", "--config.data.target=", "--config.eval.also="),
        *("--config.train.eval_every=0", "--config.report.enabled=False"),
        *extra,
    ]


# ---- what there is, before anything trains
class Counted(NamedTuple):
    """A set of a row: counts, or why it cannot be used."""

    row: str
    domain: protocols.Domain
    use: str  # source | target
    text: str  # "751 identities, 12936 pictures", or what is wrong
    numbers: tuple = ()  # of a source: (identities, pictures)
    missing: bool = False
    differs: str = ""  # from the published counts


def survey(rows, where, both_directions=False, seed=0, targets=True):
    """[Counted] of all sets of the rows, also of those that are missing; targets: whether to look there."""
    counted, cache = [], {}
    for row in rows:
        for domain, published in zip(row.sources, protocols.published(row), strict=True):
            key = domain, row.train_on
            if key not in cache:
                cache[key] = counted_source(row, domain, where, published, seed)
            counted.append(cache[key]._replace(row=row.name))
        for domain in row.targets if targets else ():
            if domain not in cache:
                cache[domain] = counted_target(row, domain, where, both_directions, seed)
            counted.append(cache[domain]._replace(row=row.name))
    return counted


def counted_source(row, domain, where, published, seed):
    """Counted of a source."""
    try:
        dataset = source(domain, where, row.train_on, seed)
    except DataError as error:
        return Counted(row.name, domain, "source", str(error), missing=True)
    numbers = dataset.num_train_pids, len(dataset.train)
    differs = ""
    if published and numbers != published:
        differs = f"{published[0]} identities, {published[1]} pictures are published"
    return Counted(row.name, domain, "source", in_words(*numbers), numbers, differs=differs)


def counted_target(row, domain, where, both_directions, seed):
    """Counted of a target."""
    numbers = protocols.splits_of(domain, both_directions)
    try:
        dataset = target(domain, where, numbers[0], seed)
    except DataError as error:
        return Counted(row.name, domain, "target", str(error), missing=True)
    text = f"{len(dataset.query)} queries, {len(dataset.gallery)} in the gallery"
    text += f", {len(numbers)} splits" if len(numbers) > 1 else ""
    return Counted(row.name, domain, "target", text)


def in_words(ids, images):
    """'751 identities, 12936 pictures'"""
    return f"{ids} identities, {images} pictures"


def listing(counted):
    """Lines that tell what was found, row by row."""
    lines = []
    for row in dict.fromkeys(c.row for c in counted):
        lines.append(f"row {row}")
        of_row = [c for c in counted if c.row == row]
        for c in of_row:
            text = f"MISSING: {c.text.splitlines()[0]}" if c.missing else c.text
            lines.append(f"  {c.use} {c.domain.label}: {text}{f' ({c.differs})' if c.differs else ''}")
        numbers = [c.numbers for c in of_row if c.use == "source"]
        if len(numbers) > 1 and all(numbers):
            lines.append(f"  sources together: {in_words(*map(sum, zip(*numbers, strict=True)))}")
    return "\n".join(lines)


def check_there(counted):
    """DataError that names every set that is missing, its layout and whom to ask."""
    missing = {c.domain.name: c.text for c in counted if c.missing}
    if missing:
        text = "\n".join(f"{name}: {why}" for name, why in missing.items())
        raise DataError(
            f"{len(missing)} sets cannot be used; put them below --root, name folders with --at NAME=FOLDER, "
            f"or leave one out with --without NAME, which the table then says:\n{text}"
        )
