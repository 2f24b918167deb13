"""DI-REID's second stage with memory replay: what it does to the step, and what must stay as it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from methods.direid_small import SIZE, config, info, triples
from small import difference

from reid_jax.errors import ConfigError
from reid_jax.methods.direid import dfen, nets

PID = np.array([0, 0, 1, 1], np.int32)
OLD = ("old_E_con", "old_G", "old_E_deg")


class Replay:
    """Steps of the journal's second stage on one batch, the replay's weight an argument."""

    def __init__(self, form):
        fields = dict(replay=form, multi_scale=False)
        self.method, self.x = dfen.Dfen(config("journal", **fields), info()), triples()["x_i"]
        self.start = filled(jax.eval_shape(self.method.init, jax.random.key(0)))
        self.step = jax.jit(self.update)

    def update(self, state, weight, step):
        m = config("journal", replay=self.method.replays, multi_scale=False, w_replay=weight)
        return dfen.Dfen(m, info()).update(state, self.x, PID, jax.random.key(step))

    def known(self):
        """The codes that may be drawn: the bank's, or those of the batch, image by image."""
        if self.method.replays == "bank":
            return self.start.memory["codes"]
        code = jax.jit(lambda x: self.method.apply(self.start.nets, "old_E_deg", x[None])[0])
        return np.stack([code(x) for x in self.x])


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
    memory = {name: jnp.asarray(rng.standard_normal(x.shape), x.dtype) for name, x in state.memory.items()}
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), state)
    return zeros._replace(nets=traverse_util.unflatten_dict(nets), memory=memory)


@pytest.fixture(scope="module", params=["bank", pytest.param("shuffle", marks=pytest.mark.slow)])
def replay(request):
    return Replay(request.param)


@pytest.mark.slow
def test_the_replay_trains_e_con_alone(replay):
    """Its term moves E_con's weights; the other networks step as without it, up to rounding."""
    (with_, found), (without, plain) = (replay.step(replay.start, w, 0) for w in (5.0, 0.0))
    assert found["smooth"] > 0 == plain["smooth"]
    parts = [found[n] for n in ("fuse", "inv", "sen")]
    np.testing.assert_allclose(found["loss"], sum(parts) + found["smooth"], rtol=1e-5)
    assert [plain[n] for n in ("fuse", "inv", "sen")] == parts
    change = {
        n: difference(with_.nets[n]["params"], without.nets[n]["params"])
        for n in dfen.TRAINED
        if n in with_.nets
    }
    assert change.keys() == {"E_con", "E_id", "C"}
    assert change["E_con"] > 1e-4 and max(change["E_id"], change["C"]) < 1e-6


@pytest.mark.slow
def test_steps_leave_what_is_replayed(replay):
    """Five steps: finite, one compilation, the earlier stage's networks and the bank bit for bit the same."""
    state = replay.start
    for step in range(5):
        state, found = replay.step(state, 5.0, step)
        assert all(np.isfinite(v) for v in found.values())
    assert int(state.step) == 5 and replay.step._cache_size() == 1
    kept = {n for n in state.nets if n.startswith("old_")}
    assert kept == {*OLD} and {*state.memory} == ({"codes"} if replay.method.replays == "bank" else set())
    frozen, began = (({n: s.nets[n] for n in kept}, s.memory, s.step * 0) for s in (state, replay.start))
    assert difference(frozen, began) == 0
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((state.nets, state.opt)))


@pytest.mark.slow
def test_replayed_pictures(replay):
    """The decoded contents of the batch with codes of the bank, or of the batch in another order."""
    method, known = replay.method, replay.known()
    codes = jax.jit(jax.vmap(lambda key: method.replay_codes(replay.start, replay.x, key)))
    drawn = np.asarray(codes(jax.vmap(jax.random.key)(jnp.arange(8))))
    rows = [np.abs(code[:, None] - known).max(-1) for code in drawn]
    assert max(r.min(1).max() for r in rows) < 1e-5  # every code is one of the known
    orders = [tuple(r.argmin(1)) for r in rows]
    assert len(set(orders)) > 1
    if method.replays == "shuffle":
        assert all(sorted(o) == [0, 1, 2, 3] for o in orders)

    @jax.jit
    def slopes(nets, x, key):
        def made(nets, x):
            pictures = method.replay(replay.start._replace(nets=nets), x, key)
            return pictures.sum(), pictures

        return jax.grad(made, (0, 1), has_aux=True)(nets, x)

    old = {n: replay.start.nets[n] for n in OLD}
    grads, pictures = slopes(old, replay.x, jax.random.key(0))
    grads_, others = slopes(old, replay.x, jax.random.key(1))
    assert pictures.shape == replay.x.shape and np.std(pictures) > 0
    assert orders[0] != orders[1] and np.abs(pictures - others).max() > 1e-4
    assert not any(np.any(g) for g in jax.tree.leaves((grads, grads_)))


def test_codes_for_the_bank():
    """The mean of a picture's code and its mirror image's."""
    method = dfen.Dfen(config("journal"), info())
    image = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), np.uint8)
    module, x = method.modules["old_E_deg"], method.plain(image)
    variables = jax.jit(lambda x: nets.init(module, jax.random.key(0), x))(x)
    got = jax.jit(method.codes)(variables, image)
    code = jax.jit(lambda x: module.apply(variables, x[None])[0])
    want = [(code(v) + code(v[:, ::-1])) / 2 for v in x]
    np.testing.assert_allclose(got, jnp.stack(want), rtol=1e-4, atol=1e-6)


ATTENDED = [("feature", "before"), ("neck", "before")]


@pytest.mark.parametrize("where, seen", ATTENDED)
def test_where_the_attention_acts(where, seen):
    """Shapes of weights, of what is fused and compared; L_sen sees f_sen without weights."""
    fields = dict(attention_on=where, sen_loss=seen, attention_norm=True, attention_input="score")
    m = dfen.Dfen(config(**fields), info())
    state = jax.eval_shape(m.init, jax.random.key(0))
    x = jax.ShapeDtypeStruct((4, SIZE, SIZE, 3), jnp.float32)
    out, stats = jax.eval_shape(lambda s, x: m.forward(s.nets, x, True, jax.random.key(0)), state, x)
    d = m.config.direid
    width = d.neck_dim if where == "neck" else out.f_sen.shape[1]
    assert out.weights.shape == (4, width)
    joined = out.f_sen.shape[1] + out.f_inv.shape[1]
    assert out.f_fuse.shape[1] == (2 * d.neck_dim if where == "neck" else joined)
    assert out.neck_sen.shape == out.neck_inv.shape == (4, d.neck_dim)
    assert "moments" in stats["A_deg"]


def test_attention_that_cannot_be():
    with pytest.raises(ConfigError, match="needs sen_loss 'before'"):
        dfen.Dfen(config(attention_on="neck", attention_input="score"), info())
    with pytest.raises(ConfigError, match="attention_norm"):
        fields = dict(attention_norm=True, attention_form="guided", attention_input="self")
        dfen.Dfen(config(**fields), info())


@pytest.mark.slow
@pytest.mark.parametrize("where, seen", ATTENDED)
def test_the_weights_touch_what_they_should(where, seen):
    """L_sen sees no weights; the test feature is that of the weighted feature or neck."""
    fields = dict(attention_on=where, sen_loss=seen, attention_input="score")
    m, plain = dfen.Dfen(config(**fields), info()), dfen.Dfen(config(attention_input="none"), info())
    x = triples()["x_i"]
    nets_ = filled(jax.eval_shape(m.init, jax.random.key(0))).nets
    got = jax.jit(lambda n: m.forward(n, x, False)[0])(nets_)
    C = filled(jax.eval_shape(plain.init, jax.random.key(0))).nets["C"]
    without = jax.jit(lambda n: plain.forward({**n, "C": C}, x, False)[0])(nets_)
    np.testing.assert_allclose(got.p_sen, without.p_sen, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(got.neck_inv, without.neck_inv, rtol=1e-5, atol=1e-5)
    assert np.abs(got.neck_sen - without.neck_sen).max() > 1e-3
    if where == "neck":
        np.testing.assert_allclose(got.neck_sen, without.neck_sen * got.weights, rtol=1e-4, atol=1e-5)
