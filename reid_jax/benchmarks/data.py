"""Images per second of every stage of the input pipeline, against bare decoding and a torch DataLoader.

Every route reads the same seeded JPEG files of 64x128 pixels, resizes them to --height x --width and makes
uint8 batches; the pipeline also draws its augmentations. Stages are timed on one thread, routes on --workers
threads or processes. They take turns, the best round of each counts. With --plan, what `reid_jax plan --json`
wrote: how many cores a host needs to feed its chips, were these at their peaks.
"""

import concurrent.futures
import importlib.util
import itertools
import os
import tempfile
import time
import warnings

import jax
import numpy as np
from absl import flags
from PIL import Image

from reid_jax import cli, tables
from reid_jax.config import defaults, namespace
from reid_jax.data import decode, images, prefetch, streams, tfds_sets
from reid_jax.data.records import Dataset, Record
from reid_jax.data.rows import rows_of
from reid_jax.data.transforms import Draws
from reid_jax.plan import stored
from reid_jax.plan.chips import CHIPS, at_peaks

SIZE = 128, 64  # of the files, height and width
HOSTS = {"v5e": 8, "v6e": 8, "a100": 8, "h100": 8, "h200": 8}  # chips of one host


def main(argv):
    """Runs the benchmark with these command line arguments; prints a table, returns the figures."""
    args = parse(argv)
    plan = stored.read(args.plan) if args.plan else None
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain's processes ask for it
    with tempfile.TemporaryDirectory() as folder:
        dataset = generate(os.path.join(folder, "files"), args.images)
        built = tfds_sets.load(tfds_sets.build(dataset, folder, progress=False))
        routes = make_routes(dataset, built, args)
        rates = {name: 0.0 for name in routes}
        for _ in range(args.rounds):
            for name, route in routes.items():
                rates[name] = max(rates[name], route())
    relative = ratios(rates, args.workers, args.decoders)
    print_table(rates, relative, args)
    if plan:
        print_hosts(plan, rates, args)
    return {**{k: round(v, 1) for k, v in rates.items()}, **relative, **vars(args)}


def parse(argv):
    """Command line -> namespace."""
    parser = cli.parser("benchmarks data", __doc__)
    parser.add_argument("--images", type=cli.whole(1), default=2048, help="JPEG files")
    parser.add_argument("--batch", type=cli.whole(1), default=64, help="images a batch, a multiple of 4")
    parser.add_argument("--batches", type=cli.whole(1), default=64, help="batches timed a round")
    parser.add_argument("--workers", type=cli.whole(1), default=2, help="threads or processes of a route")
    parser.add_argument("--rounds", type=cli.whole(1), default=3)
    parser.add_argument("--height", type=cli.whole(1), default=256)
    parser.add_argument("--width", type=cli.whole(1), default=128)
    parser.add_argument(
        "--decoders", nargs="+", choices=tuple(decode.DECODERS), help="(default: all that are installed)"
    )
    parser.add_argument("--plan", metavar="FILE", default="", help="of plan --json: cores that a host needs")
    args = parser.parse_args(argv)
    if args.batch % 4 or not 0 < args.batch <= args.images:
        parser.error("--batch must be a multiple of 4 and at most --images")
    args.decoders = args.decoders or [d for d in decode.DECODERS if installed(d)]
    return args


def installed(decoder):
    """Whether the packages of a decoder are there."""
    return all(importlib.util.find_spec(p) for p in decode.PACKAGES.get(decoder, ()))


def generate(folder, count):
    """A Dataset of `count` smooth random JPEG pictures, 64 wide and 128 high, four to an identity."""
    os.makedirs(folder)
    rng, records = np.random.default_rng(0), []
    for i in range(count):
        small = Image.fromarray(rng.integers(0, 256, (16, 8, 3), np.uint8))
        path = os.path.join(folder, f"{i:06d}.jpg")
        small.resize(SIZE[::-1], Image.Resampling.BICUBIC).save(path, quality=90)
        records.append(Record(path, i // 4, i % 4))
    tests = tuple(records[:1])  # a built set has all three splits
    return Dataset("benchmark", folder, tuple(records), tests, tests, ("c0", "c1", "c2", "c3"))


def make_routes(dataset, built, args):
    """{name: function that reads once and returns images per second}; names end in the number of workers."""
    paths, count = [r.path for r in dataset.train], args.workers
    routes = {
        "file_1": lambda: spread(images.contents, paths, 1, args),
        "augment_1": lambda: augment(args),
        "device_1": lambda: to_device(args),
    }
    for name in args.decoders:
        routes |= stages(name, paths, args)
        routes |= {
            f"threads_{name}_{count}": lambda d=name: ours(dataset, args, threads=count, decoder=d),
            f"placed_{name}_{count}": lambda d=name: ours(dataset, args, True, threads=count, decoder=d),
            f"built_{name}_{count}": lambda d=name: ours(built, args, threads=count, decoder=d),
            f"workers_{name}_{count}": lambda d=name: ours(dataset, args, workers=count, decoder=d),
        }
        if importlib.util.find_spec("torch"):
            routes[f"torch_{name}_{count}"] = lambda d=name: torch_loader(paths, args, d)
    routes[f"cached_{count}"] = lambda: ours(dataset, args, threads=count, cache_mib=1 << 14)
    return routes


def stages(name, paths, args):
    """Routes of one decoder without the pipeline: decoding alone, with resizing, into batches."""
    decoder, size = decode.find(name), (args.height, args.width)
    stored = [images.contents(p) for p in paths]
    pool = images.Images(paths, np.zeros(len(paths)), *size, decoder=name)

    def bare(path):
        return images.read(path, *size, decoder)

    return {
        f"decode_{name}_1": lambda: spread(lambda data: decoder(data, *SIZE), stored, 1, args),
        f"decode_{name}_{args.workers}": lambda: spread(
            lambda data: decoder(data, *SIZE), stored, args.workers, args
        ),
        f"bare_{name}_1": lambda: spread(bare, paths, 1, args),
        f"bare_{name}_{args.workers}": lambda: spread(bare, paths, args.workers, args),
        f"batch_{name}_1": lambda: batch(pool, args),
    }


def spread(function, items, threads, args):
    """function(item) for as many items as a round has images, on this many threads."""
    items = list(itertools.islice(itertools.cycle(items), args.batch * args.batches))

    def run(part):
        for item in part:
            function(item)

    begin = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        list(pool.map(run, [items[i::threads] for i in range(threads)]))
    return len(items) / (time.perf_counter() - begin)


def repeat(function, args):
    """function() once for each batch."""
    begin = time.perf_counter()
    for _ in range(args.batches):
        function()
    return args.batch * args.batches / (time.perf_counter() - begin)


def batch(pool, args):
    """Reading into batches, as the pipeline does, on this thread."""
    rows, image = np.arange(args.batch, dtype=np.int32), blank(args)
    return repeat(lambda: pool.fill(rows, image), args)


def blank(args):
    """A batch of black pictures."""
    return np.zeros((args.batch, args.height, args.width, 3), np.uint8)


def augment(args):
    """The host's part of the augmentation: drawing flips, crops and erased rectangles."""
    draws = Draws.of(config(args), 0)
    return repeat(lambda: draws(0, args.batch), args)


def to_device(args):
    """Copying uint8 batches to the default device."""
    image = blank(args)
    return repeat(lambda: jax.device_put(image, may_alias=False).block_until_ready(), args)


def config(args, **fields):
    """The config's `data` section for these sizes."""
    data = namespace(defaults()["data"])
    data.height, data.width, data.ids, data.instances = args.height, args.width, args.batch // 4, 4
    data.prefetch = 2 * args.workers  # the torch DataLoader's default
    for field, value in fields.items():
        setattr(data, field, value)
    return data


def ours(dataset, args, place=False, **fields):
    """The training pipeline; place: onto the default device, as training does."""
    data = config(args, **fields)
    stream = streams.pk(rows_of(dataset)[0], data, 0)
    with stream.open(dataset, data) as batches:
        warm = stream.steps_per_epoch + 2 if data.cache_mib else 1
        if not place:
            return rate(batches, warm, args)
        with prefetch.OnDevice(batches, jax.device_put, data.device_prefetch) as placed:
            return rate(placed, warm, args)


def rate(batches, warm, args):
    """Images per second after `warm` batches."""
    for _ in range(warm):
        next(batches)
    return repeat(lambda: next(batches), args)


class Pictures:
    """Map-style data set for torch's DataLoader: the usual loading, uint8 [H,W,3]."""

    def __init__(self, paths, height, width, decoder):
        self.paths, self.height, self.width, self.decoder = paths, height, width, decoder

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i):
        import torch

        return torch.from_numpy(self.read(self.paths[i]).copy()), i

    def read(self, path):
        """The plain way to read a picture with PIL; the other decoders as the pipeline does."""
        if self.decoder != "pil":
            return images.read(path, self.height, self.width, decode.find(self.decoder))
        with Image.open(path) as image:
            size = self.width, self.height
            return np.asarray(image.convert("RGB").resize(size, Image.Resampling.BICUBIC))


def torch_loader(paths, args, decoder):
    """torch's DataLoader: decode, resize, collate."""
    from torch.utils.data import DataLoader

    rng = np.random.default_rng(0)
    rows = [rng.integers(0, len(paths), args.batch).tolist() for _ in range(args.batches + 1)]
    pictures = Pictures(paths, args.height, args.width, decoder)
    with warnings.catch_warnings():  # of forking beside JAX's threads: the loader's processes never use JAX
        warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)
        batches = iter(DataLoader(pictures, batch_sampler=rows, num_workers=args.workers))
    return rate(batches, 1, args)


def ratios(rates, workers, decoders):
    """The pipeline (threads or processes, whichever is faster) against its limits and against torch."""
    best = {d: max(rates[f"threads_{d}_{workers}"], rates[f"workers_{d}_{workers}"]) for d in decoders}
    relative = {}
    for name, value in best.items():
        relative[f"{name}_of_decode_and_resize"] = value / rates[f"bare_{name}_{workers}"]
        relative[f"{name}_of_decode"] = value / rates[f"decode_{name}_{workers}"]
        if f"torch_{name}_{workers}" in rates:
            relative[f"{name}_of_torch_{name}"] = value / rates[f"torch_{name}_{workers}"]
        if f"torch_pil_{workers}" in rates:
            relative[f"{name}_of_torch_pil"] = value / rates[f"torch_pil_{workers}"]
    return {k: round(v, 3) for k, v in relative.items()}


def print_table(rates, relative, args):
    """Rates and ratios for people."""
    print(f"{'route':<24}{'images/s':>10}{'a core':>10}")
    for name, value in rates.items():
        cores = min(int(name.rpartition("_")[2]), os.cpu_count() or 1)
        print(f"{name:<24}{value:>10.0f}{value / cores:>10.0f}")
    for name, value in relative.items():
        print(f"pipeline, {name.replace('_', ' ')}: {value:.2f}")


def hosts(plan, rates, workers, decoders):
    """{program: {chip: {"images": a second that a host's chips eat, route: cores that read so many}}}.

    The chips are taken at their peaks, so these are the most that they could eat.
    """
    cores = min(workers, os.cpu_count() or 1)
    routes = {d: f"threads_{d}_{workers}" for d in decoders} | {"cached": f"cached_{workers}"}
    needs = {}
    for p in plan["programs"]:
        eaten = {c: n * p["rows"] / max(at_peaks(c, p["flops"], p["moved"])) for c, n in HOSTS.items()}
        needs[p["name"]] = {
            chip: {"images": value} | {name: value * cores / rates[r] for name, r in routes.items()}
            for chip, value in eaten.items()
        }
    return needs


def print_hosts(plan, rates, args):
    """A table for every step of a plan."""
    for program, rows in hosts(plan, rates, args.workers, args.decoders).items():
        print(f"\n{program}, as compiled for {plan['place']}; a host at its chips' peaks, cores to feed it:")
        routes = list(next(iter(rows.values())))[1:]
        body = [
            [f"{HOSTS[chip]} x {CHIPS[chip].title}", f"{need['images']:,.0f}"]
            + [f"{need[route]:.1f}" for route in routes]
            for chip, need in rows.items()
        ]
        print(tables.markdown(["host", "images/s", *routes], body))
