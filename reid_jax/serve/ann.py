"""An approximate index (faiss, HNSW) of a large gallery: a cache beside its file, used where it is right.

It is asked for four times as many rows as are wanted, which are then scored exactly. Recall of the first 10
is measured on stored rows when it is built; below LEAST_RECALL it stays unused. The file `GALLERY.ann` begins
with a line of JSON: model, generation, recall and SHA-256 of what follows; where any of them does not fit,
the search is exact and a new index is built in the background. Deletion drops it.
"""

import contextlib
import hashlib
import json
import logging
import os
import threading

import numpy as np

from reid_jax.errors import ConfigError, DataError
from reid_jax.serve import search

log = logging.getLogger("reid_jax")
LEAST_ROWS = 200_000  # that pass the filter; below, exact search is as fast
LEAST_SHARE = 0.25  # of all rows that pass the filter; below, the index misses too many
LEAST_RECALL = 0.98
CANDIDATES = 4  # times k, scored exactly
_SAMPLE, _K = 200, 10  # rows and hits by which recall is measured
_building = {}  # {path: thread}


class Index:
    """An index of the rows of one generation."""

    def __init__(self, graph, recall, generation):
        self.graph, self.recall, self.generation = graph, recall, generation

    @property
    def usable(self):
        """Whether it finds what exact search finds."""
        return self.recall >= LEAST_RECALL

    def nearest(self, queries, matrix, k, rows=None):
        """As search.nearest, of candidates of the graph."""
        faiss = load_faiss()
        wanted = min(CANDIDATES * k, len(matrix))
        options = {"efSearch": max(64, wanted)}
        if rows is not None:
            bits = np.packbits(rows, bitorder="little")
            options["sel"] = faiss.IDSelectorBitmap(bits)
        parameters = faiss.SearchParametersHNSW(**options)
        _, places = self.graph.search(np.ascontiguousarray(queries), wanted, params=parameters)
        return [self._scored(q, np.sort(p[p >= 0]), matrix, k) for q, p in zip(queries, places, strict=True)]

    def _scored(self, query, places, matrix, k):
        score = search.scores(query, matrix, places)
        order = np.lexsort((places, -score))[:k]
        return places[order], score[order]


def worth_it(count, passing):
    """Whether enough rows pass the filter."""
    kept = count if passing is None else int(passing.sum())
    return kept >= LEAST_ROWS and kept >= LEAST_SHARE * count


def load_faiss():
    """The package; ConfigError naming the extra where it is missing."""
    try:
        import faiss
    except ImportError as error:
        raise ConfigError(
            f"the approximate index needs faiss ({error}): pip install 'reid_jax[ann]'"
        ) from error
    return faiss


def build(path, matrix, model, generation, current=None):
    """An Index of a matrix f32[N,D], written beside the gallery at `path`.

    current: function that gives the gallery's generation now; where it has moved, the file is dropped again,
    as it may hold what was deleted meanwhile.
    """
    faiss = load_faiss()
    graph = faiss.index_factory(matrix.shape[1], "HNSW16_SQfp16", faiss.METRIC_INNER_PRODUCT)
    graph.train(matrix)
    graph.add(matrix)
    index = Index(graph, 0.0, generation)
    index.recall = _recall(index, matrix)
    body = faiss.serialize_index(graph).tobytes()
    head = {"model": model, "generation": generation, "recall": index.recall, "sha256": _hash(body)}
    _write(file_of(path), json.dumps(head).encode() + b"\n" + body)
    if current is not None and current() != generation:
        drop(path)
    return index


def _recall(index, matrix):
    """Share of the first exact hits of stored rows that the index gives."""
    picked = np.random.default_rng(0).choice(len(matrix), min(_SAMPLE, len(matrix)), replace=False)
    queries = matrix[np.sort(picked)]
    exact, approximate = search.nearest(queries, matrix, _K), index.nearest(queries, matrix, _K)
    kept = [len(np.intersect1d(a, b)) / len(a) for (a, _), (b, _) in zip(exact, approximate, strict=True)]
    return float(np.mean(kept))


def load(path, model, generation):
    """The Index beside a gallery, or None where there is none of this model and generation that is whole."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError):
        with open(file_of(path), "rb") as file:
            head, body = json.loads(file.readline(4096)), file.read()
        if (head["model"], head["generation"], head["sha256"]) == (model, generation, _hash(body)):
            graph = load_faiss().deserialize_index(np.frombuffer(body, np.uint8))
            return Index(graph, float(head["recall"]), generation)
    return None


def load_or_start(path, matrix, model, generation, current):
    """The Index beside a gallery; None where it has to be built, which then begins in the background.

    current: as of `build`; called from another thread.
    """
    load_faiss()
    index = load(path, model, generation)
    thread = _building.get(path)
    if index is None and (thread is None or not thread.is_alive()):
        task = (path, matrix[:], model, generation, current)  # later rows are appended behind these
        thread = threading.Thread(target=_build_quietly, args=task, daemon=True, name="gallery index")
        _building[path] = thread
        thread.start()
    return index


def _build_quietly(path, *task):
    try:
        build(path, *task)
    except DataError as error:  # no room, or the gallery was closed: search stays exact
        log.warning("%s: %s", path, error)
        drop(path)


def about(path, model, generation):
    """What `gallery info` says of the index."""
    try:
        with open(file_of(path), "rb") as file:
            head = json.loads(file.readline(4096))
        state = "current" if (head["model"], head["generation"]) == (model, generation) else "stale"
        return f"{state}, recall {float(head['recall']):.4f}"
    except OSError:
        return "none"
    except (ValueError, KeyError, TypeError):
        return "damaged"


def drop(path):
    """Deletes the index, if there is one, and what a killed process left of one."""
    for name in (file_of(path), part_of(path)):
        with contextlib.suppress(FileNotFoundError):
            os.remove(name)


def drop_stale(path, rewritten):
    """Deletes an index from before the gallery's last deletion or change of a name, and unfinished ones."""
    try:
        with open(file_of(path), "rb") as file:
            current = json.loads(file.readline(4096))["generation"] >= rewritten
    except (OSError, ValueError, KeyError, TypeError):
        current = False
    if not current:
        drop(path)


def file_of(path):
    """The index's file."""
    return f"{path}.ann"


def part_of(path):
    """The index's file while it is being written."""
    return f"{path}.ann.part"


def _hash(body):
    return hashlib.sha256(body).hexdigest()


def _write(path, contents):
    """The whole file or none, mode 0600."""
    part = f"{path}.part"
    try:
        handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(handle, "wb") as file:
            file.write(contents)
        os.replace(part, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.remove(part)
        raise DataError(f"the index {path} cannot be written: {error}; the search stays exact") from error
