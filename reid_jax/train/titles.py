"""WORKDIR/titles.json: how a run's method, metrics and studies are called, so that no reader knows methods.

    {"method": title of the method or of its row of an ablation,
     "metrics": {metric of metrics.jsonl: title},
     "look": {map of Method.look: title}, in the order of the page
     "nets": {stage: [network, ...]},     the one that stands for the stage first
     "defaults": {...},                   the config's fields as the method has them by default, nested
     "sets": {stage: [set, ...]},         what each stage trains on, {} where all train on the same
     "study": {...}}                      STUDY, if the method has one

They come from the method's module: TITLE, METRICS, and, where it has them, `title(config)` (instead of
TITLE), LOOK and STUDY, what Method.study measures and how the report shows it:

    {"title": of the section, "{stage}" stands for the stage's name, "link": short, for the page's navigation,
     "lead": paragraph, "figures": {figure: (title, meaning)},
     "levels": {figure: other figure drawn as a dotted line in its chart},
     "arrays": {array or PREFIX/NAME: {...}}}

Arrays of a study say by their names what they are; what "arrays" says of them, all of it optional, in ():

    grid/NAME u8[R,C,H,W,3]                a picture, and earlier ones (title, lead, alt, alt_earlier)
    map/image u8[N,K,H,W,3] and            K pictures of N people, under each other their
    map/NAME f[N,K,h,w]                    heat maps ("map": title, lead, columns, rows {NAME: title},
                                           shares [NAME]: those from 0 to 1),
    rows/NAME f[h], columns/NAME f[w]      the centres of their cells in pixels (models/cells.py; else even)
    band/NAME/x f[L], band/NAME/y f[L,N]   median and outer tenths of y against x (title, xlabel)
    hist/NAME/LABEL f[M]                   shares of values, a curve for each label (title, xlabel)
    scatter/NAME/points f[P,D] and         t-SNE of rows, once for each array of values that
    scatter/NAME/LABEL f[P]                colours them (title with {}, the label's; labels {LABEL: title})
"""

import json
import os

from reid_jax import methods
from reid_jax.train.checkpoint import write_json

FILE = "titles.json"


def write(workdir, config, nets):
    """Writes WORKDIR/titles.json.

    config: the whole run's. nets: {stage: Method.nets}; stages that the file already names are kept.
    """
    module, title = methods.find(config.method), getattr(methods.find(config.method), "title", None)
    tree = {
        "method": title(config) if title else module.TITLE,
        "metrics": dict(module.METRICS),
        "look": dict(getattr(module, "LOOK", {})),
        "nets": read(workdir).get("nets", {}) | {stage: list(names) for stage, names in nets.items()},
        "defaults": methods.defaults(config.method),
        "sets": {stage: list(names) for stage, names in methods.sets(config).items()},
    }
    if hasattr(module, "STUDY"):
        tree["study"] = module.STUDY
    write_json(os.path.join(workdir, FILE), tree)


def read(workdir):
    """The content of titles.json; {} when there is none or it cannot be read."""
    return _json(os.path.join(workdir, FILE))


def networks(workdir, stage):
    """Names of a stage's networks, the one that stands for it first; of older runs only that one, or ()."""
    nets = read(workdir).get("nets")
    names = nets.get(stage) if isinstance(nets, dict) else None
    if isinstance(names, list) and names:
        return tuple(map(str, names))
    for folder in (os.path.join("eval", stage), "eval"):
        net = _json(os.path.join(workdir, folder, "final.json")).get("net")
        if isinstance(net, str):
            return (net,)
    return ()


def _json(path):
    """The JSON object in a file; {} when there is none or it cannot be read."""
    try:
        with open(path, encoding="utf-8") as f:
            tree = json.load(f)
    except (OSError, ValueError, RecursionError):
        return {}
    return tree if isinstance(tree, dict) else {}
