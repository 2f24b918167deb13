"""What steps of several methods share: views, optimisers, one descent, the moving average."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from reid_jax.config import choice
from reid_jax.data import augment
from reid_jax.errors import ConfigError
from reid_jax.fields import within
from reid_jax.losses import circle, identity, triplet
from reid_jax.losses.batch import unit  # noqa: F401
from reid_jax.methods._optim import (  # noqa: F401
    adam,
    at_count,
    check_patterns,
    optimiser,
    rests,
    schedule,
    sgd,
)
from reid_jax.models import classifiers


def check_dbscan(name, fields):
    """ConfigError for fields of DBSCAN on Jaccard distances that cannot be; fields: config.NAME."""
    within(name, fields, k1=(1, None), k2=(1, None), min_samples=(1, None))
    if not 0 < fields.eps < 1:
        raise ConfigError(f"config.{name}.eps is {fields.eps}; it must lie between 0 and 1")


def check_halves(network, data, rows):
    """ConfigError unless half of every batch belongs to the cameras of the network's second stem, if any."""
    second = getattr(getattr(network, "base", None), "second", ())
    if not second:
        return
    if data.batches != "domains" or data.domains != "modality":
        raise ConfigError(
            f"config.data.batches is {data.batches!r} and domains {data.domains!r}; a network of two stems "
            "needs as many visible as infrared pictures: set batches=domains, domains=modality"
        )
    infrared = tuple(np.unique(rows.camid[rows.domain == 1]).tolist())
    if tuple(sorted(second)) != infrared:
        raise ConfigError(
            f"config.model.second_stem is {second}, but the infrared cameras of the training set are "
            f"{infrared}: set it to these"
        )


def dtype_of(model):
    """config.model.dtype as a jnp dtype."""
    return jnp.dtype(choice("model.dtype", model.dtype, ("float32", "bfloat16", "float64")))


def view(config, batch, i):
    """View `i` of a batch: normalised images [B,H,W,3] or clips [B,T,H,W,3] in the compute dtype."""
    d = config.data
    return augment.view(
        batch["image"],
        batch["flip"][:, i],
        batch["crop"][:, i],
        batch["erase"][:, i],
        pad=d.pad_crop,
        mean=d.mean,
        std=d.std,
        fill=d.erase_fill,
        pad_mode=choice("data.pad_mode", d.pad_mode, ("zeros", "edge")),
        jitter=batch["jitter"][:, i] if "jitter" in batch else None,
        dtype=dtype_of(config.model),
    )


def plain(config, image):
    """Test images: normalised, not augmented."""
    return augment.plain(image, mean=config.data.mean, std=config.data.std, dtype=dtype_of(config.model))


def places(info):
    """i32[S,P] of methods.Info: numbers of what identities each domain shows, -1 where it does not show one.

    Domain by domain; without training rows the identities are taken to be those of one set after the other.
    """
    counts = info.domains
    pairs = np.stack([np.repeat(np.arange(len(counts)), counts), np.arange(sum(counts))])
    if info.labelled is not None:
        pairs = np.unique([info.labelled.domain, info.labelled.pid], axis=1)
    table = np.full((max(len(counts), 1), max(info.num_pids, 1)), -1, np.int32)
    table[tuple(pairs)] = np.arange(pairs.shape[1])
    return table


def by_domain(batch, count, instances):
    """A device's batch of `count` domains (samplers.domains.Domains) by domain: {name: [S,n,...]}."""

    def split(x):  # row (p S + s) K + k of a batch is of domain s
        x = x.reshape(-1, count, instances, *x.shape[1:]).swapaxes(0, 1)
        return x.reshape(count, -1, *x.shape[3:])

    return {name: split(x) for name, x in batch.items()}


def part_seed(seed, i):
    """The seed of part i of a stage, for what is drawn anew in it."""
    return int(np.random.SeedSequence((seed % 2**64, i)).generate_state(1, np.uint64)[0])


def pmean(tree, axis_name):
    """Mean over devices; the tree itself on one device."""
    return tree if axis_name is None else lax.pmean(tree, axis_name)


_NORMS = False


@contextlib.contextmanager
def gradient_norms(wanted):
    """While steps are traced: whether `gradient` also gives the gradient's norm of every metric."""
    global _NORMS
    before, _NORMS = _NORMS, wanted
    try:
        yield
    finally:
        _NORMS = before


def norms_of(metrics_of, params, axis_name):
    """{"gradient/METRIC": f[]}, the norm over all parameters, of a function params -> {metric: f[]}.

    A backward pass for each metric; those without a gradient (accuracies) have 0.
    """
    values, back = jax.vjp(metrics_of, params)
    norms = {}
    for name in values:
        chosen = {n: jnp.full_like(v, float(n == name)) for n, v in values.items()}
        norms[f"gradient/{name}"] = norm(pmean(back(chosen)[0], axis_name))
    return norms


def norm(tree):
    """L2 norm of all leaves together, f[]."""
    return jnp.sqrt(sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(tree)))


def variance(x, axis_name=None):
    """Variance f[D] of features f[N,D] of the global batch."""
    mean, square = pmean((x.mean(0), jnp.square(x).mean(0)), axis_name)
    return jnp.maximum(square - jnp.square(mean), 0)


def gradient(loss, nets, names, axis_name):
    """Gradient of a loss by the parameters of networks `names`, averaged over the devices.

    loss: {name: variables} of those networks -> (f[], {name: new batch_stats}, {metric: f[]}, anything).
    Returns ({name: gradient}, {name: batch_stats}, metrics, anything); the last one is the device's own.
    """

    def value(params):
        total, stats, metrics, extra = loss({n: {**nets[n], "params": p} for n, p in params.items()})
        return total, (stats, metrics, extra)

    params = {n: nets[n]["params"] for n in names}
    grads, (stats, metrics, extra) = jax.grad(value, has_aux=True)(params)
    if _NORMS:
        metrics = metrics | norms_of(lambda p: value(p)[1][1], params, axis_name)
    return *pmean((grads, stats, metrics), axis_name), extra


def moved(state, tx, grads, stats):
    """State with the networks of `grads` one optimiser step on, with their new batch_stats."""
    nets, opt = dict(state.nets), dict(state.opt)
    for name, grad in grads.items():
        params, opt[name] = apply_gradient(tx[name], grad, opt[name], nets[name]["params"])
        nets[name] = {**nets[name], "params": params}
    for name, new in stats.items():
        nets[name] = {**nets[name], "batch_stats": new}
    return state._replace(nets=nets, opt=opt)


def descend(loss, state, tx, axis_name):
    """One training step of the networks of tx {name: optax chain} on one loss.

    loss as in `gradient`. Returns (State with step + 1, metrics, what the loss gave beside).
    """
    grads, stats, metrics, extra = gradient(loss, state.nets, tx, axis_name)
    state = moved(state, tx, grads, stats)
    return state._replace(step=state.step + 1), metrics, extra


def apply_gradient(tx, grad, opt, params):
    """One optax step: (new params, new optimiser state)."""
    delta, opt = tx.update(grad, opt, params)
    return optax.apply_updates(params, delta), opt


def partners(key, size, axis_name):
    """A random row of the global batch for every row of it, no row twice: i32[N], the same on every device.

    size: rows on a device.
    """
    return jax.random.permutation(key, size * (1 if axis_name is None else lax.axis_size(axis_name)))


def ema(teacher, student, decay):
    """teacher <- decay * teacher + (1 - decay) * student, leaf by leaf."""
    return jax.tree.map(lambda t, s: decay * t + (1 - decay) * s, teacher, student)


def ema_decay(step, alpha, ramp):
    """The decay at 0-based iteration `step`: min(1 - 1 / (step + 1), alpha) with ramp (MMT's code)."""
    if not ramp:
        return alpha
    return jnp.minimum(1 - 1 / (step + 1), alpha)


def after(x, tree):
    """x f[...], but not before `tree` is computed: adds 0 times one element of each leaf.

    Keeps the activations of networks that do not depend on each other from being in memory together;
    `lax.optimization_barrier` is gone by the time the CPU backend orders its work.
    """
    leaves = jax.tree.leaves(tree)
    return x + sum((0 * leaf.ravel()[0]).astype(x.dtype) for leaf in leaves) if leaves else x


def encoded(encoder, variables, image, key, resting, *extra):
    """(Branches, batch_stats) of a network in training; given: what the encoder takes after the key.

    resting: bool[], whether what config.optim.freeze names is frozen now and its norms with it: the network
    then runs as in a test, with running statistics that stay; None where that never is.
    """
    if resting is None:
        return encoder.apply(variables, image, True, key, *extra)

    def tested(variables, image, *extra):
        return encoder.apply(variables, image, False, None, *extra)

    def trained(variables, image, *extra):
        return encoder.apply(variables, image, True, key, *extra)

    return lax.cond(resting, tested, trained, variables, image, *extra)


def select_features(loss, branches):
    """The features that config.loss.feature names, the ones triplet and MI see: f[B,D] of each branch."""
    choice("loss.feature", loss.feature, ("after_bn", "before_bn"))
    return getattr(branches, loss.feature)


def select_feature(loss, branches):
    """The feature that config.loss.feature names, of the first branch."""
    return select_features(loss, branches)[0]


def identity_losses(loss, branches, labels, axis_name):
    """Cross entropy and metric losses (triplet, circle) of one network against `labels` i32[B].

    branches: models.heads.Branches, joined as config.loss.branches says: mean, sum, or a weight for each.
    """
    ce, metric, _ = identity_terms(loss, branches, labels, axis_name)
    return ce, sum(metric.values(), jnp.zeros(()))


def identity_terms(loss, branches, labels, axis_name):
    """(cross entropy, {"triplet", "circle": weighted metric losses of weight > 0}, {metric: f[]} to watch).

    As `identity_losses`.
    """
    cross_entropy = smoothed(loss, axis_name)
    ce = joined(loss, [cross_entropy(x, labels) for x in classifiers.with_margin(branches, labels)])
    features, terms, watched = select_features(loss, branches), {}, {}
    if loss.triplet_weight:
        values = [triplet_loss(loss, f, labels, axis_name) for f in features]
        terms["triplet"] = loss.triplet_weight * joined(loss, [value for value, _ in values])
        if loss.mining == "weighted":
            watched = {name: sum(aux[name] for _, aux in values) / len(values) for name in ("d_ap", "d_an")}
    if loss.circle_weight:
        options = dict(form=loss.circle, margin=loss.circle_margin, scale=loss.circle_scale)
        values = [circle.loss(f, labels, **options, axis_name=axis_name) for f in features]
        terms["circle"] = loss.circle_weight * joined(loss, values)
    return ce, terms, watched


def smoothed(loss, axis_name=None):
    """The cross entropy of config.loss, a function of logits f[B,K] and labels i32[B]; ConfigError."""
    if choice("loss.smoothing", loss.smoothing, ("all", "others")) == "others":
        options = dict(label_smooth=loss.label_smooth, adaptive=loss.smooth_adaptive, axis_name=axis_name)
        return functools.partial(identity.cross_entropy_others, **options)
    if loss.label_smooth < 0:
        raise ConfigError(
            f"config.loss.label_smooth is {loss.label_smooth}; less than 0 (a share of each image's own "
            "probability) needs config.loss.smoothing=others"
        )
    return functools.partial(identity.cross_entropy, label_smooth=loss.label_smooth)


def triplet_loss(loss, features, labels, axis_name):
    """The triplet loss of config.loss and its aux, see losses.triplet."""
    options = dict(distance=loss.triplet, margin=loss.margin, soft=loss.soft_margin, axis_name=axis_name)
    if choice("loss.mining", loss.mining, triplet.MINING) == "hard":
        return triplet.batch_hard(features, labels, **options)
    return triplet.weighted(features, labels, guard=loss.wrt_guard, **options)


def joined(loss, values):
    """One loss from those of the branches, by config.loss.branches."""
    if len(values) == 1:
        return values[0]
    if loss.branches == "mean":
        return sum(values) / len(values)
    if loss.branches == "sum":
        return sum(values)
    if len(loss.branches) != len(values) or isinstance(loss.branches, str):
        raise ConfigError(
            f"config.loss.branches is {loss.branches!r}; it must be mean, sum or a weight for each of the "
            f"{len(values)} branches"
        )
    return sum(w * v for w, v in zip(loss.branches, values, strict=True))


def accuracy(branches, labels):
    """Share of images whose class all branches together name right, f32[]."""
    scores = (
        sum(jax.nn.log_softmax(x) for x in branches.logits)
        if len(branches.logits) > 1
        else branches.logits[0]
    )
    return jnp.mean(scores.argmax(-1) == labels)
