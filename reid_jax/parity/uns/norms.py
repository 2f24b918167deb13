"""Runners of the cases on norms by domain: function name = case name; the docstring's first line is shown."""

import jax
import jax.numpy as jnp

from reid_jax.models import heads, layers, pooling, weights
from reid_jax.models.backbones import resnet
from reid_jax.models.norms import Norms
from reid_jax.parity import nets


def dsbn(case):
    """norms by domain: outputs, running statistics, gradients"""
    m, results = case.config, {}
    options = dict(momentum=1 - m.momentum, epsilon=m.eps)
    module = layers.BatchNorm(domains=m.domains, test_domain=m.target, **options)
    for kind in sorted(k[2:] for k in case.under("in/") if k.startswith("x_")):
        x, upstream = (nets.channels_last(case.input(f"{k}_{kind}")) for k in ("x", "upstream"))
        shapes = jax.eval_shape(lambda x=x: module.init(jax.random.key(0), x, False))
        variables = nets.fill(shapes, case.weights(f"{kind}."), case.dtype)

        def loss(params, x, variables=variables, upstream=upstream):
            y, changed = module.apply(variables | {"params": params}, x, True, mutable=["batch_stats"])
            return (y * upstream).sum(), (y, changed)

        (_, (y, changed)), (grads, grad_x) = jax.value_and_grad(loss, (0, 1), True)(variables["params"], x)
        results |= {f"out/train_{kind}": nets.channels_first(y)}
        results |= {f"out/eval_{kind}": nets.channels_first(module.apply(variables | changed, x, False))}
        results |= {f"grad/train_{kind}/in/x_{kind}": nets.channels_first(grad_x)}
        results |= _entries(f"grad/train_{kind}/{kind}.", {"params": grads})
        results |= _entries(f"out/after_{kind}/{kind}.", changed)
    return results


def dsbn_net(case):
    """a narrow ResNet with norms by domain: training, either domain in test mode"""
    m, x = case.config, nets.channels_last(case.input("image"))
    outs = {name: _net(m, domain) for domain, name in enumerate(("eval_source", "eval_target"))}
    shapes = jax.eval_shape(lambda: outs["eval_target"].init(jax.random.key(0), x, False))
    variables = nets.fill(shapes, case.weights(), case.dtype)

    @jax.jit
    def train(variables):
        return outs["eval_target"].apply(variables, x, True, mutable=["batch_stats"])

    out, changed = train(variables)
    results, moved = {"out/train": out.test}, variables | changed
    results |= {f"out/{name}": net.apply(moved, x, False).test for name, net in outs.items()}
    return results | _spelled(_entries("out/after/", changed, weights.guess(case.weights())))


def _net(m, domain):
    """The recorded net; test mode by one domain."""
    norms = Norms(domains=2, test_domain=domain)
    fields = dict(stem_relu=m.stem_relu, width=m.width, norms=norms)
    trunk = resnet.ResNet(resnet.Bottleneck, tuple(m.blocks), m.last_stride, **fields)
    pool = {"avg": pooling.Average(), "gem": pooling.Gem()}[m.pool]
    return heads.ReIDNet(trunk, heads.ContrastHead(pool, domains=2, test_domain=domain, bias=True))


def _spelled(entries):
    """Entries under SpCL's names of the domains."""
    return {k.replace("dsbn.0", "BN_S").replace("dsbn.1", "BN_T"): v for k, v in entries.items()}


def _entries(prefix, variables, naming="torchvision"):
    return {f"{prefix}{k}": jnp.asarray(v) for k, v in nets.torch_entries(variables, naming).items()}
