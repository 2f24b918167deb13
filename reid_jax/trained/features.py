"""Features of a trained run on other data sets, stored beside a note of whose they are."""

import json
import os
import sys

from reid_jax import tables
from reid_jax.eval import store


def embedded(run, target, folder, args, workdir):
    """FeatureSet of a target, from WORKDIR/LABEL/TARGET.npz if that is of this checkpoint."""
    path = os.path.join(folder, f"{target.label}.npz")
    origin = {"run": os.path.abspath(workdir), "step": run.step, "net": args.net}
    origin |= {"root": os.path.abspath(target.root), "images": sum(map(len, target.splits.values()))}
    origin |= {"on_broken": args.on_broken}
    note = path[:-4] + ".json"
    if os.path.exists(path) and read_note(note) == origin:
        return store.load(path)
    sys.stderr.write(f"{os.path.basename(folder)} on {target.label}\n")
    features = run.features(target.splits, target.root, args.net, True, args.on_broken, target.name)
    store.save(path, features)
    tables.write_text(note, json.dumps(origin))
    return features


def read_note(path):
    """What was written beside stored features, None when nothing readable was."""
    try:
        with open(path) as f:
            return json.load(f)
    except (OSError, ValueError):
        return None
