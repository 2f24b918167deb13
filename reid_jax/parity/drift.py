"""How far float32 and bfloat16 take a backbone from float64: `python -m reid_jax.parity.drift [BACKBONE...]`.

Weights follow the recipe of the recorded cases (`case.recipe`), inputs are seeded noise. Error: largest
difference of the pooled vectors over their largest value, as in the parity table; and one minus the cosine
similarity of the features, which is what retrieval sees.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np

from reid_jax import cli
from reid_jax.config import defaults, namespace
from reid_jax.models import backbones, heads
from reid_jax.parity import nets
from reid_jax.parity.case import recipe

TYPES = {"float64": jnp.float64, "float32": jnp.float32, "bfloat16": jnp.float32}  # of state and input


def main(argv=None):
    """Prints a Markdown table and, as the last line, JSON."""
    parser = cli.parser("parity.drift", __doc__)
    parser.add_argument("backbones", nargs="*", metavar="BACKBONE", help="default: all at full size")
    parser.add_argument("--batch", type=cli.whole(1), default=4, help="images, or clips of 4 frames")
    parser.add_argument("--height", type=cli.whole(1), default=256)
    parser.add_argument("--width", type=cli.whole(1), default=128)
    args = parser.parse_args(argv)
    jax.config.update("jax_platforms", "cpu")
    names = args.backbones or [b for b in heads.BACKBONES if "narrow" not in b]
    print("| backbone | mode | float32 error | bfloat16 error | float32 1 - cos | bfloat16 1 - cos |")
    print("|---|---|---|---|---|---|", flush=True)
    rows = {}
    for name in names:
        for train in (False, True):
            mode = "train" if train else "test"
            drifts = rows[f"{name} {mode}"] = measure(name, train, args.batch, args.height, args.width)
            numbers = (f"{drifts[t][k]:.1e}" for k in ("error", "angle") for t in ("float32", "bfloat16"))
            print(f"| {name} | {mode} | {' | '.join(numbers)} |", flush=True)
    print(json.dumps(rows))


def measure(backbone, train, batch, height, width):
    """{"float32" | "bfloat16": {"error", "angle"}} of a backbone's pooled vectors against float64."""
    clip = (4,) if "3d" in backbone or "c2d" in backbone else ()
    x = np.random.default_rng(0).standard_normal((batch, *clip, height, width, 3)).astype(np.float32)
    exact = pooled(backbone, train, x, "float64")
    return {t: errors(pooled(backbone, train, x, t), exact) for t in ("float32", "bfloat16")}


def pooled(backbone, train, x, precision):
    """Pooled vectors f64[B,D] of a net in one compute type."""
    with jax.enable_x64(precision == "float64"):
        x = jnp.asarray(x, TYPES[precision])
        dtype = "bfloat16" if precision == "bfloat16" else "float32"
        net = nets.build(1, backbone=backbone, head=head_of(backbone), neck="none", dtype=dtype)
        shapes = jax.eval_shape(heads.encoder(net).init, jax.random.key(0), x)
        keys = nets.torch_entries(jax.tree.map(lambda s: np.empty(s.shape, np.float32), shapes))
        entries = {k: recipe(k, v.shape, 0) for k, v in keys.items()}
        variables = nets.fill(shapes, entries, TYPES[precision], layout="torchvision")
        run = jax.jit(lambda v, x: net.apply(v, x, train, mutable=["batch_stats"])[0].before_bn[0])
        return np.asarray(run(variables, x), np.float64)


def head_of(backbone):
    """A head that stands on a backbone."""
    base = backbones.build(namespace(defaults()["model"] | {"backbone": backbone}))
    return "token" if base.tokens else "global"


def errors(got, exact):
    cos = (got * exact).sum(1) / (np.linalg.norm(got, axis=1) * np.linalg.norm(exact, axis=1))
    return {"error": float(np.abs(got - exact).max() / np.abs(exact).max()), "angle": float((1 - cos).max())}


if __name__ == "__main__":
    main()
