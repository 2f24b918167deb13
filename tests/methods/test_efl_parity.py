"""The EFL step against recorded PyTorch iterations, in float64: the step that training runs."""

import json
import os
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reid_jax import config as c
from reid_jax.methods import Info, State, efl, parts
from reid_jax.models import club, heads, layers, weights

CASES = os.path.join(os.path.dirname(__file__), "..", "cases")
NETS = ("phi1", "phi2", "m1", "m2", "cam", "q")


class Tiny(nn.Module):
    """The recorded case's backbone."""

    width: int
    dim: int

    @nn.compact
    def __call__(self, x, train):
        for i, features in ((1, self.width), (2, self.dim)):
            x = layers.Conv(features, 3, 2, 1, name=f"conv{i}")(x)
            x = nn.relu(layers.BatchNorm(name=f"bn{i}")(x, train))
        return x


def case(name):
    """(meta config, arrays) of a recorded case."""
    with np.load(os.path.join(CASES, name), allow_pickle=False) as z:
        arrays = {k: z[k] for k in z.files if k != "meta"}
        return SimpleNamespace(**json.loads(str(z["meta"]))["config"]), arrays


def settings(m):
    """Our config of a case's config."""
    tree = c.defaults() | {"efl": c.efl_defaults()}
    tree["loss"].update(feature=m.feature, triplet=m.triplet, margin=m.margin, label_smooth=m.label_smooth)
    tree["optim"].update(lr=m.lr, weight_decay=m.weight_decay, eps=m.adam_eps, milestones=())
    tree["efl"].update(
        lambda_kl=m.lambda_kl, lambda_mi=m.lambda_mi, alpha=m.alpha, ema_ramp=m.ema_ramp, n_mi=m.n_mi,
        mi_lr=m.mi_lr, mi_weight_decay=m.weight_decay, mi_hidden=m.hidden_size,
    )  # fmt: skip
    return c.namespace(tree)


def build(m, config):
    """Models over the tiny encoder."""
    neck = "ap3d" if m.neck_bias_trained else "bnneck"

    def encoder(classes):
        return heads.encoder(heads.ReIDNet(Tiny(m.width, m.dim), classes, "avg", neck))

    models = efl.build_models(config, Info(m.classes, m.cameras, 1000, 1000))
    return models._replace(
        identity=encoder(m.classes), camera=encoder(m.cameras), q=club.Club(hidden_size=m.hidden_size)
    )


def to_ours(key):
    """The recorded key without its network -> our naming scheme."""
    return key.replace("bn.", "neck.", 1) if key.startswith("bn.") else key


def entries(arrays, prefix):
    """{our torch key: array} of the recorded arrays that begin with prefix."""
    return {to_ours(k[len(prefix) :]): v for k, v in arrays.items() if k.startswith(prefix)}


def load(net, arrays, variables):
    """Recorded weights of one network in our tree."""
    recorded = entries(arrays, f"param/{net}.")
    if net != "q":  # the frozen neck bias is 0 and not always recorded
        recorded.setdefault("neck.bias", np.zeros_like(recorded["neck.weight"]))
        recorded = {k: v for k, v in recorded.items() if not k.endswith("num_batches_tracked")}
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), weights.from_torch(recorded, variables))


def start_state(m, arrays, models, mode="full"):
    image = jnp.zeros((2, 16, 8, 3))
    state = efl.init_state(jax.random.key(0), image, models=models, mode=mode)
    nets = {n: load(n, arrays, v) for n, v in state.nets.items()}
    opt = {n: models.tx[n].init(nets[n]["params"]) for n in models.tx}
    return State(state.step, nets, opt)


def error(ours, reference):
    return np.max(np.abs(ours - reference)) / max(np.max(np.abs(reference)), 1e-6)


@pytest.mark.parametrize("name", ["efl__train_step_a.npz", "efl__train_step_b.npz"])
def test_three_iterations(name):
    m, arrays = case(name)
    with jax.enable_x64(True):
        config = settings(m)
        models = build(m, config)
        state = start_state(m, arrays, models)
        begin = {n: weights.to_torch(v) for n, v in jax.tree.map(np.asarray, state.nets).items()}
        step = jax.jit(lambda s, v, p, k: efl.update(s, v, p, k, models=models, config=config))
        pid, camid = jnp.asarray(arrays["in/pid"]), jnp.asarray(arrays["in/camid"])
        checked = 0
        for i in range(m.iterations):
            views = {
                f"phi{v}": jnp.asarray(arrays[f"in/x{v}_{i}"].transpose(0, 2, 3, 1), jnp.float64)
                for v in (1, 2)
            }
            state, metrics = step(state, views, pid, camid)
            check_losses(metrics, arrays, i)
            nets = {n: weights.to_torch(v) for n, v in jax.tree.map(np.asarray, state.nets).items()}
            checked += check_states(nets, begin, arrays, i)
    assert int(state.step) == m.iterations and checked > 150


def check_losses(metrics, arrays, i):
    names = ("ce", "triplet", "kl", "loss_id", "mi", "cam_ce", "cam_triplet")
    ours = np.array([metrics[n] for n in names])
    np.testing.assert_allclose(ours, arrays[f"out/loss_{i}"], rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(metrics["mie"], arrays[f"out/mie_{i}"][0], rtol=1e-5)
    np.testing.assert_allclose(metrics["mie_last"], arrays[f"out/mie_{i}"][-1], rtol=1e-5)


def check_states(nets, begin, arrays, i):
    """Compares every recorded state and change after iteration i; returns how many."""
    count = 0
    for net in NETS:
        for key, want in entries(arrays, f"out/after{i}/{net}.").items():
            assert error(nets[net][key], want) < 1e-5, (i, net, key)
            count += 1
        for key, want in entries(arrays, f"out/delta{i}/{net}.").items():
            assert error(nets[net][key] - begin[net][key], want) < 1e-4, (i, net, key)
            count += 1
    return count


def test_first_gradients():
    """Gradients of the students' loss at iteration 0 (Algorithm 1, steps 1 to 6)."""
    m, arrays = case("efl__train_step_a.npz")
    with jax.enable_x64(True):
        config = settings(m)
        models = build(m, config)
        state = start_state(m, arrays, models)
        views = {
            f"phi{v}": jnp.asarray(arrays[f"in/x{v}_0"].transpose(0, 2, 3, 1), jnp.float64) for v in (1, 2)
        }
        pid, camid = jnp.asarray(arrays["in/pid"]), jnp.asarray(arrays["in/camid"])
        shared = dict(models=models, config=config, axis_name=None)
        f_cam, cam_grad, _, _ = efl.camera_step(state, views["phi1"], camid, **shared)
        fixed = {
            "teacher_logits": efl.teacher_logits(state, views, models=models)[0],
            "f_cam": f_cam,
            "q": state.nets["q"]["params"],
            "lambda_mi": config.efl.lambda_mi,
            "key": jax.random.key(0),
        }
        grads, _ = efl.student_grads(state, fixed, views, pid, **shared)
        for net, grad in [*grads.items(), ("cam", cam_grad)]:
            ours = weights.to_torch({"params": jax.tree.map(np.asarray, grad)})
            for key, want in entries(arrays, f"grad/{net}.").items():
                assert np.max(np.abs(ours[key] - want)) < 1e-6 + 1e-5 * np.max(np.abs(want)), (net, key)


def test_ema_at_recorded_steps():
    m, arrays = case("efl__ema.npz")
    with jax.enable_x64(True):
        student, mean = (
            {
                k: jnp.asarray(v, jnp.float64)
                for k, v in entries(arrays, f"param/{n}.").items()
                if "running" not in k
            }
            for n in ("student", "mean")
        )
        for step in m.steps:
            decay = parts.ema_decay(jnp.int32(step), m.alpha, True)
            ours = parts.ema(mean, student, decay)
            for key, want in entries(arrays, f"out/step{step}/").items():
                if key in ours:
                    assert error(ours[key], want) < 1e-6, (step, key)
