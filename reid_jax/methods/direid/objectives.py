"""Objectives of DDGAN, DI-REID's first stage.

A batch is a triple of images: x_i, its synthetic degradation x_j, another real image x_k. "Self" phases are
on (a, b) = (x_i, x_j), "cross" phases on (x_i, x_k). x_pq = G(c_p, d_q) has the content of p and the
degradation of q. D_deg scores quality: higher is BETTER, the paper's sign turned; reports show
`judges.degradation_score`.

    term       of the generator                                                 phases
    inv        L1(c_a, c_b)                                                     self
    self_rec   L1(x_aa, x_a), in the cross phase and with degraded_recon also x_bb  both
    rec        L1(x_ba, x_a), with degraded_recon also x_ab; cross: the cycle   both
    pre        L1 of E_id's features of x_ab, x_a and of x_ba, x_b              both
    id         cross entropy on f_inv; with self_kl KL(p_a || p_b)              cross; self
    real       generated images pass for real                                   both
    deg        generated images have the degradation they were given            both
"""

import jax.numpy as jnp
from jax import lax

from reid_jax.config import choice
from reid_jax.losses import distill, identity
from reid_jax.methods.direid import judges
from reid_jax.methods.direid.stage import Stage
from reid_jax.models import modes

TERMS = ("inv", "self_rec", "rec", "pre", "id", "real", "deg")


class Objectives(Stage):
    """Images of a pair and the losses on them; a stage sets what follows.

    modules: the networks; terms: {cross: terms of the phase}; weight: {term: its weight}; semi: whether x_i
    is known to be good, x_k poor.
    """

    terms: dict
    weight: dict
    semi: bool

    # ---- forward

    def encode(self, nets, x_a, x_b, cross, *, train, key=None):
        """Codes and the four images of a pair: ({name: array}, E_con's batch_stats).

        Names: f_a, f_b, c_a, c_b, d_a, d_b, x_aa, x_bb, x_ab, x_ba; where the phase has the term "id" also
        p_a, p_b of the classifier. d_b is by E_d in the cross phase, else by E'_d.
        """
        E_con = self.modules["E_con"]
        (f, c), stats = modes.each(E_con, nets["E_con"], jnp.stack([x_a, x_b]), train=train)
        out = {"f_a": f[0], "f_b": f[1], "c_a": c[0], "c_b": c[1]}
        if "id" in self.terms[cross]:
            variables = {**nets["E_con"], "batch_stats": stats}
            (_, p), stats = modes.each(E_con, variables, f, train=train, method="classify", key=key)
            out["p_a"], out["p_b"] = p
        if cross:
            out["d_a"], out["d_b"] = jnp.split(self.apply(nets, "E_deg", jnp.concatenate([x_a, x_b])), 2)
        else:
            out["d_a"], out["d_b"] = self.apply(nets, "E_deg", x_a, x_b, method="both")
        pairs = ("aa", "bb", "ab", "ba")
        c = jnp.concatenate([out[f"c_{p}"] for p, _ in pairs])
        d = jnp.concatenate([out[f"d_{q}"] for _, q in pairs])
        images = jnp.split(self.apply(nets, "G", c, d), 4)
        return out | {f"x_{p}": x for p, x in zip(pairs, images, strict=True)}, stats

    def cycle(self, nets, stats, out, x_a, x_b, train):
        """Images decoded from the codes of generated ones, against the originals: (L1 sum, batch_stats)."""
        variables, fakes = {**nets["E_con"], "batch_stats": stats}, (out["x_ab"], out["x_ba"])
        c, stats = modes.each(
            self.modules["E_con"], variables, jnp.stack(fakes), train=train, method="content"
        )
        d_b, d_a = jnp.split(self.apply(nets, "E_deg", jnp.concatenate(fakes)), 2)
        images = self.apply(nets, "G", jnp.concatenate([*c]), jnp.concatenate([d_a, d_b]))
        return 2 * judges.l1(images, jnp.concatenate([x_a, x_b])), stats

    # ---- losses

    def discriminator_losses(self, nets, out, batch, draws, cross):
        """Weighted losses of D_real and D_deg, {"real", "deg": f[]} as far as the phase has them.

        nets: {"D_real", "D_deg": {"params"}}, differentiated; out: of `encode`, taken without gradient.
        """
        out, values = lax.stop_gradient(out), {}
        if "real" in self.terms[cross]:
            values["real"] = self.weight["real"] * self.D_real_loss(nets["D_real"], out, batch, draws, cross)
        if "deg" in self.terms[cross]:
            values["deg"] = self.weight["deg"] * self.D_deg_loss(nets["D_deg"], *pair(batch, cross), cross)
        return values

    def D_real_loss(self, params, out, batch, draws, cross):
        """D_real's loss: the sum over pairs of a generated and a real image."""
        d, (x_a, x_b) = self.config.direid, pair(batch, cross)
        if cross:
            fakes, reals = (out["x_ab"], out["x_ba"]), (x_a, x_b)
        elif d.reality_self == "synthetic":
            fakes, reals = (out["x_ab"], out["x_bb"]), (x_a, batch["x_k"])
        else:
            fakes, reals = (jnp.where(draws.first, out["x_ab"], out["x_ba"]),), (x_a,)
        options = dict(form=d.gan_form, penalty=d.gradient_penalty)
        images = jnp.concatenate(fakes), jnp.concatenate(reals)  # one mean over all, the pairs being alike
        return len(fakes) * judges.dis(self.modules["D_real"], params, *images, **options)

    def D_deg_loss(self, params, x_a, x_b, cross):
        """D_deg's loss: x_b is worse than x_a, where nobody knows it D_deg's own opinion is made firmer."""
        d, net = self.config.direid, self.modules["D_deg"]
        if cross and self.semi:
            return 2 * judges.dis(net, params, x_b, x_a, form=d.gan_form, penalty=d.gradient_penalty)
        y = judges.predict(net, params, x_b, x_a) if cross else -1.0
        return judges.rank_dis(net, params, x_b, x_a, y, margin=d.rank_margin, penalty=d.gradient_penalty)

    def generator_losses(self, nets, out, stats, batch, cross, train=True):
        """Weighted losses of E_con, E_deg and G by term, and E_con's batch_stats: ({term: f[]}, batch_stats).

        nets: all networks, the discriminators already updated; out, stats: of `encode`.
        """
        (x_a, x_b), there, values = pair(batch, cross), self.terms[cross], {}
        degraded = cross or self.config.direid.degraded_recon
        l1 = judges.l1
        if "inv" in there:
            values["inv"] = l1(out["c_a"], out["c_b"])
        if "self_rec" in there:
            values["self_rec"] = l1(out["x_aa"], x_a) + (l1(out["x_bb"], x_b) if degraded else 0)
        if "rec" in there and not cross:
            values["rec"] = l1(out["x_ba"], x_a) + (l1(out["x_ab"], x_b) if degraded else 0)
        if "pre" in there:
            values["pre"] = self.preservation(nets, out, x_a, x_b)
        if "id" in there:
            values["id"] = prediction(out, batch, cross)
        if "real" in there:
            values["real"] = self.reality(nets, out, cross)
        if "deg" in there:
            values["deg"] = self.degradation(nets, out, x_a, x_b, cross)
        values = {name: self.weight[name] * value for name, value in values.items()}
        if "rec" in there and cross:
            loss, stats = self.cycle(nets, stats, out, x_a, x_b, train)
            values["rec"] = self.weight["cycle"] * loss
        return values, stats

    def preservation(self, nets, out, x_a, x_b):
        """L_pre (eq. 3, 8): E_id is in test mode and gives gradient to the generated images only."""
        nets = lax.stop_gradient({"E_id": nets["E_id"]})
        target = self.apply(nets, "E_id", jnp.concatenate([x_a, x_b]), False)
        output = self.apply(nets, "E_id", jnp.concatenate([out["x_ab"], out["x_ba"]]), False)
        return 2 * judges.l1(output, lax.stop_gradient(target))

    def reality(self, nets, out, cross):
        """L_real of the generator: swapped images pass for real, in the paper's self phase those by E'_d."""
        d = self.config.direid
        other = "x_bb" if not cross and d.reality_self == "synthetic" else "x_ba"
        fakes = jnp.concatenate([out["x_ab"], out[other]])
        return 2 * judges.gen(self.modules["D_real"], nets["D_real"], fakes, form=d.gan_form)

    def degradation(self, nets, out, x_a, x_b, cross):
        """L_deg of the generator: x_ab is to be as degraded as x_b, x_ba as good as x_a."""
        d, judge = self.config.direid, (self.modules["D_deg"], nets["D_deg"])
        if cross and self.semi:
            worse = judges.gen(*judge, out["x_ab"], real=False, form=d.gan_form)
            return worse + judges.gen(*judge, out["x_ba"], form=d.gan_form)
        y = judges.predict(*judge, x_b, x_a) if cross else -1.0
        if d.rank_generator == "generated":
            return judges.rank_gen(*judge, out["x_ab"], out["x_ba"], y, margin=d.rank_margin)
        both = jnp.concatenate([y, y]) if cross else y
        lower, higher = jnp.concatenate([out["x_ab"], x_b]), jnp.concatenate([x_a, out["x_ba"]])
        return 2 * judges.rank_gen(*judge, lower, higher, both, margin=d.rank_margin)


def pair(batch, cross):
    """(x_a, x_b) of a phase."""
    return batch["x_i"], batch["x_k" if cross else "x_j"]


def prediction(out, batch, cross):
    """The term "id" f[] of logits p_a, p_b [B,K]."""
    if not cross:
        return distill.kl(out["p_a"], out["p_b"], detach=False)
    labels = zip("ab", (batch["pid_i"], batch["pid_k"]), strict=True)
    return sum(identity.cross_entropy(out[f"p_{side}"], pid) for side, pid in labels)


def terms(config, cross):
    """Terms that a phase has."""
    d = config.direid
    dropped = d.without_cross if cross else d.without_self
    for name in dropped:
        choice(f"direid.without_{'cross' if cross else 'self'}", name, TERMS)
    there = {n: True for n in TERMS} | {
        "inv": not cross,
        "rec": bool(d.w_cycle) or not cross,
        "pre": bool(d.w_pre),
        "id": cross or d.self_kl,
    }
    return [n for n in TERMS if there[n] and n not in dropped]


def weights(d):
    """{term: its weight} of config.direid; "cycle" is of "rec" in the cross phase."""
    weight = dict(inv=d.w_inv, self_rec=d.w_recon, rec=d.w_recon, pre=d.w_pre, id=d.w_id)
    return weight | dict(real=d.w_real, deg=d.w_deg, cycle=d.w_cycle)
