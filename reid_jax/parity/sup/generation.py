"""DG-Net and CycleGANs."""

import re

import jax
import jax.numpy as jnp
import numpy as np

from reid_jax import methods
from reid_jax.config import namespace
from reid_jax.errors import ConfigError
from reid_jax.losses import generation
from reid_jax.methods import Info
from reid_jax.methods.camstyle import cycles
from reid_jax.methods.dgnet import nets as networks
from reid_jax.methods.dgnet import swap, terms
from reid_jax.models import cyclegan as cyclegans
from reid_jax.models import gan
from reid_jax.parity import nets

STYLES = terms.STYLES  # in the order of the reference's numbers


def _usual(m):
    """ConfigError for values that stand for other networks than the published ones."""
    usual = dict(activ="lrelu", dec="basic", dropout=0, mlp_norm="none", non_local=0, pad_type="reflect")
    usual |= dict(tanh=False, gan_type="lsgan", norm="none")
    for name, value in m.items():
        if name in usual and value != usual[name]:
            raise ConfigError(f"{name} is {value!r}; there is only {usual[name]!r}")


def _renamed(entries, doublings=2):
    """Entries in our names for G and D: {key: array}."""
    ups = {str(3 + 2 * i): f"up.{i}.conv" for i in range(doublings)}
    last = {str(2 + 2 * doublings + i): f"convs.{i}" for i in range(3)}

    def ours(key):
        key = re.sub(r"^dec\.model\.1\.", "dec.res.", key)
        key = re.sub(r"^dec\.model\.(\d+)\.", lambda f: f"dec.{(ups | last)[f[1]]}.", key)
        return re.sub(r"^cnns\.", "nets.", key)

    return {ours(k): v for k, v in entries.items()}, {ours(k): k for k in entries}


class _Net:
    """A module with a case's weights, and the reference's keys of what belongs to it."""

    def __init__(self, case, module, entries, *args, doublings=2):
        self.module = module
        entries, self.key = _renamed(entries, doublings)
        shapes = jax.eval_shape(lambda: dict(module.init(jax.random.key(0), *args)))
        self.variables = jax.tree.map(jnp.asarray, nets.fill(shapes, entries, case.dtype, layout="direid"))

    def entries(self, tree, prefix=""):
        """{the reference's key: array} of variables or a part of them."""
        named = nets.torch_entries(tree, "direid")
        named = {re.sub(r"^E_id\.model\.", "model.", k): v for k, v in named.items()}
        return {prefix + self.key.get(k, k): v for k, v in named.items()}


def _norms(case, place, grads):
    """Norms of the gradients {key: array} and their names, in the case's order."""
    names = case.arrays[f"out/gradnorm_names/{place}"].tolist()
    return {
        f"out/gradnorm_names/{place}": np.array([n for n in names if n in grads]),
        f"out/gradnorm/{place}": np.array([np.linalg.norm(grads[n]) for n in names if n in grads]),
    }


def dgnet_encoder(case):
    """structure encoder: output, gradients of all parameters and of the image"""
    m = case.config
    _usual(vars(m))
    x, weight = nets.channels_last(case.input("x")), nets.channels_last(case.input("weight"))
    net = _Net(case, networks.StructureEncoder(m.dim, m.n_res, m.n_downsample), case.weights(), x)

    def loss(params, x):
        y = net.module.apply({"params": params}, x)
        return (y * weight).sum(), y

    (grads, grad_x), y = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(net.variables["params"], x)
    results = {f"grad/{k}": v for k, v in net.entries({"params": grads}).items()}
    return results | {"out/y": nets.channels_first(y), "grad/in/x": nets.channels_first(grad_x)}


def dgnet_decoder(case):
    """decoder with its MLPs: image, gradients of structure and code, norms of all gradients"""
    m = case.config
    _usual(vars(m))
    s, weight, a = (
        nets.channels_last(case.input("s")),
        nets.channels_last(case.input("weight")),
        case.input("a"),
    )
    module = gan.Generator(s.shape[-1], m.mlp_dim, m.n_res, m.parts, m.n_downsample, True)
    net = _Net(case, module, case.weights(), s, a, doublings=m.n_downsample)

    def loss(params, s, a):
        y = net.module.apply({"params": params}, s, a)
        return (y * weight).sum(), y

    (grads, grad_s, grad_a), y = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(
        net.variables["params"], s, a
    )
    results = {"out/y": nets.channels_first(y), "grad/in/s": nets.channels_first(grad_s), "grad/in/a": grad_a}
    return results | _norms(case, "y", net.entries({"params": grads}))


def dgnet_discriminator(case):
    """discriminator: maps, both losses, penalty, gradients of second order"""
    m = case.config
    _usual(vars(m))
    fake, real = (nets.channels_last(case.input(n)) for n in ("fake", "real"))
    module = gan.Discriminator(m.num_scales, m.dim, m.n_res, bias=True, halvings=m.n_layer)
    net = _Net(case, module, case.weights(), real)
    scales = m.num_scales

    def dis(params):
        value = generation.dis(module, {"params": params}, fake, real, penalty=m.LAMBDA)
        _, squares = generation.penalised(module, {"params": params}, real, lambda o: o)
        return scales * value, m.LAMBDA * sum(s.mean() for s in squares)

    def gen(fake):
        return scales * generation.gen(module, net.variables, fake)

    params = net.variables["params"]
    (value, reg), grads = jax.jit(jax.value_and_grad(dis, has_aux=True))(params)
    gen_value, grad = jax.jit(jax.value_and_grad(gen))(fake)
    maps = module.apply(net.variables, real)
    results = {f"out/map{s}": nets.channels_first(o) for s, o in enumerate(maps)}
    results |= {"out/dis": value, "out/reg": reg, "out/gen": gen_value}
    results |= {f"grad/dis/{k}": v for k, v in net.entries({"params": grads}).items()}
    return results | {"grad/gen/in/fake": nets.channels_first(grad)}


# ---- a whole iteration


def dgnet_step(case):
    """a whole iteration by the library's step, both draws: pictures, terms, gradients, moves, statistics"""
    m = case.config
    method = swap.Dgnet(_step_config(m, case.input("x_a").shape), Info(num_pids=m.ID_class, num_cams=1))
    parts, state = _step_state(case, method)
    x = _step_batch(case)
    results = {}

    def run(state, encoder):
        draws = swap.Draws(encoder, jax.random.key(0))
        grads, stats, state, values, out = method.gradients(state, x, draws)
        return grads, values, method.moved(state, grads, stats), out

    run = nets.quickly(run)
    weights = method.weights(state.step, after=True)
    for place, encoder in (("structure", True), ("image", False)):
        grads, values, new, out = run(state, jnp.bool_(encoder))
        results |= {f"out/forward/{k}": v for k, v in _forwarded(out).items()}
        results |= {f"out/{place}/{k}": v for k, v in _terms(values, method.config.dgnet).items()}
        results[f"out/{place}/weights"] = jnp.stack(
            [weights[n] for n in ("code", "structure", "cycle", "teacher")]
        )
        grad_entries = {k: v for n, g in grads.items() for k, v in parts[n].items({"params": g}).items()}
        results |= _norms(case, place, grad_entries)
        moved, after = {}, {}
        for n in grads:
            before = parts[n].items(state.nets[n])
            entries = parts[n].items(new.nets[n])
            after |= entries
            moved |= {k: np.linalg.norm(v - before[k]) for k, v in entries.items()}
        for net in ("gen", "dis", "id"):
            keys = [k for k in _parameters(case) if k.startswith(f"{net}.")]
            results[f"out/{place}/moved_{net}"] = np.array([moved.get(k, 0.0) for k in keys])
        wanted = case.under(f"out/{place}/after/")
        results |= {f"out/{place}/after/{k}": after[k] for k in wanted if k in after}
    return results


def _step_config(m, shape):
    """The config of a case's iteration, of number m.iteration; shape: of its images, N C H W."""
    _usual(m.gen | m.dis)
    if m.ID_style != "AB" or m.single != "gray" or not m.use_decoder_again or m.erasing_p or m.vgg_w:
        raise ConfigError("the case's iteration has settings that the published ones have not")
    tree = methods.defaults("dgnet")
    tree["data"].update(height=shape[2], width=shape[3], erase=0.0)
    tree["model"].update(backbone="slim", slim_width=m.id_width, slim_blocks=tuple(m.id_blocks))
    tree["model"].update(last_stride=m.ID_stride, pool=m.pool)
    tree["optim"].update(lr=m.lr_g, b1=m.beta1, b2=m.beta2, weight_decay=m.weight_decay, gamma=m.gamma)
    gen, dis, after = m.gen, m.dis, m.iteration - 1
    tree["dgnet"].update(
        **dict(width=gen["dim"], halvings=gen["n_downsample"], blocks=gen["n_res"], mlp_dim=gen["mlp_dim"]),
        **dict(parts=m.parts, dropout_prim=m.dropout, dropout_fine=m.dropout, teacher_dropout=m.dropout),
        **dict(unit_code=m.norm_id, scales=dis["num_scales"], penalty=dis["LAMBDA"], w_adv=m.gan_w),
        **dict(discriminator_width=dis["dim"], discriminator_blocks=dis["n_res"]),
        **dict(discriminator_halvings=dis["n_layer"], teacher_stride=m.teacher_stride),
        **dict(w_self=m.recon_x_w, w_same=m.recon_xp_w, w_id=m.id_w, w_pid=m.pid_w),
        **dict(w_generated=m.recon_id_w, w_prim=m.T_w, w_fine=m.B_w, train_bn=m.train_bn),
        **dict(warm_code=(m.recon_f_w, m.max_w), warm_structure=(m.recon_s_w, m.max_w)),
        **dict(warm_cycle=(m.recon_x_cyc_w, m.max_cyc_w), warm_teacher=(m.teacher_w, m.max_teacher_w)),
        # the case gives the weights before this iteration: they rise in it or they do not
        **dict(warm_from=after + (m.iteration <= m.warm_iter), warm_by=m.warm_scale),
        **dict(warm_teacher_from=after + (m.iteration <= m.warm_teacher_iter)),
        **dict(teacher_style=STYLES[m.teacher_style], id_lr=m.lr2, id_gamma=m.gamma2),
        **dict(milestones=(m.step_size, m.step_size * 3 // 2, m.step_size * 7 // 4)),
    )
    if m.lr_d != m.lr_g:
        raise ConfigError("lr_d and lr_g differ; config.optim.lr is both")
    return namespace(tree)


class _Part(_Net):
    """A network of the iteration; its keys begin with `prefix`."""

    def __init__(self, case, module, prefix, *args, doublings=2):
        self.prefix = prefix
        super().__init__(case, module, case.weights(prefix), *args, doublings=doublings)

    def items(self, tree):
        return self.entries(tree, self.prefix)


def _step_state(case, method):
    """({net: _Part}, State) with the case's weights."""
    m, image = method.modules, nets.channels_last(case.input("x_a"))[:1]
    d = method.config.dgnet
    parts = {
        "E_s": _Part(case, m["E_s"], "gen.enc_content.", networks.grey(image)),
        "E_a": _Part(case, m["E_a"], "id.", image, False),
        "D": _Part(case, m["D"], "dis.", image),
        "T": _Part(case, m["T"], "teacher.", image, False),
    }
    s = jax.eval_shape(lambda: m["E_s"].apply(parts["E_s"].variables, networks.grey(image)))
    code = jax.eval_shape(lambda: m["E_a"].apply(parts["E_a"].variables, image, False).code)
    s, code = (jnp.zeros(v.shape, v.dtype) for v in (s, code))
    parts["G"] = _Part(case, m["G"], "gen.", s, code, doublings=d.halvings)
    state = method.fresh({n: part.variables for n, part in parts.items()}, method.tx)
    return parts, state._replace(step=jnp.int32(case.config.iteration))


def _step_batch(case):
    def pair(name):
        return jnp.stack([nets.channels_last(case.input(f"{name}_{side}")) for side in "ab"])

    return {"x": pair("x"), "p": pair("xp"), "pid": jnp.stack([case.input(f"l_{side}") for side in "ab"])}


def _forwarded(out):
    """What the case records of `forward`."""
    look, first = out["look"], nets.channels_first
    recorded = {"x_ba": first(out["swapped"][0]), "x_ab": first(out["swapped"][1]), "f_a": look.code[0]}
    recorded |= {"x_a_recon_p": first(out["same"][0]), "s_a": first(out["s"][0])[:, ::8]}
    for i, name in enumerate(("p_a", "p_b", "pp_a", "pp_b")):
        recorded |= {f"{name}_0": look.prim[i], f"{name}_1": look.fine[i]}
    return recorded


def _terms(values, d):
    """The case's names of an iteration's values."""
    named = {"gen_total": values["loss"], "dis_total": values["dis"], "teacher": values["teacher"].sum()}
    names = {"gen_adv": "adv", "gen_recon_x": "self", "gen_recon_xp": "same", "gen_recon_f": "code"}
    names |= {"gen_recon_s": "structure", "gen_cycrecon_x": "cycle"}
    named |= {f"{k}_{side}": values[v][i] for k, v in names.items() for i, side in enumerate("ab")}
    return named | {
        k: values[v].sum() for k, v in {"id": "id", "pid": "pid", "gen_recon_id": "gen_id"}.items()
    }


def _parameters(case):
    """The case's keys of parameters, in their order."""
    keys = [k.partition("/")[2] for k in case.arrays if k.startswith(("shape/", "param/"))]
    return [k for k in keys if not re.search(r"running_(mean|var)$|num_batches_tracked$", k)]


# ---- CycleGAN


def cyclegan(case):
    """CycleGAN: images, map, all six terms of the generators, discriminator, gradients"""
    m = case.config
    a, b = (nets.channels_last(case.input(n)) for n in "ab")
    width = len(case.weights("D_A.")["model.0.bias"])
    modules = cyclegans.Generator(m.width, m.blocks, m.dropout), cyclegans.Discriminator(width)
    args = {"G": (a, False), "D": (a,)}
    parts = {}
    for name in ("G_A", "G_B", "D_A", "D_B"):
        entries = case.weights(f"{name}.")
        if entries:
            parts[name] = _Part(case, modules["GD".index(name[0])], f"{name}.", *args[name[0]])
    variables = {n: part.variables for n, part in parts.items()}
    key, weights = jax.random.key(0), (m.cycle, m.cycle * m.identity)

    def generators(params):
        all_ = {**variables, **{n: {"params": p} for n, p in params.items()}}
        values, fake_a, fake_b = cycles.generator_losses(modules, all_, a, b, key, weights)
        return sum(v.sum() for v in values.values()), (values, fake_a, fake_b)

    def judge(params, fake):
        return cycles.discriminator_loss(modules[1], {"params": params}, b, fake)

    params = {n: variables[n]["params"] for n in cycles.GENERATORS}
    descend = jax.jit(jax.value_and_grad(generators, has_aux=True))
    (total, (values, fake_a, fake_b)), grads = descend(params)
    dis, of_judge = jax.jit(jax.value_and_grad(judge))(variables["D_A"]["params"], fake_b)
    results = {"out/fake_a": nets.channels_first(fake_a), "out/fake_b": nets.channels_first(fake_b)}
    results["out/map"] = nets.channels_first(modules[1].apply(variables["D_A"], b))
    for ours, theirs in (("gan", "gan"), ("cycle", "cycle"), ("same", "idt")):
        results |= {f"out/{theirs}_{side}": values[ours][i] for i, side in enumerate("ab")}
    results |= {"out/generator": total, "out/dis_a": dis}
    grad_entries = {k: v for n, g in grads.items() for k, v in parts[n].items({"params": g}).items()}
    judged = parts["D_A"].items({"params": of_judge})
    for place, entries in (("generator", grad_entries), ("dis_a", judged)):
        results |= _norms(case, place, entries)
        results |= {f"grad/{place}/{k}": entries[k] for k in case.under(f"grad/{place}/") if k in entries}
    return results
