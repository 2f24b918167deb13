"""OSNets: a block, whole nets, whole nets in training."""

import jax
import jax.numpy as jnp
import numpy as np

from reid_jax.losses import identity
from reid_jax.models.backbones.osnet import KEYS, OSBlock
from reid_jax.parity import nets


def osblock(case):
    """OSNet's block: output, running statistics, gradients"""
    return _block(case, "osnet", "after" if case.config.instance_norm else "")


def osblock_in_inside(case):
    """OSNet-AIN's block: output, running statistics, gradients"""
    return _block(case, "osnet_ain", "inside")


def _block(case, layout, instance):
    """As nets.module_results, of a block that has a place in a net: `conv2.0` in this layout."""
    m, x, weight = case.config, *(nets.channels_last(case.input(k)) for k in ("x", "weight"))
    sizes = dict(reduction=m.reduction, gate_reduction=m.gate_reduction, streams=getattr(m, "streams", 4))
    block = OSBlock(m.out_channels, instance, **sizes)
    shapes = jax.eval_shape(lambda: block.init(jax.random.key(0), x, False))
    placed = {collection: {"base": {"conv2_0": tree}} for collection, tree in shapes.items()}
    entries = {f"conv2.0.{k}": v for k, v in case.weights().items()}
    filled = nets.fill(placed, entries, case.dtype, layout=layout)
    variables = {collection: tree["base"]["conv2_0"] for collection, tree in filled.items()}

    def loss(params, x):
        y, changed = block.apply({**variables, "params": params}, x, case.train, mutable=["batch_stats"])
        return (y * weight).sum(), (y, changed)

    descend = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    (_, (y, changed)), (grads, grad_x) = descend(variables["params"], x)
    results = {"out/y": nets.channels_first(y), "grad/in/x": nets.channels_first(grad_x)}
    for front, tree in (("grad/", {"params": grads}), ("out/after/", changed)):
        tree = {collection: {"base": {"conv2_0": t}} for collection, t in tree.items()}
        entries = nets.torch_entries(tree, layout)
        results |= {front + k.removeprefix("conv2.0."): v for k, v in entries.items()}
    return results


def osnet(case):
    """OSNet: maps, pooled, feature"""
    return _net(case)


def osnet_ibn(case):
    """OSNet-IBN: maps, pooled, feature"""
    return _net(case)


def osnet_ain(case):
    """OSNet-AIN: maps, pooled, feature"""
    return _net(case)


def osnet_train(case):
    """OSNet in training: maps, loss, gradients, running statistics"""
    return _net(case)


def osnet_ain_train(case):
    """OSNet-AIN in training: maps, loss, gradients, running statistics"""
    return _net(case)


def _net(case):
    m, entries = case.config, case.weights()
    layout = next(name for name, keys in KEYS.items() if keys.matches(entries))
    dim = len(entries["fc.0.weight"])
    net = nets.build(m.classes, backbone=m.variant, head="fc", fc_dim=dim)
    x = nets.channels_last(case.input("image"))
    variables = nets.net_variables(case, net, x)

    def loss(params):
        all_variables = {**variables, "params": params}
        options = dict(mutable=["batch_stats", "intermediates"], capture_intermediates=_watched)
        out, changed = net.apply(all_variables, x, case.train, **options)
        results = {"pooled": out.before_bn[0], "feature": out.after_bn[0], "logits": out.logits[0]}
        results |= _moments(changed["intermediates"]["base"], layout)
        if "in/target" not in case.arrays:
            return jnp.zeros(()), (results, changed["batch_stats"])
        smooth = getattr(m, "label_smooth", 0.0)
        total = identity.cross_entropy(out.logits[0], case.input("target"), label_smooth=smooth)
        return total, (results | {"loss": total}, changed["batch_stats"])

    descend = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (_, (results, stats)), grads = descend(variables["params"])
    after = nets.torch_entries({"batch_stats": stats}, layout)
    results |= {f"after/{k}": v for k, v in after.items()}
    return nets.out(results) | gradients(case, nets.torch_entries({"params": grads}, layout))


def _watched(module, method):
    """The maps that cases describe are outputs of these."""
    return module.path[:1] == ("base",) and len(module.path) == 2 or method in ("stem", "stage")


def _moments(seen, layout):
    """{mean_NAME, std_NAME} of the maps and the shape of the last one.

    osnet's conv2 and conv3 end with their transitions, osnet_ain's do not.
    """
    stem, stages = seen["stem"][0], seen["stage"]
    maps = {"conv1": stem} | {f"conv{i + 2}": y for i, y in enumerate(stages)}
    if layout == "osnet_ain":
        for i in (2, 3):
            maps[f"pool{i}"] = maps[f"conv{i}"]
            maps[f"conv{i}"] = seen[f"conv{i}_1"]["__call__"][0]
    results = {f"{moment}_{name}": f(y) for name, y in maps.items() for moment, f in nets.MOMENTS.items()}
    return results | {"last_map_shape": jnp.array(nets.channels_first(stages[-1]).shape)}


def gradients(case, grads):
    """{grad/loss/KEY, out/gradnorm/loss} from {PyTorch key: gradient}, in the recorded order of the names."""
    names = case.arrays.get("out/gradnorm_names/loss", np.array([], str))
    norms = np.array([np.linalg.norm(grads[name]) for name in names.tolist()])
    results = {"out/gradnorm_names/loss": names, "out/gradnorm/loss": norms}
    return results | {f"grad/loss/{k}": v for k, v in grads.items()}
