"""A gallery's search, writing, reading, index and page, and a model, each beside the bare work that it is.

Features are seeded: people as unit vectors with noise around them. Routes take turns; the best round of each
counts, of the page the 95th percentile. Everything runs in this process.
"""

import contextlib
import http.client
import io
import os
import sqlite3
import tempfile
import threading
import time

import numpy as np
from PIL import Image

from reid_jax import cli
from reid_jax.serve import ann, database, search
from reid_jax.serve.gallery import BATCH, Gallery

PARTS = ("search", "store", "index", "page", "model")
TARGETS = {
    "search_1": 1.2, "search_200": 1.3, "add": 2.0, "load": 1.5, "index_speedup": 10.0, "page_p95": 2.0,
    "embed_arrays": 0.95, "embed_files": 0.85, "onnx_torch_nchw": 1.0,
}  # fmt: skip
AT_LEAST = ("index_speedup", "embed_arrays", "embed_files", "onnx_torch_nchw")


def main(argv):
    """Runs the parts with these command line arguments; prints a table, returns the figures."""
    args = parse(argv)
    result = dict(vars(args))
    features = made(args.rows, args.dim)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        for part in args.parts:
            figures = MEASURES[part](features, args, folder)
            print_figures(part, figures)
            result |= figures
    return result


def parse(argv):
    """Command line -> namespace."""
    parser = cli.parser("benchmarks serve", __doc__)
    parser.add_argument("--parts", type=lambda t: t.split(","), default=list(PARTS[:2]), help=",".join(PARTS))
    parser.add_argument("--rows", type=cli.whole(1), default=100_000)
    parser.add_argument("--dim", type=cli.whole(1), default=512)
    parser.add_argument("--rounds", type=cli.whole(1), default=5)
    parser.add_argument("--requests", type=cli.whole(1), default=100, help="of the page")
    text = "keep the index here for the next time; of a million rows it takes many minutes to build"
    parser.add_argument("--index", metavar="FILE", default="", help=text)
    parser.add_argument(
        "--folder", default=None, help="for the gallery (default: the system's for temporary files)"
    )
    parser.add_argument("--backbone", default="resnet50", help="of the model (default: resnet50)")
    parser.add_argument("--picture", type=_size, default=(256, 128), help="HxW (default: 256x128)")
    parser.add_argument("--pictures", type=cli.whole(1), default=128, help="that the model embeds")
    parser.add_argument("--batch", type=cli.whole(1), default=32)
    parser.add_argument("--torch-python", default="", help="an interpreter that has torch, to compare with")
    args = parser.parse_args(argv)
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"--parts knows {', '.join(PARTS)}, not {', '.join(sorted(unknown))}")
    if min(args.rows - 200, args.dim, args.rounds, args.requests) < 1:
        parser.error("--rows must be above 200, --dim, --rounds and --requests at least 1")
    return args


def _size(text):
    height, width = text.split("x")
    return int(height), int(width)


def made(rows, dim, seed=0):
    """Unit features f32[rows,dim] of people with 20 pictures each, in 32 directions that matter."""
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((32, dim)).astype(np.float32)
    people = rng.standard_normal((-(-rows // 20), 32)).astype(np.float32)
    features = np.empty((rows, dim), np.float32)
    for start in range(0, rows, 8192):
        who = np.arange(start, min(start + 8192, rows)) // 20
        noise = rng.standard_normal((len(who), 32), dtype=np.float32)
        features[start : start + len(who)] = search.unit((people[who] + 0.5 * noise) @ mix)
    return features


def best(rounds, *routes):
    """The least seconds of each route; they take turns."""
    seconds = np.full(len(routes), np.inf)
    for _ in range(rounds):
        for i, route in enumerate(routes):
            begin = time.perf_counter()
            route()
            seconds[i] = min(seconds[i], time.perf_counter() - begin)
    return seconds


def of_search(features, args, folder):
    """Exact search against the product of the same arrays."""
    figures = {}
    for count in (1, 200):
        queries = features[:count]
        ours, bare = best(
            args.rounds,
            lambda q=queries: search.nearest(q, features, 10),
            lambda q=queries: np.matmul(q, features.T),
        )
        figures |= {f"search_{count}": ours / bare, f"search_{count}_seconds": ours}
    return figures


def of_store(features, args, folder):
    """Adding against a bare executemany of the same batches; loading against bare rows of the file."""
    path, names = os.path.join(folder, "g.sqlite"), (os.path.join(folder, str(i)) for i in range(4))
    model = Model(args.dim)
    add, bare_add = best(
        2, lambda: filled(next(names), model, features).close(), lambda: inserted(next(names), features)
    )
    os.rename(os.path.join(folder, "2"), path)
    load, bare_load = best(args.rounds, lambda: loaded(path, args.rows), lambda: selected(path, args.dim))
    return {
        "add": add / bare_add, "add_seconds": add, "load": load / bare_load, "load_seconds": load,
        "mib": os.path.getsize(path) / (1 << 20),
    }  # fmt: skip


def columns_of(count):
    """Cameras, persons and times of so many entries."""
    numbers = range(count)
    return {
        "camera": [f"camera {i % 6}" for i in numbers],
        "person": [f"person {i // 20}" for i in numbers],
        "time": [float(i) for i in numbers],
    }


def filled(path, model, features):
    """A Gallery of features with cameras, persons and times."""
    gallery = Gallery(path, model)
    gallery.add_features(features, **columns_of(len(features)))
    return gallery


def inserted(path, features):
    """The same rows into a bare table, in as many transactions."""
    known = list(zip(*columns_of(len(features)).values(), strict=True))
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("CREATE TABLE entry(id INTEGER PRIMARY KEY, camera, person, time, vector BLOB)")
        for start in range(0, len(features), BATCH):
            block = features[start : start + BATCH].astype(np.float16)
            connection.execute("BEGIN")
            rows = ((start + i, *known[start + i], row.tobytes()) for i, row in enumerate(block))
            connection.executemany("INSERT INTO entry VALUES(?, ?, ?, ?, ?)", rows)
            connection.execute("COMMIT")


def loaded(path, rows):
    """A gallery's entries in memory."""
    with Gallery(path, mode="r") as gallery:
        assert len(gallery.rows()) == rows


def selected(path, dim):
    """The same columns by a bare SELECT, the vectors as float32."""
    columns = ", ".join(database.LOADED)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        cursor = connection.execute(f"SELECT {columns} FROM entry ORDER BY id")
        parts = []
        while rows := cursor.fetchmany(4096):
            block = b"".join(row[5] for row in rows)
            parts.append(np.frombuffer(block, np.float16).reshape(-1, dim).astype(np.float32))
        return np.concatenate(parts)


def of_index(features, args, folder):
    """The approximate index against exact search, one query at a time."""
    place, model = args.index or os.path.join(folder, "g"), f"seeded [{args.dim}]"
    begin = time.perf_counter()
    index = ann.load(place, model, len(features)) or ann.build(place, features, model, len(features))
    built = time.perf_counter() - begin
    queries = features[:: max(1, len(features) // 20)][:20]
    exact, approximate = best(
        args.rounds,
        lambda: [search.nearest(q[None], features, 10) for q in queries],
        lambda: [index.nearest(q[None], features, 10) for q in queries],
    )
    return {
        "index_speedup": exact / approximate, "index_recall": index.recall, "index_ready_seconds": built,
        "index_query_seconds": approximate / len(queries),
    }  # fmt: skip


class Model:
    """Stands for a network: decodes, resizes and projects, as little as a model can do."""

    def __init__(self, dim):
        self.dim, self.hash, self.card = dim, "0" * 64, {}
        self.kernel = np.random.default_rng(0).standard_normal((64 * 32 * 3, dim)).astype(np.float32)

    def __call__(self, pictures):
        rows = []
        for contents in pictures:
            with Image.open(io.BytesIO(contents)) as image:
                small = image.convert("RGB").resize((32, 64), Image.Resampling.BICUBIC)
            rows.append(np.asarray(small, np.float32).ravel() - 127.5)
        return search.unit(np.stack(rows) @ self.kernel)


def of_page(features, args, folder):
    """Answers of the page, which logs them, against embedding and search, 95th percentiles.

    With the network --backbone, on random weights, and with a stand-in that does next to nothing.
    """
    from reid_jax.benchmarks import inference
    from reid_jax.serve.embedder import Embedder

    toy = page(features, Model(args.dim), args, os.path.join(folder, "toy.sqlite"))
    net = Embedder(inference.net_of(args.backbone, *args.picture), batch=1)
    whole = page(made(len(features), net.dim), net, args, os.path.join(folder, "page.sqlite"))
    return whole | {f"{name}_toy": value for name, value in toy.items()}


def page(features, model, args, path):
    """Figures of the page with one model."""
    import uvicorn

    from reid_jax.serve import app

    filled(path, model, features).close()
    gallery, direct = Gallery(path, model, log_searches=True), Gallery(path, model, mode="r")
    out = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (256, 128, 3), np.uint8)
    Image.fromarray(pixels).save(out, "JPEG")  # of the size of a crop
    server = uvicorn.Server(
        uvicorn.Config(app.create(gallery), port=0, log_config=None, lifespan="off", access_log=False)
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    connection = http.client.HTTPConnection("127.0.0.1", port)
    routes = (
        lambda: direct.search(out.getvalue(), k=24),
        lambda: answered(connection, out.getvalue()),
    )
    (bare, page), (bare_half, page_half) = percentiles(args.requests, *routes)
    server.should_exit = True
    connection.close()
    thread.join()
    direct.close()
    gallery.close()
    figures = {"page_p95": page / bare, "page_p95_seconds": page, "direct_p95_seconds": bare}
    return figures | {"page_median": page_half / bare_half}


def answered(connection, contents):
    """One search by HTTP."""
    headers = {"Content-Type": "application/octet-stream"}
    connection.request("POST", "/api/search?k=24", contents, headers)
    answer = connection.getresponse()
    assert answer.read() and answer.status == 200


def percentiles(count, *routes):
    """The 95th and 50th percentiles of the seconds of each route; they take turns."""
    for route in routes:
        route()
    seconds = [[best(1, route)[0] for route in routes] for _ in range(count)]
    return np.percentile(seconds, (95, 50), axis=0)


def of_model(features, args, folder):
    """See benchmarks.inference."""
    from reid_jax.benchmarks import inference

    return inference.measure(args, folder, best)


MEASURES = {"search": of_search, "store": of_store, "index": of_index, "page": of_page, "model": of_model}


def print_figures(part, figures):
    """Figures for people, ratios beside their targets."""
    for name, value in figures.items():
        target = TARGETS.get(name)
        sign = "at least" if name in AT_LEAST else "at most"
        print(f"{part:<8}{name:<22}{value:>10.4g}" + (f"   target {sign} {target:g}" if target else ""))
    figures.update({name: round(float(value), 6) for name, value in figures.items()})
