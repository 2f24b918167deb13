"""Parts that several methods share: views, optimisers, one descent step, the moving average."""

import jax
import jax.numpy as jnp
import optax
from jax import lax

from reid_jax.config import choice
from reid_jax.data import augment
from reid_jax.losses import identity, triplet


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
        dtype=dtype_of(config.model),
    )


def plain(config, image):
    """Test images: normalised, not augmented."""
    return augment.plain(image, mean=config.data.mean, std=config.data.std, dtype=dtype_of(config.model))


def schedule(optim, info, lr):
    """Learning rate as a function of the optimiser's step count.

    "step": lr * gamma ** (number of milestones <= epoch), 0-based epochs. "cosine": down to 0 at the
    last step. `warmup_steps` rises linearly from 0 in front of either.
    """
    choice("optim.schedule", optim.schedule, ("step", "cosine"))
    if optim.schedule == "step":
        bounds = {int(m) * info.steps_per_epoch: optim.gamma for m in optim.milestones}
        main = optax.piecewise_constant_schedule(lr, bounds)
    else:
        main = optax.cosine_decay_schedule(lr, max(info.total_steps, 1))
    if not optim.warmup_steps:
        return main
    return lambda count: main(count) * jnp.minimum(1.0, (count + 1) / optim.warmup_steps)


def adam(optim, info, *, lr=None, weight_decay=None, mask=None, repeats=1):
    """Adam with coupled L2, as torch's: the decay joins the gradient before the moments.

    mask: tree of bools, or a function of params giving one; False leaves never move (no decay).
    repeats: updates per training step, so that the schedule keeps to training steps.
    """
    lr = schedule(optim, info, optim.lr if lr is None else lr)
    decay = optim.weight_decay if weight_decay is None else weight_decay
    tx = optax.chain(
        optax.add_decayed_weights(decay),
        optax.scale_by_adam(b1=optim.b1, b2=optim.b2, eps=optim.eps),
        optax.scale_by_learning_rate(lambda count: lr(count // repeats)),
    )
    if mask is None:
        return tx

    def labels(params):
        tree = mask(params) if callable(mask) else mask
        return jax.tree.map(lambda m: "train" if m else "freeze", tree)

    return optax.partition({"train": tx, "freeze": optax.set_to_zero()}, labels)


def sgd(lr, *, momentum=0.9, weight_decay=0.0):
    """PyTorch's SGD: g <- grad + decay w; b <- momentum b + g (first b = g); w <- w - lr b."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.trace(momentum),
        optax.scale_by_learning_rate(lr),
    )


def pmean(tree, axis_name):
    """Mean over devices; the tree itself on one device."""
    return tree if axis_name is None else lax.pmean(tree, axis_name)


def apply_gradient(tx, grad, opt, params):
    """One optax step: (new params, new optimiser state)."""
    delta, opt = tx.update(grad, opt, params)
    return optax.apply_updates(params, delta), opt


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


def select_feature(loss, features):
    """The feature that config.loss.feature names, the one triplet and MI see."""
    choice("loss.feature", loss.feature, ("after_bn", "before_bn"))
    return getattr(features, loss.feature)[0]


def identity_losses(loss, features, labels, axis_name):
    """(cross entropy, batch-hard triplet) of one network against `labels` i32[B]."""
    ce = identity.cross_entropy(features.logits[0], labels, label_smooth=loss.label_smooth)
    tri, _ = triplet.batch_hard(
        select_feature(loss, features),
        labels,
        distance=loss.triplet,
        margin=loss.margin,
        axis_name=axis_name,
    )
    return ce, tri


def test_feature(variables, encoder, config, image):
    """Test feature f32[B,D] of one encoder: the neck output with running statistics."""
    features, _ = encoder.apply(variables, plain(config, image), False)
    return features.test


def test_vectors(variables, net, config, image):
    """Vectors f32[B,T,C] of every frame of clips u8[B,T,H,W,3] before the neck; net: a heads.ReIDNet."""
    return net.apply(variables, plain(config, image), False, method="vectors")


def pooled_feature(variables, net, vectors):
    """Test feature f32[B,D] of tracklets from the mean of their frames' vectors [B,C]."""
    return net.apply(variables, vectors, False, method="head").test


def unit(x):
    """Rows divided by their L2 norm."""
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
