"""`--dry-run`: what a command would do and what it lacks for that; nothing is drawn, trained or written.

A command gathers `Need`s and ends with `tell`, whose exit code is 0 where everything is there and MISSING
where something is not; a mistake in the command itself is a ConfigError, as ever.
"""

import dataclasses
import os
import textwrap
from pathlib import Path
from typing import NamedTuple

from reid_jax import methods, models, places
from reid_jax.data import datasets, folders, test_sets, union
from reid_jax.data.loaders import LAYOUTS
from reid_jax.data.loaders.common import Options, advice
from reid_jax.errors import MISSING, CheckpointError, ConfigError, DataError, WeightsError
from reid_jax.train import checkpoint, stages, warm

TABLES = (
    "points",
    "attributes",
    "styles",
    "generated",
    "csv",
)  # fields of config.data that name a file or folder


class Need(NamedTuple):
    """One thing that a command needs."""

    what: str  # "set market1501", "weights", "run runs/a"
    text: str  # what there is, or what is wrong and the way out
    missing: bool = False


def look(what, function):
    """The Need whose text function() gives, or its DataError, WeightsError or CheckpointError."""
    try:
        return Need(what, function())
    except (DataError, WeightsError, CheckpointError) as error:
        return Need(what, str(error), True)


def tell(would, needs):
    """Prints what a command would do (lines) and what is there or missing; returns the exit code."""
    print("\n".join(["would " + would[0], *(f"  {line}" for line in would[1:])]))
    needs = list(dict.fromkeys(needs))
    for need in sorted(needs, key=lambda n: n.missing):
        first, *more = need.text.splitlines()
        print(f"{need.what}: {'MISSING: ' if need.missing else ''}{first}")
        print(textwrap.indent("\n".join(more), "    "), end="\n" * bool(more))
    lacking = [need.what for need in needs if need.missing]
    print(f"missing: {', '.join(lacking)}" if lacking else "everything is there")
    return MISSING if lacking else 0


# ---- what would run
def trainings(rows, seeds, folder_of):
    """Lines on runs to train; rows: {label: (path, config)}, folder_of(label, seed): the workdir."""
    runs = [folder_of(label, seed) for label in rows for seed in seeds]
    done = sum((Path(run) / "summary.json").exists() for run in runs)
    count = f"{len(rows)} row{'s' * (len(rows) > 1)} x {len(seeds)} seed{'s' * (len(seeds) > 1)}"
    head = f"train {count} = {len(runs)} run{'s' * (len(runs) > 1)}, {done} of them finished"
    lines = [f"{label}: {path}, {length(config)}" for label, (path, config) in rows.items()]
    return [head, *lines, f"into {', '.join(runs[:2])}{', ...' if runs[2:] else ''}"]


def length(config):
    """'teacher 60 epochs, gan 2700 steps; batches of 16 x 4': how long a run of a config is."""
    names = stages.to_train(config)
    lengths = [
        f"{name} {stage_length(config, name)}" if names[1:] else stage_length(config, name) for name in names
    ]
    return f"{', '.join(lengths)}; batches of {config.data.ids} x {config.data.instances}"


def stage_length(config, name):
    """'240 epochs', '1200 steps' or '40 rounds' of a stage."""
    train = stages.settings(config, name).train
    rounds = 0 if methods.find(config.method).LABELS == "all" else rounds_of(config, name)
    lengths = ((rounds, "rounds"), (train.steps, "steps"), (train.epochs, "epochs"))
    return next(f"{count} {unit}" for count, unit in lengths if count)


def rounds_of(config, name):
    """Rounds of labelling and training of a stage, of a method that does not read all identities."""
    domains = (50,) * max(2, config.data.name.count("+") + 1)  # made up, as the people
    info = methods.Info(sum(domains), 6, num_images=1000, domains=domains)
    return stages.build(config, name, info)[1].rounds


# ---- what a run of a config needs
def of_config(config):
    """[Need] of training by a config: its sets, the files beside them, and where it starts from."""
    return [*of_sets(config), *of_start(config)]


def of_sets(config):
    """[Need] of the sets that train and are tested, and of files that belong to them."""
    data, labels = config.data, methods.find(config.method).LABELS
    if data.source == "tfds":
        sets = [look(f"set {data.name}, built", lambda: counted(datasets.load_built(data, labels)))]
    else:
        names = data.name.split("+")
        roots = union.per_set(data.root, len(names), ",", "root")
        variants = union.per_set(data.variant, len(names), "+", "variant")
        hidden = [labels != "all" or name == data.target for name in names]
        sets = [of_set(*each, data) for each in zip(names, roots, variants, hidden, strict=True)]
    files = [getattr(data, field) for field in TABLES]
    files = [(f, path) for f, path in zip(TABLES, files, strict=True) if path not in ("", "true")]
    also = filter(None, (text.strip() for text in config.eval.also.split(",")))
    return [*sets, *(of_file(f"config.data.{f}", path) for f, path in files), *map(of_test, also)]


def of_set(name, root, variant="", unlabelled=False, data=None):
    """Need of a set by name; unlabelled: whether unknown people may train, data: the config's section."""
    if datasets.SYNTHETIC.fullmatch(name):
        return Need(f"set {name}", "drawn by the run itself")
    if name not in LAYOUTS:
        raise ConfigError(folders.unknown_name(name))

    def there():
        if not root:
            raise DataError(f"where is {LAYOUTS[name].title}? Set --config.data.root=FOLDER")
        options = datasets.reader_options(data) if data else Options()
        split = options.split if LAYOUTS[name].form(variant).num_splits > 1 else 0
        options = dataclasses.replace(options, variant=variant, split=split)
        return counted(folders.load_folder(name, root, options, unlabelled=unlabelled))

    return with_source(look(f"set {name}", there), name)


def with_source(need, name):
    """The Need of a missing set with its layout, whom to ask for it and under which terms."""
    if not need.missing or name not in LAYOUTS:
        return need
    layout = LAYOUTS[name]
    text = [need.text, *([] if layout.source in need.text else [advice(layout)])]
    text += [f"Terms: {layout.terms}"] if layout.terms else []
    return need._replace(text="\n".join([*text, f"python -m reid_jax data list {name} says more"]))


def counted(dataset):
    """What a Dataset holds, in a line."""
    counts = f"{dataset.num_train_pids} identities, {len(dataset.train)} in train"
    return f"{dataset.root}: {counts}, {len(dataset.query)} queries, {len(dataset.gallery)} in the gallery"


def of_test(item):
    """Need of a set of config.eval.also."""
    if datasets.SYNTHETIC.fullmatch(item.rpartition("=")[2]):
        return Need(f"test on {item}", "drawn by the run itself")
    name = item.rpartition("=")[2].partition(":")[0].partition("/")[0]

    def there():
        _, sets = test_sets.read(item)
        return f"{sets[0].root}: {len(sets)} split{'s' * (len(sets) > 1)}, {len(sets[0].query)} queries"

    return with_source(look(f"test on {item}", there), name)


def of_source(text, splits=("query", "gallery")):
    """Need of a set or folder as `cross` and `embed` name them, [LABEL=]NAME:FOLDER."""

    def there():
        source = datasets.open_source(text, splits)
        counts = ", ".join(f"{len(records)} {split}" for split, records in source.splits.items())
        return f"{source.root}: {counts}"

    return with_source(look(f"set {text}", there), text.rpartition("=")[2].partition(":")[0])


def of_start(config):
    """[Need] of what a run starts from: weights or other runs."""
    init = config.init
    needs = [of_run(init.run)] if init.run else [of_weights(init.weights, config.model)]
    needs += [of_run(folder) for folder in stages.elsewhere(config).values()]
    compared = config.report.baseline if config.report.enabled else ""
    return [*needs, *([of_run(compared)] if compared else [])]


def of_weights(text, model):
    """Need of config.init.weights; without them what training starts from."""
    if not text:
        return Need("weights", warm.from_nothing(model) or "none asked for: training starts from random ones")

    def there():
        path, _ = warm.split_key(
            os.path.expanduser(warm.installed(places.local(text, "config.init.weights")))
        )
        if not os.path.isfile(path):
            name, whose = models.published().get(model.backbone, ("", ""))
            source = f"ImageNet's for {model.backbone} are {whose}'s {name}" if name else "give another file"
            raise WeightsError(f"{path} is not there; {source} (--config.init.weights=FILE)")
        return path

    return look("weights", there)


def of_run(workdir, finished=True):
    """Need of a finished run, or of one that was begun."""
    workdir = places.local(workdir, "a run")

    def there():
        config = checkpoint.read_config(workdir) if os.path.isdir(workdir) else None
        ended = os.path.exists(os.path.join(workdir, "summary.json"))
        if config is None or (finished and not ended):
            state = "is not there" if config is None else "is not finished"
            raise DataError(f"{workdir} {state}: train it first (its own command has --dry-run too)")
        return f"{'finished' if ended else 'begun'}, {config['method']} on {config['data']['name']}"

    return look(f"run {workdir}", there)


def of_file(what, path):
    """Need of a file or folder."""

    def there():
        if not os.path.exists(places.local(path, what)):
            raise DataError(f"{path} is not there")
        return path

    return look(what, there)
