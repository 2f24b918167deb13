"""The second stage: attention, both DFENs."""

import jax
import jax.numpy as jnp

from reid_jax.methods.direid import attention as attentions
from reid_jax.methods.direid import dfen as second
from reid_jax.models import modes
from reid_jax.parity import nets
from reid_jax.parity.direid import _build


def attention(case):
    """attention modules: every branch, both modes"""
    f_sen, f_d, entries, results = case.input("f_sen"), case.input("f_d"), case.weights(), {}

    def size(key):
        return len(entries[key])

    latent = size("guided.deg2latent.fc.bias")
    guided = attentions.GuidedAttention(
        size("guided.latent2weight.weight"), size("guided.identity2latent.model.0.fc.bias"), latent
    )
    calls = {
        "from_deg": (guided, "guided.", (f_sen, f_d, True)),
        "from_id": (guided, "guided.", (f_sen, f_d, False)),
        "self": (guided, "guided.", (f_sen, None, None)),
    }
    for form in ("sigmoid", "softmax"):
        outputs, hidden = (size(f"free_{form}.mlp.model.{i}.fc.bias") for i in (3, 0))
        pairs = form == "softmax"
        module = attentions.Attention(outputs // (1 + pairs), hidden, pairs)
        calls[f"free_{form}"] = (module, f"free_{form}.", (f_d,))
    for name, (module, prefix, args) in calls.items():
        shapes = jax.eval_shape(lambda m=module, a=args: m.init(jax.random.key(0), *a, False))
        variables = nets.fill(shapes, case.weights(prefix), case.dtype, layout="direid")
        for mode in ("eval", "train"):
            results[f"out/{mode}/{name}"] = modes.call(module, variables, *args, train=mode == "train")[0]
    return results


def _second_stage(case, shared, source):
    """(variables, Dfen) of a case's networks; source: config.direid.attention_input."""
    fields = dict(dfen="shared" if shared else "dual", replay="off", attention_input=source)
    if source != "none":
        fields["attention_form"] = "guided"
    method = second.Dfen(_build.config(case, direid=fields), _build.INFO)
    entries = {n: case.weights(f"{n}.") for n in method.modules}
    method.modules["E_con"] = _build.content_encoder(entries["E_con"])
    method.modules["E_id"] = _build.identity_encoder(entries["E_id"], shared)
    method.modules["C"] = _build.class_block(entries["C"], "")
    if source != "none":
        sizes = ("latent2weight.weight", "identity2latent.model.0.fc.bias", "deg2latent.fc.bias")
        method.modules["A_deg"] = attentions.GuidedAttention(*(len(entries["A_deg"][k]) for k in sizes))
    if source == "code":
        method.modules["E_deg"] = _build.degradation_encoder(entries["E_deg"])
    shapes = jax.eval_shape(lambda: method.init_networks(jax.random.key(0), _build.image(case, "x")))
    variables = {n: nets.fill(s, entries[n], case.dtype, layout="direid") for n, s in shapes.items()}
    return jax.tree.map(jnp.asarray, variables), method


def dfen(case):
    """DFEN on one stem: logits, features, test features, with and without attention"""
    x, results = _build.image(case, "x"), {}
    for prefix, source in (("", "none"), ("att/", "self")):
        variables, method = _second_stage(case, True, source)
        out, _ = jax.jit(lambda v, m=method: m.forward(v, x, case.train))(variables)
        results |= {f"out/{prefix}{k}": v for k, v in out._asdict().items()}
        results |= {f"out/{prefix}test_{k}": v for k, v in out.test().items()}
    return results


def dfen_dual(case):
    """DFEN with two backbones: logits, features by both ways of the attention"""
    x, results = _build.image(case, "x"), {}
    for name, source in (("from_deg", "code"), ("from_id", "self")):
        variables, method = _second_stage(case, False, source)
        if source == "code":
            results["out/f_d"] = method.apply(variables, "E_deg", x)
        out, _ = jax.jit(lambda v, m=method: m.forward(v, x, case.train))(variables)
        results |= {f"out/{name}/{k}": v for k, v in out._asdict().items()}
    return results
