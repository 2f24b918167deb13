"""Sizes that configs share: full-size training, the synthetic sets, seconds-long runs.

Each function changes a tree of fields (see `reid_jax.methods.defaults`) in place.
"""

from reid_jax import methods
from reid_jax.fields import unknown_variant


def tree(method, variant, variants):
    """All fields of a method as `variants[variant]` sets them; ConfigError for an unknown variant."""
    if variant not in variants:
        raise unknown_variant(method, variant, variants)
    fields = methods.defaults(method)
    variants[variant](fields)
    return fields


def image_set(tree, name):
    """Full-size training on a real image set: the defaults are the paper's."""
    tree["data"].update(name=name)


def on(name, variant):
    """A variant with the settings of another on data set `name`."""

    def elsewhere(tree):
        variant(tree)
        tree["data"].update(name=name)

    return elsewhere


def synthetic(tree):
    """The embedded synthetic set with a net that two CPU cores train in minutes."""
    tree["data"].update(
        name="synthetic",
        height=64,
        width=32,
        ids=8,
        instances=4,
        erase=0.2,
        erase_area=(0.02, 0.3),
        threads=2,
    )
    tree["model"].update(backbone="narrow")
    tree["optim"].update(lr=4e-3, schedule="cosine", warmup_steps=50)
    tree["train"].update(steps=1200, eval_every=10, checkpoint_every=10)
    tree["eval"].update(net="all", batch_size=64)


def synthetic_video(tree):
    """Walking tracklets of the embedded generator with the narrow net; minutes on two CPU cores."""
    synthetic(tree)
    tree["data"].update(ids=6, instances=4, frames=4, stride=2)
    tree["data"]["synthetic"].update(kind="video", train_ids=60, test_ids=60, cameras=4)
    tree["model"].update(narrow_widths=(24, 48, 96, 128))
    tree["train"].update(steps=400)
    tree["eval"].update(net="auto", batch_size=64)


def smoke(tree):
    """A few steps on a handful of synthetic pictures: does everything run?"""
    synthetic(tree)
    tree["data"].update(ids=2, instances=4, height=32, width=16)
    tree["data"]["synthetic"].update(
        train_ids=6, test_ids=6, cameras=3, images=2, height=64, width=32, distractors=2, junk=2
    )
    tree["model"].update(narrow_widths=(4, 8, 8), narrow_stripes=2, narrow_dim=16)
    tree["optim"].update(warmup_steps=2)
    tree["train"].update(steps=12, eval_every=2, checkpoint_every=1, log_every=2)
    tree["eval"].update(batch_size=16)
    tree["report"].update(queries=4)


def smoke_video(tree):
    """`smoke` on tracklets."""
    synthetic_video(tree)
    tree["data"].update(ids=2, instances=2, frames=2, height=32, width=16)
    tree["data"]["synthetic"].update(train_ids=4, test_ids=4, cameras=2, frames=(3, 5), distractors=1, junk=1)
    tree["model"].update(narrow_widths=(4, 8, 8), narrow_stripes=2, narrow_dim=16)
    tree["optim"].update(warmup_steps=2)
    tree["train"].update(steps=6, eval_every=2, checkpoint_every=1, log_every=2)
    tree["eval"].update(batch_size=16)
    tree["report"].update(queries=2)
