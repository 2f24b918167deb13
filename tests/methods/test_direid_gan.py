"""DI-REID's first stage: every equation against a loop, what moves in which phase."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from methods.direid_small import SIZE, config, info, triples
from sklearn.metrics import roc_auc_score
from small import difference, drawn

from reid_jax.data import degrade
from reid_jax.errors import ConfigError
from reid_jax.methods import State
from reid_jax.methods.direid import gan, judges, nets, objectives, parameters


def draws(cross, first=False):
    return gan.Draws(jnp.bool_(cross), jnp.bool_(first), jax.random.key(0))


def lively(state):
    """The state with biases and small kernels away from 0, so that every path shows."""
    rng = np.random.default_rng(7)

    def shake(x):
        return x + 0.05 * rng.standard_normal(x.shape).astype(np.float32)

    nets = {n: {**v, "params": jax.tree.map(shake, v["params"])} for n, v in state.nets.items()}
    for name in parameters.DISCRIMINATORS:  # scores of about 1
        nets[name] = {"params": jax.tree.map(lambda x: 4 * x, nets[name]["params"])}
    return state._replace(nets=nets)


PHASES = ("self", False), ("cross", True)
SMALLER = dict(multi_scale=False, reality_scales=1)  # what these tests do not look at, to compile faster


@pytest.fixture(scope="module")
def paper():
    """(Ddgan, state) of the paper's preset."""
    method = gan.Ddgan(config(**SMALLER), info())
    return method, lively(drawn(method))


@pytest.fixture(scope="module")
def computed(paper):
    """(outputs, losses) in test mode.

    outputs: of encode, {"self", "cross": {name: array}}. losses: the generator's and the discriminators',
    weighted, {"self", "cross", "semi": ({term: f[]}, {term: f[]})}; "semi": the term "deg" of the cross phase
    where x_k is known to be poor.
    """
    method, state = paper
    semi = gan.Ddgan(config(pairs="semi", w_pre=0.0, **SMALLER), info())

    @jax.jit
    def compute(nets, b):
        outputs = {
            phase: method.encode(nets, *objectives.pair(b, cross), cross, train=False)[0]
            for phase, cross in PHASES
        }

        def losses(method, phase, cross):
            generator, _ = method.generator_losses(nets, outputs[phase], {}, b, cross, train=False)
            return generator, method.discriminator_losses(nets, outputs[phase], b, draws(cross), cross)

        values = {phase: losses(method, phase, cross) for phase, cross in PHASES}
        values["semi"] = [{"deg": side["deg"]} for side in losses(semi, "cross", True)]
        return outputs, values

    return compute(state.nets, triples())


class Naive:
    """The networks as functions of one image, and the paper's formulas in float64, image by image."""

    def __init__(self, method, state):
        self.modules, self.nets = method.modules, state.nets
        self.score_maps = {n: jax.jit(lambda x, n=n: self.maps(n, x)) for n in parameters.DISCRIMINATORS}
        self.slopes = {
            (n, mean): jax.jit(jax.jacrev(lambda x, n=n, mean=mean: self.totals(n, x, mean)))
            for n, mean in (("D_real", False), ("D_deg", False), ("D_deg", True))
        }
        self.id_feature = jax.jit(lambda x: method.apply(state.nets, "E_id", x[None], False)[0])

    def maps(self, name, x):
        return [o[0] for o in self.modules[name].apply(self.nets[name], x[None])]

    def totals(self, name, x, mean):
        return jnp.stack([o.mean() if mean else o.sum() for o in self.maps(name, x)])

    def m(self, x):
        """Mean scores of D_deg, one for each scale."""
        return [float(np.mean(np.asarray(o, np.float64))) for o in self.score_maps["D_deg"](x)]

    def dis(self, name, fakes, reals):
        total, count = 0.0, len(fakes)
        for fake, real in zip(fakes, reals, strict=True):
            slopes = np.asarray(self.slopes[name, False](real), np.float64)
            pairs = zip(self.score_maps[name](fake), self.score_maps[name](real), slopes, strict=True)
            for f, r, slope in pairs:
                f, r = np.asarray(f, np.float64), np.asarray(r, np.float64)
                total += ((f**2).mean() + ((r - 1) ** 2).mean() + 0.01 * (slope**2).sum()) / len(slopes)
        return total / count

    def gen(self, name, images, target=1.0):
        values = [
            2 * ((np.asarray(o, np.float64) - target) ** 2).mean()
            for x in images
            for o in self.score_maps[name](x)
        ]
        return np.mean(values)

    def hinges(self, lower, higher, y):
        """Mean over pairs and scales of max(0, 1 - y (m(lower) - m(higher)))."""
        values = [
            max(0.0, 1 - sign * (u - v))
            for a, b, sign in zip(lower, higher, y, strict=True)
            for u, v in zip(self.m(a), self.m(b), strict=True)
        ]
        return np.mean(values)

    def penalty(self, images):
        squares = [np.square(np.asarray(self.slopes["D_deg", True](x), np.float64)) for x in images]
        return 0.01 * np.mean([s.sum((1, 2, 3)) for s in squares])

    def order(self, p, q):
        return [1.0 if sum(self.m(a)) >= sum(self.m(b)) else -1.0 for a, b in zip(p, q, strict=True)]

    def features(self, a, b):
        return np.mean(
            [
                np.abs(np.asarray(self.id_feature(u)) - np.asarray(self.id_feature(v)))
                for u, v in zip(a, b, strict=True)
            ]
        )


def l1(a, b):
    return np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).mean()


def cross_entropy(logits, pid):
    logits = np.asarray(logits, np.float64)
    return np.mean([np.log(np.exp(z).sum()) - z[k] for z, k in zip(logits, np.asarray(pid), strict=True)])


@pytest.fixture(scope="module")
def naive(paper):
    return Naive(*paper)


def close(got, want):
    """The same terms and values; none of them 0."""
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert abs(value) > 1e-4, name
        np.testing.assert_allclose(got[name], value, rtol=2e-4, err_msg=name)


@pytest.mark.slow
def test_self_phase_is_the_papers(naive, computed):
    """Equations 1 to 5."""
    o, losses, b = computed[0]["self"], computed[1], triples()
    x_i, x_j, x_k = b["x_i"], b["x_j"], b["x_k"]
    want = dict(
        inv=5 * l1(o["c_a"], o["c_b"]),
        self_rec=10 * l1(o["x_aa"], x_i),
        rec=10 * l1(o["x_ba"], x_i),
        pre=0.5 * (naive.features(o["x_ab"], x_i) + naive.features(o["x_ba"], x_j)),
        real=naive.gen("D_real", o["x_ab"]) + naive.gen("D_real", o["x_bb"]),
        deg=naive.hinges(o["x_ab"], x_i, [-1] * 4) + naive.hinges(x_j, o["x_ba"], [-1] * 4),
    )
    close(losses["self"][0], want)
    real = naive.dis("D_real", o["x_ab"], x_i) + naive.dis("D_real", o["x_bb"], x_k)
    deg = naive.hinges(x_j, x_i, [-1] * 4) + naive.penalty(x_i)
    close(losses["self"][1], dict(real=real, deg=deg))


@pytest.mark.slow
def test_cross_phase_is_the_papers(naive, computed):
    """Equations 6 to 10, unsupervised."""
    o, losses, b = computed[0]["cross"], computed[1], triples()
    x_i, x_k = b["x_i"], b["x_k"]
    y = naive.order(x_k, x_i)
    want = dict(
        self_rec=10 * (l1(o["x_aa"], x_i) + l1(o["x_bb"], x_k)),
        pre=0.5 * (naive.features(o["x_ab"], x_i) + naive.features(o["x_ba"], x_k)),
        id=0.5 * (cross_entropy(o["p_a"], b["pid_i"]) + cross_entropy(o["p_b"], b["pid_k"])),
        real=naive.gen("D_real", o["x_ab"]) + naive.gen("D_real", o["x_ba"]),
        deg=naive.hinges(o["x_ab"], x_i, y) + naive.hinges(x_k, o["x_ba"], y),
    )
    close(losses["cross"][0], want)
    real = naive.dis("D_real", o["x_ab"], x_i) + naive.dis("D_real", o["x_ba"], x_k)
    close(losses["cross"][1], dict(real=real, deg=naive.hinges(x_k, x_i, y) + naive.penalty(x_i)))


@pytest.mark.slow
def test_semi_supervised_cross_phase(naive, computed):
    """x_i is good, x_k poor: D_deg tells them apart as real and fake."""
    o, (generator, judged), b = computed[0]["cross"], computed[1]["semi"], triples()
    want = naive.gen("D_deg", o["x_ab"], 0.0) + naive.gen("D_deg", o["x_ba"])
    np.testing.assert_allclose(generator["deg"], want, rtol=2e-4)
    np.testing.assert_allclose(judged["deg"], 2 * naive.dis("D_deg", b["x_k"], b["x_i"]), rtol=2e-4)


def test_log_form():
    """Binary cross entropy on the maps' logits."""
    o = np.random.default_rng(0).standard_normal((2, 3, 3, 1))
    p = 1 / (1 + np.exp(-o))
    np.testing.assert_allclose(judges.as_real(jnp.asarray(o), "log"), -np.log(p).mean(), rtol=1e-5)
    np.testing.assert_allclose(judges.as_fake(jnp.asarray(o), "log"), -np.log(1 - p).mean(), rtol=1e-5)


# ---- the step


@pytest.fixture(scope="module")
def steps(paper):
    """States of the paper's preset: start, after a self, after a self and a cross step; their metrics."""
    method, state = paper
    step = jax.jit(method.update)
    states, metrics = [state], []
    for cross in (False, True):
        new, found = step(states[-1], triples(), draws(cross))
        states.append(new)
        metrics.append(found)
    assert step._cache_size() == 1
    return states, metrics


def moved(before, after):
    """{network: {module: largest change}}, one level deeper inside E_con's head."""
    flat = [traverse_util.flatten_dict({n: v["params"] for n, v in s.nets.items()}) for s in (before, after)]
    found = {}
    for path, old in flat[0].items():
        name = path[2] if path[:2] == ("E_con", "head") else path[1]
        change = float(np.abs(np.asarray(flat[1][path]) - np.asarray(old)).max())
        own = found.setdefault(path[0], {})
        own[name] = max(own.get(name, 0.0), change)
    return found


@pytest.mark.slow
def test_who_moves(steps):
    """Section 4.5 of the method: the stem and E_id never, others only in phases with gradient."""
    (start, first, second), _ = steps
    for cross, change in ((False, moved(start, first)), (True, moved(first, second))):
        assert change["E_con"].pop("base") == 0
        assert max(change["E_id"].values()) == 0
        rest = {n for n in change["E_con"] if n.startswith("identity_")} | {"classifier"}
        assert len(rest) >= 4
        for name, value in change["E_con"].items():
            assert (value > 0) == (cross or name not in rest), (cross, name)
        for name, value in change["E_deg"].items():
            assert (value > 0) == (not cross or name not in ("trunk_sync", "conv3_sync")), (cross, name)
        for net in ("G", "D_real", "D_deg"):
            assert min(change[net].values()) > 0, (cross, net)


@pytest.mark.slow
def test_resting_moments_stay(steps):
    """Adam's moments and counts of a group move only in its phases."""
    (start, first, second), _ = steps
    for group, in_self, in_cross in (
        ("identity", 0, 1),
        ("sync", 1, 0),
        ("generator", 1, 1),
        ("D_deg", 1, 1),
    ):
        assert (difference(start.opt[group], first.opt[group]) > 0) == bool(in_self), group
        assert (difference(first.opt[group], second.opt[group]) > 0) == bool(in_cross), group
        counts = [int(s.opt[group][1].count) for s in (start, first, second)]
        assert counts == [0, in_self, in_self + in_cross], group


@pytest.mark.slow
def test_statistics(steps):
    """The stem's running statistics move although it rests; E_id's stay."""
    (start, first, _), metrics = steps
    for net, expected in (("E_con", True), ("E_id", False)):
        old, new = (s.nets[net]["batch_stats"]["base"] for s in (start, first))
        assert (difference(old, new) > 0) == expected
    assert metrics[0].keys() == metrics[1].keys()
    assert metrics[0]["gen_inv"] > 0 == metrics[1]["gen_inv"]
    assert metrics[1]["gen_id"] > 0 == metrics[0]["gen_id"]


@pytest.mark.slow
def test_a_step_by_whole_gradients():
    """The journal's cross phase: each side's update is Adam on the gradient of its own losses alone.

    The discriminators' losses take the images as they are; the generator's, one function of its weights with
    the cycle, see the new discriminators.
    """
    method, b = gan.Ddgan(config("journal"), info()), triples(3)

    def total(params, nets):
        all_ = parameters.with_params(nets, {n: params[n] for n in parameters.GENERATOR})
        out, stats = method.encode(all_, b["x_i"], b["x_k"], True, train=True)
        generator, _ = method.generator_losses(all_, out, stats, b, True)
        judging = {n: {"params": params[n]} for n in parameters.DISCRIMINATORS}
        judged = method.discriminator_losses(judging, out, b, draws(True), True)
        return sum(generator.values()) + sum(judged.values()), sum(generator.values())

    state = lively(drawn(method, 1))
    new, metrics = jax.jit(lambda s, b: method.phase(s, b, draws(True), True))(state, b)
    old = parameters.trained(state.nets, (*parameters.GENERATOR, *parameters.DISCRIMINATORS))
    updated = {**state.nets, **{n: new.nets[n] for n in parameters.DISCRIMINATORS}}
    whole = jax.jit(jax.grad(total, has_aux=True))
    grads, _ = whole(old, state.nets)  # of the discriminators, on images of the old generator
    later, value = whole(old, updated)  # of the generator, by the new ones
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
    grads = {n: (grads if n in parameters.DISCRIMINATORS else later)[n] for n in old}

    def by_hand(p, g):
        """The first step of Adam without b1: the second moment is the squared gradient, with L2 5e-4."""
        g = g + 5e-4 * p
        return p - 1e-2 * g / (jnp.abs(g) + 1e-3)

    want = parameters.split_groups(jax.tree.map(by_hand, old, grads))
    got = parameters.split_groups(parameters.trained(new.nets, tuple(old)))
    for group in ("generator", "identity", "D_real", "D_deg"):
        assert difference(want[group], got[group]) < 1e-4, group
    assert difference(got["sync"], parameters.split_groups(old)["sync"]) == 0
    assert metrics["gen_rec"] > 0


# ---- the degradation discriminator alone


def people(rng, count):
    """Figures in clothes of two colours before a background, with a weave: u8[count,SIZE,SIZE,3]."""
    colours = rng.uniform(60, 220, (count, 3, 3))  # background, upper, lower body
    part = np.zeros((SIZE, SIZE), int)
    part[4:18, 10:22], part[18:, 11:21] = 1, 2
    weave = rng.normal(0, 25, (count, SIZE, SIZE, 1))
    return np.clip(colours[:, part] + weave, 0, 255).astype(np.uint8)


@pytest.mark.slow
@pytest.mark.parametrize("kind, std, steps", [("ill", 0.02, 40), ("res", 0.0, 120)])
def test_degradation_discriminator_learns_to_rank(kind, std, steps):
    """D_deg from the wrong order of most pairs to telling clean and poor pictures of any two people apart.

    So narrow a net sees no blur from the paper's initial weights, which are too small for it.
    """
    m, rng = config(discriminator_std=std), np.random.default_rng(0)
    m.optim.eps, m.optim.weight_decay = 1e-8, 0.0  # the first gradients are tiny, decay would win
    net, tx = nets.degradation_discriminator(m), gan.optimiser(m.optim)

    def pairs(count):
        clean = people(rng, count)
        poor = np.stack([degrade.enlarge(degrade.draw(rng, x, kind), SIZE, SIZE) for x in clean])
        return [jnp.asarray(x / 127.5 - 1, jnp.float32) for x in (clean, poor)]

    score = jax.jit(lambda params, x: judges.scores(net, params, x).mean(-1))

    def right(params, clean, poor):
        return float((score(params, clean) > score(params, poor)).mean())

    held_out = pairs(64)
    begin = jax.jit(lambda seed: nets.init(net, jax.random.key(seed), held_out[0][:1]))
    params = next(p for p in map(begin, range(20)) if right(p, *held_out) < 0.5)

    @jax.jit
    def step(params, opt, clean, poor):
        options = dict(margin=m.direid.rank_margin, penalty=m.direid.gradient_penalty)
        grad = jax.grad(lambda p: judges.rank_dis(net, p, poor, clean, **options))(params)
        update, opt = tx.update(grad, opt, params)
        return jax.tree.map(lambda p, u: p - 1e-2 * u, params, update), opt

    opt = tx.init(params)
    for _ in range(steps):
        params, opt = step(params, opt, *pairs(16))
    clean, poor = (np.asarray(score(params, x)) for x in held_out)
    assert (clean - poor).mean() > m.direid.rank_margin / 2
    assert roc_auc_score(np.repeat([1, 0], 64), np.concatenate([clean, poor])) > 0.9


# ---- draws, schedules, terms


def at(step):
    """A State that only the step is read of."""
    return State(step, {}, {})


def test_phases_take_turns_or_are_drawn():
    in_turn, drawn, always = (gan.Ddgan(config(sync_prob=p), info()) for p in (-1.0, 0.3, 1.0))

    @jax.jit
    @jax.vmap
    def draw(i):
        return in_turn.draw(at(i)).cross, drawn.draw(at(i)), always.draw(at(i)).cross

    turns, seldom, never = draw(jnp.arange(400))
    assert turns[:4].tolist() == [False, True, False, True]
    assert 0.62 < seldom.cross.mean() < 0.78 and 0.4 < seldom.first.mean() < 0.6
    assert not never.any()


def test_learning_rate():
    m = config(gan_milestones=(2, 3, 3))
    m.optim.lr = 1.0
    method = gan.Ddgan(m, info())
    got = [float(method.rate(jnp.int32(i))) for i in range(5)]
    np.testing.assert_allclose(got, [1, 1, 0.1, 0.001, 0.001], rtol=1e-5)


def test_terms_and_groups():
    method = gan.Ddgan(config(without_self=("deg",), without_cross=("id",), self_kl=True), info())
    assert method.terms[False] == ["inv", "self_rec", "rec", "pre", "id", "real"]
    assert method.terms[True] == ["self_rec", "pre", "real", "deg"]
    assert method.active(False) == {"generator", "identity", "sync", "D_real"}
    assert method.active(True) == {"generator", "D_real", "D_deg"}
    assert "rec" in objectives.terms(config("journal"), True) and "pre" not in objectives.terms(
        config("journal"), True
    )
    with pytest.raises(ConfigError, match="without_self"):
        gan.Ddgan(config(without_self=("degradation",)), info())


def test_groups_are_split_and_joined(paper):
    params = parameters.trained(paper[1].nets, (*parameters.GENERATOR, *parameters.DISCRIMINATORS))
    groups = parameters.split_groups(params)
    assert groups.keys() == {"generator", "identity", "sync", "D_real", "D_deg"} == paper[1].opt.keys()
    assert difference(parameters.join_groups(groups), params) == 0
