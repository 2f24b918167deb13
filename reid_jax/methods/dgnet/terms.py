"""The generator's side of DG-Net: what is drawn of two people, and the terms of its loss.

Two people a and b at a time, each with another image of the same identity (p_a, p_b). x_ba = G(s_b, a_a) has
the structure of b and the appearance of a. D steps first; then E_s, G and E_a together, against the new D.

    term       weight          what
    adv        w_adv           generated pictures pass for real
    self       w_self          L1 of G(s_a, a_a) to x_a; and of b, as in all terms
    same       w_same          L1 of G(s_a, a of p_a) to x_a
    id, pid    w_id, w_pid     cross entropy on x_a (erased, if data.erase says so) and on p_a
    gen_id     w_generated     cross entropy on x_ba by a frozen copy of E_a
    code       warm_code       L1 of that copy's code of x_ba to a_a (moves nothing unless live_code)
    structure  warm_structure  L1 of E_s of x_ab to s_a
    cycle      warm_cycle      L1 of the picture decoded from these two to x_a
    teacher    warm_teacher    classifier1 as the teacher on x_ba; classifier2 as the structure's person, b
"""

import jax
import jax.numpy as jnp
from jax import lax

from reid_jax.losses import generation, identity
from reid_jax.methods import Method
from reid_jax.methods.dgnet import nets as networks
from reid_jax.models import modes
from reid_jax.models.layers import wide

STYLES = ("soft", "hard", "appearance", "uniform", "both")
WARM = ("code", "structure", "cycle", "teacher")
TERMS = ("adv", "self", "same", "id", "pid", "gen_id", *WARM)


class Terms(Method):
    """A stage with `modules` E_s, G, E_a, D and, where the teacher has a weight, T; `copy`, E_a at rest."""

    # ---- forward

    def structure(self, nets, x):
        """E_s of images [...,H,W,3] (one leading axis or two)."""
        maps = self.modules["E_s"].apply(nets["E_s"], networks.grey(flat(x)))
        return maps.reshape(*x.shape[:-3], *maps.shape[1:])

    def decode(self, nets, s, code):
        """Images [N,2,B,H,W,3] of structures [N,2,B,...] and codes [N,2,B,D]."""
        images = self.modules["G"].apply(
            nets["G"], s.reshape(-1, *s.shape[-3:]), code.reshape(-1, code.shape[-1])
        )
        return images.reshape(*s.shape[:3], *images.shape[1:])

    def looks(self, nets, stats, x, key):
        """E_a in training on [P,B,H,W,3], one part after the other: (Look [P,B,...], batch_stats)."""
        variables = {**nets["E_a"], "batch_stats": stats}
        return modes.each(self.modules["E_a"], variables, x, train=True, key=key)

    def forward(self, nets, x, key):
        """({name: array}, E_a's batch_stats): structures, codes, logits and the six pictures of a and b.

        s, swapped (x_ba, x_ab), self, same: [2,B,...]; look: of x_a, x_b, p_a, p_b [4,B,...].
        """
        s = self.structure(nets, x["x"])
        images = jnp.concatenate([x["x"], x["p"]])
        look, stats = self.looks(nets, nets["E_a"]["batch_stats"], images, key)
        code = look.code[:2]
        decoded = self.decode(nets, jnp.stack([s[::-1], s, s]), jnp.stack([code, code, look.code[2:]]))
        return {"s": s, "look": look, **dict(zip(("swapped", "self", "same"), decoded, strict=True))}, stats

    # ---- losses

    def losses(self, nets, out, stats, x, draws, step):
        """({term: f[] or f[2]}, E_a's batch_stats) of the generator's side; nets: with the new D."""
        d, pid = self.config.dgnet, x["pid"]
        key_erased, key_teacher = jax.random.split(draws.key)
        look = out["look"]
        if "erased" in x:
            images = jnp.concatenate([x["erased"], x["p_erased"]])
            look, stats = self.looks(nets, stats, images, key_erased)
        before = self.weights(step, after=False)
        fine = before["teacher"] * d.w_fine * each_entropy(look.fine[:2], pid)
        copied = lax.stop_gradient({"params": nets["E_a"]["params"], "batch_stats": stats})
        seen, _ = modes.each(self.copy, copied, out["swapped"], train=d.train_bn)
        values = {
            "adv": d.scales
            * jax.vmap(lambda i: generation.gen(self.modules["D"], nets["D"], i))(out["swapped"]),
            "self": apart(out["self"], x["x"]),
            "same": apart(out["same"], x["x"]),
            "id": each_entropy(look.prim[:2], pid) + fine,
            "pid": each_entropy(look.prim[2:], pid),
            "gen_id": each_entropy(seen.prim, pid),
        }
        code = lax.stop_gradient(out["look"].code[:2])
        values["code"] = where(before["code"], apart(seen.code, code))
        values |= self.again(nets, out, seen.code, x, draws.encoder, before)
        values["teacher"], stats = self.taught(nets, out, stats, pid, key_teacher, before["teacher"])
        return values, stats

    def again(self, nets, out, code, x, encoder, weight):
        """{"structure", "cycle": f[2]}: the swapped pictures encoded and, with their codes, decoded again.

        encoder: bool[], whether E_s learns from the pictures as they are, else they from E_s as it is.
        """
        d = self.config.dgnet
        zero = jnp.zeros(2, wide(x["x"]).dtype)
        if not (reached(d.warm_structure) or reached(d.warm_cycle)):
            return {"structure": zero, "cycle": zero}

        def compute(nets, out, code):
            image = jnp.where(encoder, lax.stop_gradient(out["swapped"]), out["swapped"])
            E_s = jax.tree.map(lambda p: jnp.where(encoder, p, lax.stop_gradient(p)), nets["E_s"])
            s = self.structure({"E_s": E_s}, image)[::-1]  # of x_ab, then of x_ba
            image = self.decode(nets, s[None], code[None])[0]
            structure = where(weight["structure"], apart(s, lax.stop_gradient(out["s"])))
            return {"structure": structure, "cycle": where(weight["cycle"], apart(image, x["x"]))}

        def nothing(nets, out, code):
            return {"structure": zero, "cycle": zero}

        needed = (weight["structure"] > 0) | (weight["cycle"] > 0)
        parts = {n: nets[n] for n in ("E_s", "G")}, {n: out[n] for n in ("s", "swapped")}, code
        return lax.cond(needed, compute, nothing, *parts)

    def taught(self, nets, out, stats, pid, key, weight):
        """(f[], E_a's batch_stats): what the fixed pictures teach E_a."""
        d = self.config.dgnet
        if "T" not in nets:
            return jnp.zeros(()), stats

        look_type = out["look"].prim.dtype

        def compute(nets, images, stats):
            look, stats = self.looks(nets, stats, images, key)
            target = self.target(nets, images, pid)
            student = jax.nn.log_softmax(look.prim)
            prim = jnp.where(target > 0, target * (jnp.log(jnp.where(target > 0, target, 1)) - student), 0)
            fine = each_entropy(look.fine, pid[::-1])
            return d.w_prim * prim.sum(-1).mean(-1).sum() + d.w_fine * fine, stats

        def nothing(nets, images, stats):
            return jnp.zeros((), look_type), stats

        parts = {n: nets[n] for n in ("E_a", "T")}, lax.stop_gradient(out["swapped"]), stats
        return lax.cond(weight > 0, compute, nothing, *parts)

    def target(self, nets, images, pid):
        """What classifier1 is to say of x_ba, x_ab [2,B,H,W,3], identities pid i32[2,B] being those of the
        appearance: f[2,B,K], no gradient."""
        style, classes = self.config.dgnet.teacher_style, self.info.num_pids
        appearance, structure = (jax.nn.one_hot(p, classes, dtype=images.dtype) for p in (pid, pid[::-1]))
        if style == "appearance":
            return appearance
        if style == "uniform":
            return jnp.full_like(appearance, 1 / classes)
        p = lax.stop_gradient(self.opinion(nets, images))
        if style == "hard":
            return jax.nn.one_hot(p.argmax(-1), classes, dtype=p.dtype)
        if style == "both":
            p = p * jnp.maximum(appearance, structure)
        return p / p.sum(-1, keepdims=True)

    def enlarged(self, x):
        """Images [B,H,W,3] as the teacher takes them."""
        return networks.enlarged(x, self.config.dgnet.scale2)

    def opinion(self, nets, images):
        """The teacher's probabilities of images [2,B,H,W,3] and of their mirror images, added: f[2,B,K]."""
        images = jax.vmap(self.enlarged)(images)
        both = jnp.concatenate([images, images[:, :, :, ::-1]])
        out, _ = modes.each(
            self.modules["T"], lax.stop_gradient(nets["T"]), both, train=self.config.dgnet.train_bn
        )
        plain, mirrored = jnp.split(jax.nn.softmax(out.logits[0]), 2)
        return plain + mirrored

    def weights(self, step, after):
        """{term: weight} at a 0-based step; after: when those that rise have been raised in it."""
        d = self.config.dgnet
        fixed = dict(adv=d.w_adv, self=d.w_self, same=d.w_same, id=d.w_id, pid=d.w_pid, gen_id=d.w_generated)
        from_ = dict.fromkeys(WARM, d.warm_from) | {"teacher": d.warm_teacher_from}
        ranges = dict(
            code=d.warm_code, structure=d.warm_structure, cycle=d.warm_cycle, teacher=d.warm_teacher
        )
        return fixed | {n: raised(step, from_[n], d.warm_by, *ranges[n], after) for n in WARM}


def raised(step, begin, by, low, high, after):
    """A weight that rises in every step beyond number `begin`, before or after the step's own rise."""
    rises = jnp.maximum(step - begin - (0 if after else 1), 0)
    return jnp.minimum(low + by * rises, jnp.maximum(low, high))


def reached(limits):
    """Whether a weight of (first, last) is ever positive."""
    return max(limits) > 0


def where(weight, value):
    """value where weight is positive, else 0."""
    return jnp.where(weight > 0, value, 0)


def each_entropy(logits, pid):
    """Sum over the leading axis of the mean cross entropies of logits f[2,B,K]."""
    return sum(identity.cross_entropy(x, p) for x, p in zip(logits, pid, strict=True))


def apart(a, b):
    """Mean absolute difference of each of the two leading parts, f[2]."""
    return jnp.abs(wide(a) - wide(b)).reshape(2, -1).mean(1)


def flat(x):
    """[...,H,W,C] -> [N,H,W,C]."""
    return x.reshape(-1, *x.shape[-3:])
