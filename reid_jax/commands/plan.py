"""Whether a run's steps fit a chip, and what limits them there, before anything is paid for.

    python -m reid_jax plan --config=configs/METHOD.py:market --topology=v5e:2x4
    python -m reid_jax plan --config=configs/METHOD.py:market --topology=v5p:2x2x1 --search
    python -m reid_jax plan --config=configs/METHOD.py:smoke --devices=1

Compiles the very programs of a run (the step of every part, and the embedding of an evaluation) for a slice
of TPUs, by the TPU compiler, which needs no TPU (pip install 'reid-jax[tpu]'), or for this machine's devices.
Nothing is computed and no data set is read: the training set is taken to be as large as published
(--counts for another). What does not fit is compiled again in ways that save memory, and those are told that
help. All figures are the compiler's, of one device; the times are FLOPs and bytes over the vendor's peaks.
"""

import dataclasses
import json
import os
import sys

from reid_jax import cli, places, tables
from reid_jax.errors import ConfigError
from reid_jax.plan import chips

GIB = chips.GIB


@dataclasses.dataclass(frozen=True)
class Place:
    """Devices to plan for."""

    title: str
    chip: str  # name in chips.CHIPS, "" for another
    devices: object  # train.devices.Devices
    memory: int  # bytes of one device, 0 if unknown
    topology: str = ""


def main(argv=None):
    """Runs the command with these arguments; the exit code is 1 when a program does not fit."""
    args, flags = parse(sys.argv[1:] if argv is None else argv)
    import jax

    if args.topology:  # this machine's devices are left alone
        jax.config.update("jax_platforms", "cpu")
    cli.prepare_jax()
    config = cli.config_of_flags(flags)
    place = place_of(args)
    print(f"{place.title}; jax {jax.__version__}", flush=True)
    plans = [plan for stage in stages_of(config) for plan in of_stage(config, stage, place, args)]
    print_plans(plans, place)
    too_large = [p for p in plans if place.memory and p.peak > place.memory]
    saved = {} if args.no_ways or not too_large else ways_out(config, place, args, too_large)
    sizes = search(config, place, args) if args.search else {}
    if args.json:
        result = {"place": place.title, "devices": len(place.devices.devices), "memory": place.memory}
        result |= {"jax": jax.__version__}
        result |= {"programs": [as_dict(p, place) for p in plans], "ways": saved, "largest": sizes}
        tables.write_text(args.json, json.dumps(result, indent=1) + "\n")
    return int(bool(too_large))


def parse(argv):
    """(namespace, the arguments of the config)."""
    parser = cli.parser("plan", __doc__)
    parser.add_argument(
        "--topology", default="", help="a slice of TPUs: v5e:2x4, v5p:2x2x1, v4:2x2x1, v6e:2x4"
    )
    parser.add_argument("--devices", type=int, default=0, help="that many of this machine's devices instead")
    parser.add_argument(
        "--counts", type=counts, default=None, metavar="IDS,IMAGES,CAMERAS", help="of the training set"
    )
    parser.add_argument(
        "--search", action="store_true", help="find the largest data.ids that fits, by bisection"
    )
    parser.add_argument("--no-ways", action="store_true", help="do not look for ways out")
    hlo = places.argument("--hlo", places.written)
    parser.add_argument(
        "--hlo", metavar="FOLDER", type=hlo, default="", help="keep the text of the compiled programs there"
    )
    parser.add_argument("--json", metavar="FILE", default="", help="write all figures to a file")
    args, flags = parser.parse_known_args(argv)
    if bool(args.topology) == bool(args.devices):
        parser.error("say either --topology=v5e:2x4 or --devices=1")
    if args.topology:
        chips.parse(args.topology)
    if args.hlo:
        os.makedirs(args.hlo, exist_ok=True)
    return args, flags


def counts(text):
    """(identities, images, cameras) of IDS,IMAGES,CAMERAS."""
    numbers = tuple(int(n) for n in text.split(","))
    if len(numbers) != 3 or min(numbers) < 1 or numbers[1] < numbers[0]:
        raise ValueError(text)
    return numbers


# ---- where and what
def place_of(args):
    """The Place that the arguments name."""
    import jax

    from reid_jax.train.devices import Devices

    if args.topology:
        return slice_of(args.topology)
    if args.devices > len(jax.devices()):
        raise ConfigError(f"--devices={args.devices}, and this machine has {len(jax.devices())}")
    chosen = jax.devices()[: args.devices]
    chip = chips.of_device(chosen[0])
    limit = (chosen[0].memory_stats() or {}).get("bytes_limit", 0) if chosen[0].platform != "cpu" else 0
    return Place(f"{args.devices} x {chosen[0].device_kind}", chip, Devices(chosen), limit)


def slice_of(topology):
    """The Place of a TPU slice."""
    from reid_jax.train.devices import Devices

    chip, count = chips.parse(topology)
    title = f"{topology}: {count} x {chips.CHIPS[chip].title}"
    return Place(title, chip, Devices(chips.devices(topology)), chips.usable(chip), topology)


def stages_of(config):
    """The stages that the config trains."""
    from reid_jax.train import stages

    return stages.to_train(config)


def of_stage(config, stage, place, args, only="", quiet=False):
    """[Plan] of the programs of a stage; only: the one of this name."""
    from reid_jax.plan import facts, programs
    from reid_jax.train.devices import AXIS

    info = facts.of_config(config, AXIS, args.counts)
    plans = []
    for program in programs.of_stage(config, stage, info, place.devices):
        if only in ("", program.name):
            if not quiet:
                print(f"compiling {program.name} ...", file=sys.stderr, flush=True)
            plan, text = programs.compiled(program, place.devices)
            if args.hlo and text and not quiet:
                tables.write_text(os.path.join(args.hlo, f"{stage}-{slug(program.name)}.hlo"), text)
            plans.append(plan)
    return plans


def slug(name):
    """A program's name without its stage, as a file's."""
    return name.partition(": ")[2].replace(" ", "-").replace("/", "-")


# ---- what is told
def verdict(plan, place):
    """ "fits", or what is missing."""
    if not place.memory:
        return "this device tells no limit"
    peak, memory = plan.peak / GIB, place.memory / GIB
    return (
        f"fits: {peak:.2f} of {memory:.2f} GiB"
        if peak <= memory
        else f"does not fit: {peak:.1f} of {memory:.2f} GiB"
    )


def times(plan, chip):
    """(seconds of computing, seconds of moving bytes) at a chip's peaks."""
    return chips.at_peaks(chip, plan.flops, plan.moved) if chip in chips.CHIPS else (0.0, 0.0)


def print_plans(plans, place):
    """A table of the programs, what each asks of the network, and the same work on other chips."""
    head = ["program", "images", "arguments", "temporaries", "peak GiB", "TFLOP", "GB moved", "compiled in"]
    print(tables.markdown(head, [row(p) for p in plans]))
    for plan in plans:
        print(f"\n{plan.name}: {verdict(plan, place)}")
        if not plan.flops:
            print("  its compiler refuses it, and tells no more of it")
            continue
        if place.chip:
            computing, moving = (1e3 * s for s in times(plan, place.chip))
            limit = "memory" if moving > computing else "computing"
            print(
                f"  at its peaks {computing:.1f} ms of computing, {moving:.1f} ms of memory: bound by {limit}"
            )
        if plan.seconds:
            print(f"  the compiler's own estimate: {1e3 * plan.seconds:.1f} ms")
        for c in plan.collectives:
            print(f"  {c.kind}: {c.calls} calls, {c.bytes / 1e6:.2f} MB")
        print_kernels(plan)
    print_others(plans)


def row(plan):
    """A program's row; of one that its compiler refuses no more is known than what it needs."""
    needs = [f"{b / GIB:.2f}" for b in (plan.arguments, plan.temporaries, plan.peak)]
    work = [f"{plan.flops / 1e12:.3f}", f"{plan.moved / 1e9:.2f}"]
    if not plan.flops:
        needs, work = ["-", "-", needs[-1]], ["-", "-"]
    return [plan.name, str(plan.rows), *needs, *work, f"{plan.compiled_in:.0f} s"]


def print_kernels(plan):
    """Where a program's bytes go, by what its kernels are for."""
    if not plan.kernels:
        return
    rows = [[k.purpose, str(k.calls), f"{k.bytes / 1e9:.2f}", f"{k.single / 1e9:.2f}"] for k in plan.kernels]
    print("\n  where the bytes go:\n")
    print(tables.markdown(["kernels", "number", "GB", "of it float32"], rows))
    print("  products: " + ", ".join(f"{number} {types}" for types, number in plan.products.items()))


def print_others(plans):
    """What the steps need at the peaks of all chips, by the FLOPs and bytes of the one compiled for."""
    plans, rows = [p for p in plans if p.flops], []
    if not plans:
        return
    for name, chip in chips.CHIPS.items():
        longest = [max(times(p, name)) for p in plans]
        rows.append([chip.title, f"{chip.memory:.0f}", f"{chip.tflops:.0f}", f"{chip.bandwidth:.0f}"])
        rows[-1] += [f"{1e3 * s:.1f}" for s in longest]
    head = ["chip", "GiB", "TFLOP/s", "GB/s", *(f"{p.name}, ms" for p in plans)]
    print("\nThe same FLOPs and bytes at the peaks of other chips (at least so long):\n")
    print(tables.markdown(head, rows))


def as_dict(plan, place):
    """A Plan for JSON."""
    result = plan._asdict() | {"peak": plan.peak}
    result |= {name: [x._asdict() for x in result[name]] for name in ("collectives", "kernels")}
    computing, moving = times(plan, place.chip)
    return result | {"verdict": verdict(plan, place), "computing": computing, "moving": moving}


# ---- ways out
def ways_out(config, place, args, too_large):
    """{program: {words: verdict}} of what was tried, printed; more chips last."""
    from reid_jax.plan import facts, ways
    from reid_jax.train.devices import AXIS

    tried = {}
    for plan in too_large:
        stage = plan.name.partition(":")[0]
        info = facts.of_config(config, AXIS, args.counts)
        print(f"\n{plan.name}: {verdict(plan, place)}; tried:", flush=True)
        trials = [(w, c, place) for w, c in ways.of_config(config, ways.stage_method(config, stage, info))]
        if place.topology:
            other = chips.larger(place.topology)
            trials.append((f"--topology={other}", config, other))
        tried[plan.name] = {}
        for words, other, where in trials:
            text = attempt(other, stage, plan.name, where, args)
            tried[plan.name][words] = text
            print(f"  {words}: {text}", flush=True)
    return tried


def attempt(config, stage, name, place, args):
    """The verdict on one program of another config or place, or why it cannot be."""
    try:
        place = slice_of(place) if isinstance(place, str) else place
        (plan,) = of_stage(config, stage, place, args, name, quiet=True)
    except ConfigError as error:
        return f"cannot be: {error}"
    return verdict(plan, place)


def search(config, place, args):
    """{stage: the largest data.ids whose steps fit}, printed."""
    from reid_jax.plan import ways

    if not place.memory:
        raise ConfigError("--search needs a device that tells how much memory it has: use --topology")
    unit = max(len(place.devices.devices) // config.data.instances, 1)
    largest = {}
    for stage in stages_of(config):

        def fits(n, stage=stage):
            trained = of_stage(ways.with_ids(config, n * unit), stage, place, args, quiet=True)[:-1]
            good = all(p.peak <= place.memory for p in trained)
            print(f"  data.ids={n * unit}: {'fits' if good else 'does not fit'}", file=sys.stderr, flush=True)
            return good

        largest[stage] = unit * ways.largest(fits, max(config.data.ids // unit, 1))
        print(f"{stage}: the largest data.ids that fits is {largest[stage]}")
    return largest


if __name__ == "__main__":
    cli.run(main)
