"""Background swap: the bodies of test queries on another camera's background, of drawn sets of any method.

A feature that is free of the camera finds the person all the same, and tells a probe neither camera. A linear
probe learns cameras on half of the test people and names them for the other half's queries. Figures, percent:

    swap/rank1_before, swap/mAP_before   of the chosen queries as they are, one of each person
    swap/rank1, swap/mAP                 of the same bodies on the background of another camera
    swap/probe_before                    the probe names the camera of the queries as they are
    swap/probe_body                      and, after the swap, the camera that took the body
    swap/probe_background                or that of the background
"""

import dataclasses
import os
import tempfile

import numpy as np
from PIL import Image

from reid_jax import methods
from reid_jax.data.synthetic import bodies
from reid_jax.errors import ConfigError, DataError
from reid_jax.eval import probe, ranking
from reid_jax.train import embedding, evaluate


def check(config, dataset):
    """ConfigError when config.eval.swap asks for what this data set does not allow."""
    if not config.eval.swap:
        return
    hint = "set config.eval.swap to 0"
    if config.eval.swap < 0:
        raise ConfigError(f"config.eval.swap is {config.eval.swap}; it is a number of people, 0 for none")
    try:
        bodies.Bodies(dataset.root)
    except ConfigError as e:
        raise ConfigError(f"config.eval.swap needs a drawn set: {e}; {hint}") from e
    if not evaluate.split_records(config, dataset)[0]:
        raise ConfigError(f"config.eval.swap needs people to test on, and {dataset.name} has none; {hint}")
    protocol = evaluate.choose_protocol(config, dataset.protocol)
    if protocol not in ("market", "all-pairs"):
        raise ConfigError(f"config.eval.swap does not go with config.eval.protocol {protocol!r}; {hint}")


def measure(config, method, state, devices, dataset, features):
    """The figures; features: FeatureSet of the test's query and gallery by the method's first network.

    state: as the devices' compiled step returns it.
    """
    records, _ = evaluate.split_records(config, dataset)
    rows = chosen(records, config.eval.swap)
    cameras = backgrounds([records[i].camid for i in rows], 1 + int(features.camid.max()))
    with tempfile.TemporaryDirectory() as folder:
        known = bodies.Bodies(dataset.root)
        pairs = zip(rows, cameras, strict=True)
        swapped = [drawn(known, records[i], camera, dataset.root, folder) for i, camera in pairs]
        net = methods.choose_net(method, config.eval.net)[0]  # that stands for the run
        embedder = embedding.Embedder(method, net, devices)
        after = embedding.embed_records(config, embedder, devices.local_state(state), swapped)
    return figures(config, features, np.array(rows), after, np.array(cameras))


def chosen(records, people):
    """Rows of one query of each of `people` people: the k-th person's k-th one, cyclic: cameras mix."""
    of_pid = {}
    for row, r in enumerate(records):
        of_pid.setdefault(r.pid, []).append(row)
    return [rows[k % len(rows)] for k, rows in enumerate(of_pid.values())][:people]


def backgrounds(camids, cameras):
    """Another camera for each of a list of cameras, all others in turn."""
    return [(c + 1 + k % (cameras - 1)) % cameras for k, c in enumerate(camids)]


def drawn(known, record, camera, root, folder):
    """The Record of a record's body on another camera's background, written below `folder`."""
    paths = []
    for path in record.frames or (record.path,):
        inside = os.path.relpath(path, root).replace(os.sep, "/")
        paths.append(os.path.join(folder, inside.replace("/", "-") + ".png"))
        Image.fromarray(known.swapped(inside, camera)).save(paths[-1])
    return dataclasses.replace(record, path=paths[0], frames=tuple(paths) if record.frames else ())


def figures(config, features, rows, after, cameras):
    """The figures of the features `after` f[N,D] that the queries `rows` i[N] have before `cameras` i[N]."""
    query, gallery = features.of("query"), features.of("gallery")
    rule = dict(distance=config.eval.distance)
    rule["camera_filter"] = evaluate.choose_protocol(config, "market") != "all-pairs"
    labels = query.pid[rows], gallery.pid, query.camid[rows], gallery.camid
    values = {}
    for name, feature in (("_before", query.feature[rows]), ("", after)):
        result = ranking.rank(feature, gallery.feature, *labels, **rule).figures()
        values |= {f"swap/{k}{name}": result[k] for k in ("rank1", "mAP")}
    people = features.pid > 0
    try:
        named = probe.Named(features.feature[people], features.camid[people], features.pid[people])
    except DataError:
        return values
    own_camera, asked = query.camid[rows], named.unseen(query.pid[rows])
    if not asked.any():
        return values
    before, now = (named(f[asked]) for f in (query.feature[rows], after))
    shares = {
        "before": before == own_camera[asked],
        "body": now == own_camera[asked],
        "background": now == cameras[asked],
    }
    return values | {f"swap/probe_{k}": 100 * float(v.mean()) for k, v in shares.items()}
