"""What devices of a data-parallel run send each other, and the efficiency to expect of it: a MODEL.

From a plan (`reid_jax plan --topology=v5e:2x4 --json=FILE`, then --plan=FILE): FLOPs, bytes moved and
collectives of the very programs of a run as the chip's own compiler makes them; a device computes for the
longer of FLOPs and bytes at its vendor's peaks. What is gathered grows with the devices.

Without one: FLOPs of the compiled step (XLA's cost analysis), and bytes and calls of every collective in the
traced step, for each number of devices; a device computes at `--utilisation` of its vendor's peak (bfloat16).

Modelled in both: a reduction moves 2 (N - 1) / N of its bytes through a device's link, a gathering (or its
gradient) (N - 1) / N of the whole; every call costs `--latency` log2 N, neighbouring reductions being one
call, as XLA joins them; nothing overlaps. Efficiency is computing time over the whole. Input, stragglers
and overlap (which XLA does) are left out.
"""

import math
from typing import NamedTuple

import jax

from reid_jax import cli, methods
from reid_jax.benchmarks import step
from reid_jax.errors import ConfigError
from reid_jax.models import layers
from reid_jax.plan import stored
from reid_jax.plan.chips import CHIPS, at_peaks
from reid_jax.train.devices import AXIS


class Device(NamedTuple):
    """A chip of plan.chips and the network beyond the fast one of its `island`."""

    chip: str
    island: int  # devices on the fast network
    far: float  # GB/s of its share of the network beyond, in one direction


DEVICES = {
    "A100 SXM, 200 Gb/s each": Device("a100", 8, 25),
    "H100 SXM, 400 Gb/s each": Device("h100", 8, 50),
    "TPU v5e, one pod": Device("v5e", 256, 0),
}
REDUCE = ("psum", "psum2", "psum_invariant", "pmax", "pmin")
GATHER = ("all_gather", "all_gather_invariant")
SCATTER = ("reduce_scatter",)  # the gradient of a gathering


def main(argv):
    """Runs the benchmark with these command line arguments; prints a table, returns the figures."""
    parser = cli.parser("benchmarks scaling", __doc__)
    parser.add_argument("--step", choices=("baseline", "efl", "dsanet"), default="efl")
    parser.add_argument("--size", choices=step.SIZES, default="full")
    parser.add_argument("--batch", type=cli.whole(1), default=64, help="images (dsanet: clips) of a device")
    parser.add_argument("--bn", choices=("device", "global"), default="device", help="config.model.bn_group")
    parser.add_argument("--devices", default="1,8,64,256")
    parser.add_argument("--utilisation", type=float, default=0.3, help="share of the peak while computing")
    parser.add_argument("--latency", type=float, default=10.0, help="microseconds")
    parser.add_argument(
        "--plan", metavar="FILE", default="", help="what plan --json wrote, for --step to --bn"
    )
    args = parser.parse_args(argv)
    if args.plan:
        return of_plan(args)
    figures = {"benchmark": "scaling", "step": args.step, "batch": args.batch, "bn": args.bn}
    figures |= {"utilisation": args.utilisation, "latency": args.latency, "jax": jax.__version__}
    with layers.form("plain"):
        figures["gflop"] = gflop(args)
        print(f"{args.step}, {args.batch} images a device: {figures['gflop']:.0f} GFLOP a step and device")
        figures["devices"] = {n: at(n, args, figures["gflop"]) for n in map(int, args.devices.split(","))}
    print_table(figures["devices"])
    return figures


# ---- from a plan
def of_plan(args):
    """Prints a table for every program of a plan that trains, returns the figures."""
    plan = stored.read(args.plan)
    if plan["devices"] < 2:
        raise ConfigError(f"--plan={args.plan} is of one device: plan with --topology=v5e:2x4")
    figures = {"benchmark": "scaling", "plan": plan["place"], "latency": args.latency, "programs": {}}
    for program in plan["programs"]:
        work = program["flops"], program["moved"]
        print(f"{program['name']}, {program['rows']} images a device, as compiled for {plan['place']}:")
        print(f"{work[0] / 1e12:.2f} TFLOP and {work[1] / 1e9:.1f} GB moved a step and device")
        rows = {}
        for n in map(int, args.devices.split(",")):
            sent = sent_by(program, plan["devices"], n)
            shares = {
                name: efficiency(d, n, sent, max(at_peaks(d.chip, *work)), args)
                for name, d in DEVICES.items()
            }
            rows[n] = sent | {"efficiency": shares}
        print_table(rows)
        figures["programs"][program["name"]] = rows
    return figures


def sent_by(program, planned, devices):
    """{"reduced_mb", "gathered_mb", "calls"} on `devices` of a program that is compiled for `planned`.

    What is gathered is the whole, every device's share of it being the same on any number.
    """
    sent = {"reduced_mb": 0.0, "gathered_mb": 0.0, "calls": 0}
    for c in program["collectives"] if devices > 1 else ():
        if c["kind"] not in ("all-reduce", "all-gather", "reduce-scatter"):
            raise ConfigError(f"--plan: the collective {c['kind']} is not in the model")
        size = c["bytes"] / 1e6
        if c["kind"] == "all-reduce":
            sent["reduced_mb"] += size
        else:
            sent["gathered_mb"] += size * devices / (planned if c["kind"] == "all-gather" else 1)
        sent["calls"] += c["calls"]
    return sent


# ---- from the traced step
def stage_of(args, axis_name):
    """(Method, batch) of the step that is looked at."""
    options = step.parse(["--size", args.size, "--dtype", "bfloat16", "--batch", str(args.batch)])
    config, size = step.config_of(args.step, options)
    config.model.bn_group = args.bn
    info = methods.Info(step.NUM_PIDS, step.NUM_CAMS, 100, 1000, axis_name)
    return methods.build(config, "train", info), {"train": step.random_batch(config.data, size)}


def gflop(args):
    """Of a step on one device, by XLA's cost analysis."""
    method, batch = stage_of(args, None)
    state = jax.eval_shape(method.init, jax.random.key(0))
    cost = jax.jit(method.step).lower(state, batch).compile().cost_analysis()
    return (cost[0] if isinstance(cost, list) else cost)["flops"] / 1e9


def at(devices, args, gflop):
    """Figures for a number of devices: MB and calls of the collectives, efficiency on DEVICES."""
    method, batch = stage_of(args, AXIS if devices > 1 else None)
    state = jax.eval_shape(stage_of(args, None)[0].init, jax.random.key(0))
    traced = jax.make_jaxpr(method.step, axis_env=[(AXIS, devices)] if devices > 1 else [])(state, batch)
    sent = collectives(traced.jaxpr, devices)
    shares = {
        name: efficiency(d, devices, sent, gflop / (CHIPS[d.chip].tflops * 1e3 * args.utilisation), args)
        for name, d in DEVICES.items()
    }
    return sent | {"efficiency": shares}


def collectives(jaxpr, devices, times=1):
    """{"reduced_mb", "gathered_mb" (what each device gets), "calls"} of a traced step, loops unrolled."""
    totals, joined = {"reduced_mb": 0.0, "gathered_mb": 0.0, "calls": 0}, False
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        axes = eqn.params.get("axes", eqn.params.get("axis_name", ()))
        if AXIS in (axes if isinstance(axes, tuple) else (axes,)) and name != "axis_index":
            if name not in (*REDUCE, *GATHER, *SCATTER):
                raise NotImplementedError(f"the collective {name} is not in the model")
            field = "reduced_mb" if name in REDUCE else "gathered_mb"
            sides = eqn.outvars if name in GATHER else eqn.invars
            size = sum(math.prod(v.aval.shape) * v.aval.dtype.itemsize for v in sides)
            totals[field] += times * size / 1e6
            totals["calls"] += 0 if joined and name in REDUCE else times
            joined = name in REDUCE
        else:
            joined = joined and name in ("div", "mul", "convert_element_type")  # a mean's
        inner = times * eqn.params.get("length", 1) if name == "scan" else times
        for sub in _inner(eqn.params):
            for key, value in collectives(sub, devices, inner).items():
                totals[key] += value
    return totals


def _inner(params):
    """The jaxprs in the parameters of an equation."""
    for value in jax.tree.leaves(params, is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr")):
        value = getattr(value, "jaxpr", value)
        if hasattr(value, "eqns"):
            yield value


def efficiency(device, devices, sent, computing, args):
    """Computing time (seconds) over computing and sending time, 0 to 1."""
    if devices == 1:
        return 1.0
    link = CHIPS[device.chip].link if devices <= device.island else device.far
    moved = (2 * sent["reduced_mb"] + sent["gathered_mb"]) * (devices - 1) / devices
    sending = moved / (link * 1e3) + sent["calls"] * args.latency * 1e-6 * math.log2(devices)
    return computing / (computing + sending)


def print_table(rows):
    names = list(DEVICES)
    print("| devices | reduced, MB | gathered, MB | calls | " + " | ".join(names) + " |")
    print("|---" * (4 + len(names)) + "|")
    for n, r in rows.items():
        shares = " | ".join(f"{100 * r['efficiency'][name]:.0f} %" for name in names)
        print(f"| {n} | {r['reduced_mb']:.1f} | {r['gathered_mb']:.2f} | {r['calls']} | {shares} |")
