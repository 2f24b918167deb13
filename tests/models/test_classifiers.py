"""Classifiers by cosines (values and gradients: sup__embedding_head), fast-reid's reduction in the head."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reid_jax.config import defaults, namespace
from reid_jax.errors import ConfigError
from reid_jax.models import classifiers, heads


def model(**fields):
    tree = defaults()["model"] | dict(backbone="narrow", narrow_widths=(4, 8), neck="bnneck", pool="avg")
    return namespace(tree | fields)


def test_margins_by_hand():
    logits, labels = 10 * jnp.array([[0.6, -0.2]]), jnp.array([0])
    angle = np.arccos(0.6) + 0.3
    for kind, wanted in (
        ("cosface", [6 - 3, -2]),
        ("arcface", [10 * np.cos(angle), -2]),
        ("circle", [10 * (1 + 0.3 - 0.6) * (0.6 - 0.7), 10 * (-0.2 + 0.3) * (-0.2 - 0.3)]),
    ):
        got = classifiers.Margin(kind, 10.0, 0.3)(logits, labels)
        np.testing.assert_allclose(got[0], wanted, rtol=1e-5, err_msg=kind)


def test_arcface_has_a_gradient_at_its_ends():
    margin = classifiers.Margin("arcface", 1.0, 0.3)
    ends = jnp.array([[1.0, 0.0], [-1.0, 0.0]])
    grad = jax.grad(lambda x: margin(x, jnp.array([0, 0])).sum())(ends)
    assert np.isfinite(grad).all()


def test_head_with_a_reduction_and_cosines():
    """The logits are scaled cosines of the neck's output; the margin comes with them as a constant."""
    net = heads.build(model(classifier="cosface", classifier_scale=5.0, embedding=3), 7)
    image = np.random.default_rng(0).standard_normal((2, 16, 8, 3)).astype(np.float32)
    variables = jax.jit(lambda: net.init(jax.random.key(0), image, False))()
    params = variables["params"]
    assert params["feat"]["kernel"].shape == (8, 3) and "bias" not in params["feat"]
    assert params["classifier"]["kernel"].shape == (3, 7) and "bias" not in params["classifier"]
    out = jax.jit(lambda v, x: net.apply(v, x, False))(variables, image)
    assert out.before_bn[0].shape == (2, 8) and out.test.shape == (2, 3)
    f, w = (np.asarray(x, np.float64) for x in (out.test, params["classifier"]["kernel"]))
    cosines = f @ w / np.linalg.norm(f, axis=1)[:, None] / np.linalg.norm(w, axis=0)
    np.testing.assert_allclose(out.logits[0], 5 * cosines, rtol=1e-4, atol=1e-5)
    (logits,) = classifiers.with_margin(out, jnp.array([1, 2]))
    lower = np.asarray(out.logits[0] - logits)
    np.testing.assert_allclose(lower, 5 * 0.35 * np.eye(7)[[1, 2]], atol=1e-5)


def test_a_fixed_exponent_is_no_parameter():
    net = heads.build(model(pool="gem_fixed"), 7)
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), np.zeros((1, 16, 8, 3), np.float32), False))
    assert "pooling" not in shapes["params"]


@pytest.mark.parametrize("fields, message", [
    (dict(classifier="sphere"), r"model\.classifier"),
    (dict(classifier="circle", classifier_scale=0.0), "classifier_scale"),
    (dict(embedding=-1), "embedding"),
    (dict(classifier="circle", head="stripes", stripes_parts=2), "head 'stripes' has none"),
])  # fmt: skip
def test_bad_fields(fields, message):
    with pytest.raises(ConfigError, match=message):
        heads.build(model(**fields), 7)
    if message == "embedding":
        with pytest.raises(ConfigError, match="embedding of its own"):
            heads.build(model(embedding=4), 7, num_features=4)
