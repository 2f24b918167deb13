"""What runners share: weights into modules, modules with gradients, whole nets stage by stage."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from reid_jax.config import defaults, namespace
from reid_jax.errors import WeightsError
from reid_jax.models import heads, layers, weights


class TinyTrunk(nn.Module):
    """The backbone of the recorded training steps: two strided 3x3 convolutions."""

    width: int
    dim: int
    domains: int = 1

    @nn.compact
    def __call__(self, x, train):
        for i, features in ((1, self.width), (2, self.dim)):
            x = layers.Conv(features, 3, 2, 1, name=f"conv{i}")(x)
            x = nn.relu(layers.BatchNorm(domains=self.domains, name=f"bn{i}")(x, train))
        return x


def channels_last(x):
    """Reference layout N C (T) H W -> N (T) H W C."""
    return jnp.moveaxis(x, 1, -1)


def channels_first(x):
    return jnp.moveaxis(x, -1, 1)


def fill(shapes, entries, dtype, optional=(), layout=""):
    """Variables of these shapes from {PyTorch key: array}; WeightsError when an entry is missing.

    optional: modules the reference has not; theirs are zero. layout: of the keys, told from them if ''.
    """
    zeros = jax.tree.map(lambda s: np.zeros(s.shape, dtype), shapes)
    entries = {k: v for k, v in entries.items() if not k.endswith("num_batches_tracked")}
    variables, report = weights.load(entries, zeros, layout)
    missing = [k for k in report["missing"] if k.split(".")[0] not in optional]
    if missing:
        raise WeightsError(f"the case has no weights {', '.join(missing[:5])}")
    return variables


def quickly(function, **options):
    """The function, compiled without the forms of convolutions for CPUs, which take minutes to compile.

    options: of jax.jit. Tests hold both forms equal, with their gradients.
    """

    def plain(*args):
        with layers.form("plain"):
            return function(*args)

    return jax.jit(plain, **options)


def module_results(case, module, *args, joined=lambda y: y):
    """Results of a module recorded with `in/x` and gradients of sum(y * in/weight).

    args: further arguments of the module, e.g. train. joined: from our output to the reference's axes,
    channels last.
    """
    x, weight = channels_last(case.input("x")), channels_last(case.input("weight"))
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), x, *args))
    variables = fill(shapes, case.weights(), case.dtype)

    def loss(params, x):
        all_ = {**variables, "params": params}
        y, changed = module.apply(all_, x, *args, mutable=["batch_stats"])
        y = joined(y)
        return (y * weight).sum(), (y, changed)

    descend = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (_, (y, changed)), (grads, grad_x) = descend(variables["params"], x)
    results = {"out/y": channels_first(y), "grad/in/x": channels_first(grad_x)}
    results |= {f"grad/{k}": v for k, v in torch_entries({"params": grads}).items()}
    return results | {f"out/after/{k}": v for k, v in torch_entries(changed).items()}


def torch_entries(variables, naming="torchvision"):
    """{PyTorch key: array} of variables or a part of them."""
    return weights.to_torch(jax.tree.map(np.asarray, dict(variables)), naming)


def build(num_classes, num_features=0, **fields):
    """Net of config.model with these fields changed."""
    return heads.build(namespace(defaults()["model"] | fields), num_classes, num_features=num_features)


def net_variables(case, net, x, entries=None, optional=("classifier",)):
    """The case's weights (or `entries`) in a ReIDNet; modules in `optional` may be absent from them."""
    shapes = jax.eval_shape(heads.encoder(net).init, jax.random.key(0), x)
    return fill(shapes, case.weights() if entries is None else entries, case.dtype, optional)


def net_results(net, variables, x, train, naming="torchvision"):
    """All that cases record of a ReIDNet, under the names without `out/`.

    mean_STAGE, std_STAGE over each map (conv1, bn1, stem, maxpool, layer1 to layer4) by image or clip and
    channel; last_map_shape; pooled, pooled_max, frames, feature, unit (normalised feature), logits; in
    training after/KEY.
    """
    places = _places(variables)

    def keep(module, method):
        path = module.path
        return (method == "__call__" and path in places) or (method, path) in (
            ("pool", ("base",)),
            ("vectors", ()),
        )

    def forward(variables, x):
        mutable = ["batch_stats", "intermediates"]
        out, changed = net.apply(variables, x, train, mutable=mutable, capture_intermediates=keep)
        seen = changed["intermediates"]
        maps = {name: _captured(seen, path) for path, name in places.items()}
        maps["maxpool"] = seen["base"]["pool"][0]
        results = {f"{moment}_{name}": f(y) for name, y in maps.items() for moment, f in MOMENTS.items()}
        results["pooled_max"] = heads.spatial_pool(maps["layer4"], "max")
        results["frames"] = seen["vectors"][0]
        results["last_map_shape"] = jnp.array(channels_first(maps["layer4"]).shape)
        outputs = {"pooled": out.before_bn[0], "feature": out.after_bn[0], "logits": out.logits[0]}
        return results | outputs, changed

    results, changed = jax.jit(forward)(variables, x)
    feature = results["feature"]
    results["unit"] = feature / jnp.maximum(jnp.linalg.norm(feature, axis=1, keepdims=True), 1e-12)
    if train:
        after = torch_entries({"batch_stats": changed["batch_stats"]}, naming)
        results |= {f"after/{k}": v for k, v in after.items()}
    return results


MOMENTS = {
    "mean": lambda y: y.mean(tuple(range(1, y.ndim - 1))),
    "std": lambda y: y.std(tuple(range(1, y.ndim - 1))),
}


def _places(variables):
    """{module path: recorded name} of the stem's layers and each stage's last block."""
    modules = variables["params"]["base"]
    places = {("base", "conv1"): "conv1", ("base", "bn1"): "bn1", ("base", "conv1_6"): "stem"}
    last = {}
    for name in modules:
        if match := re.fullmatch(r"(layer\d|NL_\d)_(\d+)", name):
            last[match[1]] = max(int(match[2]), last.get(match[1], 0))
    places |= {("base", f"{stage}_{block}"): stage for stage, block in last.items()}
    return {path: name for path, name in places.items() if path[1] in modules}


def _captured(tree, path):
    for name in path:
        tree = tree[name]
    return tree["__call__"][0]


def out(results):
    """Names with `out/` in front."""
    return {f"out/{k}": v for k, v in results.items()}
