"""Feature extraction and train steps: time, memory, share of the device's peak, ratio to PyTorch.

Ours and PyTorch's runs take turns, PyTorch's in a process of its own that idles in between, so that
neither's threads or memory weigh on the other and a change of the machine's load hits both. CPU seconds
(all threads of the process) are given too: they move less than wall time when others use the machine.
Ours starts from uint8 images and includes normalisation and augmented views; PyTorch's starts from ready
float images. DSANet's step has clips for images, and no PyTorch form.

With --compile-only nothing is allocated or run: FLOPs and memory are what XLA plans for the compiled step.
"""

import contextlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from reid_jax import cli, methods
from reid_jax.fields import namespace
from reid_jax.models import cpu, layers

STEPS = ("extract", "baseline", "efl", "dsanet", "transreid", "osnet")
SIZES = {  # model fields, image size, batch of each of STEPS
    "full": ({"backbone": "resnet50"}, (256, 128), (32, 16, 8, 32, 8, 16)),
    "narrow": ({"backbone": "narrow"}, (64, 32), (64, 32, 32, 32, 32, 32)),
}
VITS = {"full": "vit_b16", "narrow": "vit_narrow"}  # of step "transreid"
OSNETS = {"full": "osnet_x1_0", "narrow": "osnet_x0_25"}  # of step "osnet"
NUM_PIDS, NUM_CAMS = 751, 6


def main(argv):
    """Runs the benchmark with these command line arguments; prints a table, returns the figures."""
    args = parse(argv)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # leave the peers their memory
    jax.config.update("jax_cpu_enable_async_dispatch", False)  # this and the next as the training command
    cpu.keep_heap()
    device = jax.devices()[0]
    result = {
        "benchmark": "step",
        "device": f"{device.platform}: {device.device_kind}",
        "jax": jax.__version__,
    }
    result |= {"cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()}
    result |= {"dtype": args.dtype, "size": args.size, "repeats": args.repeats}
    if args.compile_only:
        result["steps"] = {name: compiled_only(name, args) for name in args.steps}
        return result
    result["matmul_gflops"] = round(matmul_peak(args.dtype), 1)
    print(f"{result['device']}, {args.dtype}, matmul {result['matmul_gflops']:.0f} GFLOP/s", flush=True)
    result["steps"] = {}
    for name in args.steps:
        result["steps"][name] = figures = measure(name, args, result["matmul_gflops"])
        print_step(name, figures)
    result["load_average"] = [round(x, 2) for x in os.getloadavg()]
    return result


def parse(argv):
    parser = cli.parser("benchmarks step", __doc__)
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument(
        "--steps",
        type=lambda s: s.split(","),
        default=["extract", "baseline", "efl"],
        help="comma-separated: " + ", ".join(STEPS) + "; default: the first three",
    )
    parser.add_argument(
        "--batch",
        type=int,
        default=0,
        help="images; default 32 (extract), 16 (baseline, osnet), 8 (efl, transreid); clips: 32 (dsanet)",
    )
    parser.add_argument("--frames", type=cli.whole(1), default=8, help="of a clip (dsanet); default 8")
    parser.add_argument("--remat", action="store_true", help="config.model.remat")
    parser.add_argument(
        "--accumulate",
        type=int,
        default=1,
        help="config.train.accumulate (all but extract, dsanet); GFLOP are then those of one part",
    )
    parser.add_argument("--compile-only", action="store_true", help="memory by XLA's plan, nothing is run")
    parser.add_argument(
        "--plain", action="store_true", help="the operations that GPUs and TPUs get, also on a CPU"
    )
    parser.add_argument("--repeats", type=cli.whole(1), default=5, help="timed runs of each, taken in turns")
    parser.add_argument("--no-torch", action="store_true", help="do not time PyTorch")
    parser.add_argument(
        "--torch-python", default="", help="an interpreter that has torch; default: this one, if it has"
    )
    args = parser.parse_args(argv)
    if unknown := set(args.steps) - set(STEPS):
        parser.error(f"--steps knows {', '.join(STEPS)}, not {', '.join(sorted(unknown))}")
    return args


# ---- ours


def config_of(name, args):
    fields, (height, width), batches = SIZES[args.size]
    batch = args.batch or batches[STEPS.index(name)]
    tree = methods.defaults(method_of(name))
    tree["model"] |= fields | {"dtype": args.dtype, "remat": args.remat}
    tree["data"] |= {"height": height, "width": width, "ids": max(batch // 4, 1), "instances": min(4, batch)}
    if name == "transreid":
        transreid(tree, VITS[args.size])
    if name == "osnet":
        osnet(tree, OSNETS[args.size])
    tree["train"]["accumulate"] = args.accumulate
    tree["data"]["frames"] = args.frames if name == "dsanet" else 0
    return namespace(tree), batch


def transreid(tree, backbone):
    """TransReID with jigsaw patches and cameras, as configs/transreid.py has it."""
    tree["model"] |= dict(backbone=backbone, head="jpm", neck="bnneck", vit_sie=3.0, vit_stride=8)
    tree["model"] |= dict(vit_stride=16) if backbone == "vit_b16" else {}
    tree["loss"] |= dict(triplet="softmax", margin=0.0, feature="before_bn", branches=(0.5, *(0.125,) * 4))
    tree["optim"] |= dict(kind="sgd", lr=0.008, weight_decay=1e-4)


def osnet(tree, backbone):
    """OSNet from its first to its last layer, as configs/osnet.py trains it behind the frozen epochs."""
    tree["model"] |= dict(backbone=backbone, head="fc")
    tree["loss"] |= dict(label_smooth=0.1, triplet_weight=0.0)
    tree["optim"] |= dict(kind="amsgrad", lr=1.5e-3)


def method_of(step):
    """The method whose step, or embedding, is timed."""
    return "baseline" if step in ("extract", "transreid", "osnet") else step


def random_batch(data, size):
    """A batch as the input pipeline gives it: random images or clips, and draws."""
    rng = np.random.default_rng(0)
    shape = (size, *([data.frames] if data.frames else []), data.height, data.width, 3)
    erase = np.tile(np.array([10, 10, data.height // 4, data.width // 4], np.int32), (size, 2, 1))
    return {
        "image": rng.integers(0, 256, shape, np.uint8),
        "pid": np.arange(size, dtype=np.int32) // 4 % NUM_PIDS,
        "camid": np.arange(size, dtype=np.int32) % NUM_CAMS,
        "index": np.arange(size, dtype=np.int32),
        "flip": rng.random((size, 2)) < 0.5,
        "crop": np.full((size, 2, 2), data.pad_crop, np.int32),
        "erase": erase,
    }


class Ours:
    """One compiled step with its state; `run()` does it once, to the end."""

    def __init__(self, name, args):
        config, self.batch_size = config_of(name, args)
        info = methods.Info(NUM_PIDS, NUM_CAMS, steps_per_epoch=100, total_steps=1000)
        method = methods.build(config, "train", info)
        self.batch = {"train": random_batch(config.data, self.batch_size)}
        if args.compile_only:
            self.state = jax.eval_shape(method.init, jax.random.key(0))
        else:
            self.batch = jax.device_put(self.batch)
            self.state = jax.jit(method.init)(jax.random.key(0))
        start = time.perf_counter()
        if name == "extract":
            net = method.nets[0]
            function = jax.jit(lambda state, batch: method.embed(state, batch["train"]["image"], net))
        else:
            function = jax.jit(method.step, donate_argnums=0)
        self.trains = name != "extract"
        with layers.form("plain" if args.plain else "auto"):
            self.compiled = function.lower(self.state, self.batch).compile()
        self.compile_seconds = time.perf_counter() - start

    def run(self):
        out = self.compiled(self.state, self.batch)
        if self.trains:
            self.state, out = out
        jax.block_until_ready((self.state, out))

    def costs(self):
        """FLOPs as XLA counts them and peak memory by the best source this device has."""
        cost = self.compiled.cost_analysis() or {}
        cost = cost[0] if isinstance(cost, list) else cost
        memory = self.compiled.memory_analysis()
        figures = {"gflop": round(cost.get("flops", 0) / 1e9, 1)}
        stats = jax.devices()[0].memory_stats() or {}
        if "peak_bytes_in_use" in stats:  # since the process began
            figures["device_peak_mib"] = stats["peak_bytes_in_use"] >> 20
        if memory is not None:
            figures["xla_temp_mib"] = memory.temp_size_in_bytes >> 20
            figures["xla_arguments_mib"] = memory.argument_size_in_bytes >> 20
        figures["process_peak_rss_mib"] = peak_rss_mib()
        return figures


def peak_rss_mib():
    """Peak resident memory of this process in MiB, None where the system does not tell."""
    try:
        import resource
    except ImportError:
        return None
    scale = 1 << 20 if sys.platform == "darwin" else 1 << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // scale


def matmul_peak(dtype, size=0):
    """GFLOP/s of a large matrix product of this type that accumulates in float32, best of several."""
    size = size or (2048 if jax.default_backend() == "cpu" else 8192)
    a = jnp.ones((size, size), dtype)
    f = jax.jit(lambda a: jnp.matmul(a, a, preferred_element_type=jnp.float32))
    f(a).block_until_ready()
    return 2 * size**3 / min(timed(lambda: f(a).block_until_ready())[0] for _ in range(10)) / 1e9


def timed(run):
    """(wall seconds, CPU seconds of all threads) of one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


# ---- PyTorch's, in a process of its own


class Peer:
    """A PyTorch step in another process (reid_jax.benchmarks.torch_peer); `run()` is as `timed`."""

    def __init__(self, python, **settings):
        command = [python, "-m", "reid_jax.benchmarks.torch_peer", json.dumps(settings)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.torch = self._answer()["torch"]

    def _answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the PyTorch process ended with code {self.process.wait()}")
        return json.loads(line)

    def run(self):
        self.process.stdin.write("run\n")
        self.process.stdin.flush()
        answer = self._answer()
        self.peak_mib = answer["peak_mib"]
        return answer["seconds"], answer["cpu_seconds"]

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def torch_python(args):
    """The interpreter to run PyTorch with, or None."""
    if args.no_torch or args.size != "full":
        return None
    return args.torch_python or (sys.executable if importlib.util.find_spec("torch") else None)


def peers_of(name, args, batch, stack):
    """The PyTorch forms of a step: {name: Peer}, closed with `stack`."""
    python, peers = torch_python(args), {}
    if python is None or name == "dsanet":
        return peers
    _, (height, width), _ = SIZES[args.size]
    device = "cpu" if jax.default_backend() == "cpu" else "cuda"
    for layout in ("nchw", "channels_last"):
        settings = dict(
            step=name, batch=batch, height=height, width=width, num_pids=NUM_PIDS, num_cams=NUM_CAMS
        )
        settings |= dict(bf16=args.dtype == "bfloat16", channels_last=layout != "nchw", device=device)
        peers[f"torch_{layout}"] = peer = Peer(python, **settings)
        stack.callback(peer.close)
    return peers


# ---- comparison


def measure(name, args, peak):
    """Times one step of ours and of the peers in turns."""
    ours = Ours(name, args)
    with contextlib.ExitStack() as stack:
        peers = peers_of(name, args, ours.batch_size, stack)
        routes = {"ours": lambda: timed(ours.run)} | {k: p.run for k, p in peers.items()}
        for run in (*routes.values(), *routes.values()):  # two warm-up runs: the second has its memory
            run()
        rounds = [{k: run() for k, run in routes.items()} for _ in range(args.repeats)]
        figures = summary(ours, rounds, peak)
        if peers:
            figures["torch"] = next(iter(peers.values())).torch
            figures["torch_peak_mib"] = {k: p.peak_mib for k, p in peers.items()}
    return figures


def summary(ours, rounds, peak):
    """Medians over rounds; ratios are medians of the rounds' ratios (above 1: ours is faster)."""

    def middle(of):
        return {k: round(statistics.median(of(r, k) for r in rounds), 4) for k in rounds[0]}

    best = {k: round(min(r[k][0] for r in rounds), 4) for k in rounds[0]}
    figures = {"batch": ours.batch_size, "compile_seconds": round(ours.compile_seconds, 2)} | ours.costs()
    figures["seconds"] = middle(lambda r, k: r[k][0])
    figures["best_seconds"] = best
    figures["cpu_seconds"] = middle(lambda r, k: r[k][1])
    figures["images_per_second"] = round(ours.batch_size / figures["seconds"]["ours"], 2)
    gflops = figures["gflop"] / best["ours"]
    figures |= {"gflops": round(gflops, 1), "share_of_matmul": round(gflops / peak, 3)}
    figures["speed_against"] = middle(lambda r, k: r[k][0] / r["ours"][0])
    figures["cpu_speed_against"] = middle(lambda r, k: r[k][1] / max(r["ours"][1], 1e-9))
    return figures


def compiled_only(name, args):
    """Figures of the compiled step, printed; with --compile-only."""
    ours = Ours(name, args)
    figures = {"batch": ours.batch_size, "compile_seconds": round(ours.compile_seconds, 2)}
    figures |= {k: v for k, v in ours.costs().items() if k == "gflop" or k.startswith("xla_")}
    print(f"{name}, batch {ours.batch_size}: {figures['gflop']:.0f} GFLOP")
    print_memory(figures)
    return figures


def print_step(name, figures):
    seconds = figures["seconds"]
    print(f"\n{name}, batch {figures['batch']}: {figures['images_per_second']:.1f} images/s")
    for route, value in seconds.items():
        times = f"{value * 1e3:9.1f} ms  best {figures['best_seconds'][route] * 1e3:9.1f}"
        times += f"  CPU {figures['cpu_seconds'][route] * 1e3:9.1f}"
        ratio, cpu = figures["speed_against"][route], figures["cpu_speed_against"][route]
        note = "" if route == "ours" else f"   ours is {ratio:.2f}x as fast ({cpu:.2f}x by CPU time)"
        print(f"  {route:20s} {times}{note}")
    share = f"{figures['gflops']:.0f} GFLOP/s, {100 * figures['share_of_matmul']:.0f} % of the matmul"
    print(f"  {figures['gflop']:.0f} GFLOP, {share}; compiled in {figures['compile_seconds']:.1f} s")
    print_memory(figures)


def print_memory(figures):
    shown = ", ".join(f"{k[:-4]} {v}" for k, v in figures.items() if k.endswith("_mib"))
    print(f"  memory, MiB: {shown}", flush=True)
