"""Images per second of the input pipeline, against bare decoding and a torch DataLoader.

Every route reads the same seeded JPEG files of 64x128 pixels, resizes them to --height x --width and makes
uint8 batches; the pipeline also draws its augmentations. Routes take turns, the best round of each counts.
"""

import argparse
import concurrent.futures
import importlib.util
import itertools
import os
import tempfile
import time

import numpy as np
from absl import flags
from PIL import Image

from reid_jax.config import defaults, namespace
from reid_jax.data import images, pipeline
from reid_jax.data.records import Dataset, Record


def main(argv):
    """Runs the benchmark with these command line arguments; prints a table, returns the figures."""
    args = parse(argv)
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain's processes ask for it
    with tempfile.TemporaryDirectory() as folder:
        dataset = generate(folder, args.images)
        routes = make_routes(dataset, args)
        rates = {name: 0.0 for name in routes}
        for _ in range(args.rounds):
            for name, route in routes.items():
                rates[name] = max(rates[name], route())
    result = {k: round(v, 1) for k, v in rates.items()}
    result.update(ratios(rates, args.workers), **vars(args))
    print_table(rates, args.workers)
    return result


def parse(argv):
    """Command line -> namespace."""
    parser = argparse.ArgumentParser("python -m reid_jax.benchmarks data", description=__doc__)
    parser.add_argument("--images", type=int, default=2048, help="JPEG files")
    parser.add_argument("--batch", type=int, default=64, help="images a batch, a multiple of 4")
    parser.add_argument("--batches", type=int, default=64, help="batches timed a round")
    parser.add_argument("--workers", type=int, default=2, help="threads, and processes, of each route")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--height", type=int, default=256)
    parser.add_argument("--width", type=int, default=128)
    args = parser.parse_args(argv)
    if args.batch % 4 or not 0 < args.batch <= args.images:
        parser.error("--batch must be a multiple of 4 and at most --images")
    return args


def generate(folder, count):
    """A Dataset of `count` smooth random JPEG pictures, 64 wide and 128 high, four to an identity."""
    rng, records = np.random.default_rng(0), []
    for i in range(count):
        small = Image.fromarray(rng.integers(0, 256, (16, 8, 3), np.uint8))
        path = os.path.join(folder, f"{i:06d}.jpg")
        small.resize((64, 128), Image.Resampling.BICUBIC).save(path, quality=90)
        records.append(Record(path, i // 4, i % 4))
    return Dataset("benchmark", folder, tuple(records), (), (), ("c0", "c1", "c2", "c3"))


def make_routes(dataset, args):
    """{name: function that reads once and returns images per second}."""
    paths = [r.path for r in dataset.train]
    routes = {
        "pil_1": lambda: bare(paths, 1, args, read_pil),
        "bare_1": lambda: bare(paths, 1, args),
        f"bare_{args.workers}": lambda: bare(paths, args.workers, args),
        f"threads_{args.workers}": lambda: ours(dataset, args, threads=args.workers),
        f"workers_{args.workers}": lambda: ours(dataset, args, workers=args.workers),
        "cached": lambda: ours(dataset, args, threads=args.workers, cache_mib=1 << 14),
    }
    if importlib.util.find_spec("torch"):
        routes[f"torch_{args.workers}"] = lambda: torch_loader(paths, args)
    return routes


def read_pil(path, height, width):
    """The plain way to read a picture: PIL alone."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC))


def bare(paths, threads, args, read=images.read):
    """Decode and resize, nothing else, on this many threads."""
    paths = list(itertools.islice(itertools.cycle(paths), args.batch * args.batches))

    def run(part):
        for path in part:
            read(path, args.height, args.width)

    begin = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        list(pool.map(run, [paths[i::threads] for i in range(threads)]))
    return len(paths) / (time.perf_counter() - begin)


def ours(dataset, args, **fields):
    """The training pipeline."""
    data = namespace(defaults()["data"])
    data.height, data.width, data.ids, data.instances = args.height, args.width, args.batch // 4, 4
    data.prefetch = 2 * args.workers  # the torch DataLoader's default
    for field, value in fields.items():
        setattr(data, field, value)
    with pipeline.train_batches(dataset, data, seed=0) as batches:
        warm = pipeline.steps_per_epoch(dataset, data) + 2 if data.cache_mib else 1
        return rate(batches, warm, args)


def rate(batches, warm, args):
    """Images per second after `warm` batches."""
    for _ in range(warm):
        next(batches)
    begin = time.perf_counter()
    for _ in range(args.batches):
        next(batches)
    return args.batch * args.batches / (time.perf_counter() - begin)


class Pictures:
    """Map-style data set for torch's DataLoader: the usual PIL loading, uint8 [H,W,3]."""

    def __init__(self, paths, height, width):
        self.paths, self.height, self.width = paths, height, width

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i):
        import torch

        return torch.from_numpy(read_pil(self.paths[i], self.height, self.width).copy()), i


def torch_loader(paths, args):
    """torch's DataLoader with PIL: decode, resize, collate."""
    from torch.utils.data import DataLoader

    rng = np.random.default_rng(0)
    rows = [rng.integers(0, len(paths), args.batch).tolist() for _ in range(args.batches + 1)]
    pictures = Pictures(paths, args.height, args.width)
    batches = iter(DataLoader(pictures, batch_sampler=rows, num_workers=args.workers))
    return rate(batches, 1, args)


def ratios(rates, workers):
    """The ratios the table ends with."""
    best = max(rates[f"threads_{workers}"], rates[f"workers_{workers}"])
    found = {"of_bare": best / rates[f"bare_{workers}"]}
    if f"torch_{workers}" in rates:
        found["of_torch"] = best / rates[f"torch_{workers}"]
    return {k: round(v, 3) for k, v in found.items()}


def print_table(rates, workers):
    """Rates and ratios for people."""
    base = rates[f"bare_{workers}"]
    print(f"{'route':<14}{'images/s':>10}{'of bare':>10}")
    for name, value in rates.items():
        print(f"{name:<14}{value:>10.0f}{value / base:>10.2f}")
    for name, value in ratios(rates, workers).items():
        print(f"best of threads and workers, {name.replace('_', ' ')}: {value:.2f}")
