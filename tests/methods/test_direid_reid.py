"""DI-REID's second stage with memory replay: what it does to the step, and what must stay as it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from methods.direid_small import config, info, triples
from small import difference

from reid_jax.methods import direid
from reid_jax.methods.direid import dfen, gan, reid
from reid_jax.train import stages

PID = np.array([0, 0, 1, 1], np.int32)
IMAGES = 9  # in the bank
OLD = ("old_E_con", "old_G", "old_E_deg")


class Replay:
    """Steps of the journal's second stage on one batch, the replay's weight an argument."""

    def __init__(self, kind):
        self.m = config("journal", replay=kind)
        facts = info()._replace(num_images=IMAGES)
        method = direid.stages(self.m, facts)["dfen"]
        self.models, self.old = dfen.build(self.m, facts), gan.build(self.m, facts)
        self.tx, self.x = reid.optimiser(self.m, facts), triples()["x_i"]
        self.start = filled(jax.eval_shape(method.init, jax.random.key(0), stages.example_batch(self.m)))
        if kind == "bank":
            codes = np.random.default_rng(1).standard_normal((IMAGES, self.m.direid.code_dim))
            self.start.nets["bank"] = {"codes": jnp.asarray(codes, jnp.float32)}
        self.step = jax.jit(self.update)

    def update(self, state, weight, step):
        m = config("journal", replay=self.m.direid.replay, w_replay=weight)
        options = dict(models=self.models, tx=self.tx, config=m, gan_models=self.old)
        return reid.update(state, self.x, PID, jax.random.key(step), **options)


def filled(state):
    """A State of these shapes: kernels of unit gain, scales and variances about 1, the optimiser at 0."""
    rng = np.random.default_rng(7)

    def draw(path, leaf):
        noise = rng.standard_normal(leaf.shape)
        if path[-1] in ("scale", "var"):
            return jnp.asarray(1 + 0.1 * np.abs(noise), leaf.dtype)
        gain = 1 / np.sqrt(np.prod(leaf.shape[:-1])) if path[-1] == "kernel" else 0.1
        return jnp.asarray(gain * noise, leaf.dtype)

    nets = {path: draw(path, leaf) for path, leaf in traverse_util.flatten_dict(state.nets).items()}
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), state)
    return zeros._replace(nets=traverse_util.unflatten_dict(nets))


@pytest.fixture(scope="module", params=["bank", pytest.param("shuffle", marks=pytest.mark.slow)])
def replay(request):
    return Replay(request.param)


def test_the_replay_trains_e_con_alone(replay):
    """Its term moves E_con's weights; the other networks step as without it, up to rounding."""
    (with_, found), (without, plain) = (replay.step(replay.start, w, 0) for w in (5.0, 0.0))
    assert found["smooth"] > 0 == plain["smooth"]
    parts = [found[n] for n in ("fuse", "inv", "sen")]
    np.testing.assert_allclose(found["loss"], sum(parts) + found["smooth"], rtol=1e-5)
    assert [plain[n] for n in ("fuse", "inv", "sen")] == parts
    change = {
        n: difference(with_.nets[n]["params"], without.nets[n]["params"])
        for n in reid.TRAINED
        if n in with_.nets
    }
    assert change.keys() == {"E_con", "E_id", "C"}
    assert change["E_con"] > 1e-4 and max(change["E_id"], change["C"]) < 1e-6


def test_steps_leave_what_is_replayed(replay):
    """Five steps: finite, one compilation, the earlier stage's networks and the bank bit for bit the same."""
    state = replay.start
    for step in range(5):
        state, found = replay.step(state, 5.0, step)
        assert all(np.isfinite(v) for v in found.values())
    assert int(state.step) == 5 and replay.step._cache_size() == 1
    kept = {n for n in state.nets if n.startswith("old_") or n == "bank"}
    assert kept == {*OLD} | ({"bank"} if replay.m.direid.replay == "bank" else set())
    assert difference({n: state.nets[n] for n in kept}, {n: replay.start.nets[n] for n in kept}) == 0
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((state.nets, state.opt)))


def test_replayed_pictures(replay):
    """The decoded contents of the batch with codes of the bank, or of the batch in another order."""
    kind, nets = replay.m.direid.replay, replay.start.nets
    codes = jax.jit(lambda x, key: reid.replay_codes(replay.start, x, key, replay.old, kind))
    drawn = [np.asarray(codes(replay.x, jax.random.key(i))) for i in range(8)]
    known = nets["bank"]["codes"] if kind == "bank" else codes_of(replay)
    rows = [np.abs(code[:, None] - known).max(-1) for code in drawn]
    assert max(r.min(1).max() for r in rows) < 1e-5  # every code is one of the known
    orders = [tuple(r.argmin(1)) for r in rows]
    assert len(set(orders)) > 1
    if kind == "shuffle":
        assert all(sorted(o) == [0, 1, 2, 3] for o in orders)

    @jax.jit
    def pictures(frozen, x, code):
        return reid.replay(frozen, x, code, replay.old)

    @jax.jit
    def slopes(*args):
        return jax.grad(lambda *a: pictures(*a).sum(), (0, 1, 2))(*args)

    frozen = {n: nets[f"old_{n}"] for n in ("E_con", "G")}
    args = frozen, replay.x, jnp.asarray(drawn[0])
    made = np.asarray(pictures(*args))
    assert made.shape == replay.x.shape and made.std() > 0
    assert np.abs(made - pictures(frozen, replay.x, drawn[0][::-1])).max() > 1e-4
    assert not any(np.any(g) for g in jax.tree.leaves(slopes(*args)))


def codes_of(replay):
    """E_d's codes of the batch, image by image."""
    code = jax.jit(lambda x: replay.old.E_deg.apply(replay.start.nets["old_E_deg"], x[None])[0])
    return np.stack([code(x) for x in replay.x])
