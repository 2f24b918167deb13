"""DFEN, DI-REID's second stage: f_sen weighted by the degradation, f_inv, and their fusion.

Networks: E_con (content encoder), E_id (identity encoder, whole or on E_con's stem), C (classifier of both
features), A_deg (attention). Frozen ones of the stage gan: D_deg or E_deg, which only the attention reads;
for the replay old_E_con, old_G, old_E_deg. Replay "bank": state.memory["codes"] f32[num_images,code_dim].
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from reid_jax.config import choice
from reid_jax.errors import ConfigError
from reid_jax.losses import distill
from reid_jax.methods import _steps
from reid_jax.methods.direid import attention, gan
from reid_jax.methods.direid import nets as networks
from reid_jax.methods.direid.stage import STEM, Stage, graft, moved, reid

REPLAYS = ("off", "bank", "shuffle")
TRAINED = ("E_con", "E_id", "C", "A_deg")
REPLAYED = ("E_con", "G", "E_deg")  # of the stage gan, here under old_NAME


class Outputs(NamedTuple):
    """Features and logits of a batch, at least float32."""

    f_fuse: jax.Array  # [B,2D] f_sen (after attention), then f_inv; attention_on "neck": of both necks
    f_inv: jax.Array  # [B,D]
    f_sen: jax.Array  # [B,D] as L_sen sees it: after attention, or before
    p_fuse: jax.Array  # [B,K] logits
    p_inv: jax.Array
    p_sen: jax.Array
    neck_inv: jax.Array  # [B,N] test features
    neck_sen: jax.Array
    weights: jax.Array | None = None  # [B,D or N] of the attention, None without

    def test(self):
        """Test features by name: fuse [B,2N] (sen, then inv), inv and sen [B,N]."""
        fuse = jnp.concatenate([self.neck_sen, self.neck_inv], -1)
        return {"fuse": fuse, "inv": self.neck_inv, "sen": self.neck_sen}


class Dfen(Stage):
    """Stage "dfen"; with a replay the earlier stage's networks stay beside those that are trained."""

    nets = ("fuse", "inv", "sen")

    def __init__(self, config, info):
        super().__init__(config, info)
        d = config.direid
        self.shared = choice("direid.dfen", d.dfen, ("dual", "shared")) == "shared"
        self.replays = choice("direid.replay", d.replay, REPLAYS)
        self.on_neck = choice("direid.attention_on", d.attention_on, ("feature", "neck")) == "neck"
        self.before = choice("direid.sen_loss", d.sen_loss, ("after", "before")) == "before"
        if self.on_neck and not self.before:
            raise ConfigError(
                "config.direid.attention_on 'neck' needs sen_loss 'before': E_id's classifier sees no weights"
            )
        self.modules = {
            "E_con": networks.content_encoder(config, info),
            "E_id": networks.identity_encoder(config, info, self.shared),
            "C": networks.class_block(config, info),
            **attention.modules(config, info),
        }
        if "gan" in config.train.skip and (self.modules.keys() & {"D_deg", "E_deg"} or self.replays != "off"):
            raise ConfigError(
                "config.train.skip leaves out the stage gan, which the attention and the replay need: set "
                "config.direid.attention_input to 'none' or 'self' and config.direid.replay to 'off'"
            )
        if self.replays != "off":
            earlier = gan.modules(config, info)
            self.modules |= {f"old_{n}": earlier[n] for n in REPLAYED}
        self.tx = {n: _steps.optimiser(config.optim, self.info) for n in TRAINED if n in self.modules}
        self.rate = _steps.schedule(config.optim, self.info, config.optim.lr)

    # ---- the state

    def init(self, key):
        nets, memory = self.init_networks(key, self.blank()), {}
        if self.replays != "off":
            earlier = gan.init_networks({n: self.modules[f"old_{n}"] for n in REPLAYED}, key, self.blank())
            nets |= {f"old_{n}": variables for n, variables in earlier.items()}
        if self.replays == "bank":
            memory["codes"] = jnp.zeros((self.info.num_images, self.config.direid.code_dim))
        return self.fresh(nets, self.tx, memory)

    def init_networks(self, key, image):
        """Fresh variables of all networks but the replay's for images [B,H,W,3]."""
        keys = dict(zip(TRAINED, jax.random.split(key, 4), strict=True))
        nets = {"E_con": networks.init(self.modules["E_con"], keys["E_con"], image)}
        f_inv, last = self.apply(nets, "E_con", image, False, method="shared")
        x = last if self.shared else image
        nets["E_id"] = networks.init(self.modules["E_id"], keys["E_id"], x)
        f_sen = self.apply(nets, "E_id", x, False)
        size = 2 * self.config.direid.neck_dim if self.on_neck else f_sen.shape[-1] + f_inv.shape[-1]
        nets["C"] = dict(self.modules["C"].init(keys["C"], jnp.zeros((len(f_sen), size), f_sen.dtype), False))
        for name in ("D_deg", "E_deg"):
            if name in self.modules:
                nets[name] = networks.init(self.modules[name], keys["A_deg"], image)
        if "A_deg" in self.modules:
            described = self.described(nets, image, f_sen, False, None)
            nets["A_deg"] = dict(self.modules["A_deg"].init(keys["A_deg"], *described, False))
        return nets

    def inherit(self, state, load, extract):
        new, teacher = dict(state.nets), load("teacher", "E_id")
        new["E_id"] = graft(new["E_id"], teacher)
        if "gan" in self.config.train.skip:
            new["E_con"] = graft(new["E_con"], teacher, STEM)
            return state._replace(nets=new)
        for name in new.keys() - {"E_id", "C", "A_deg"}:
            new[name] = graft(new[name], load("gan", name.removeprefix("old_")))
        if self.replays == "bank":
            codes = jnp.asarray(extract(self.codes, new["old_E_deg"]))
            state = state._replace(memory={"codes": codes})
        return state._replace(nets=new)

    def codes(self, variables, image):
        """The bank's entries f[B,D] of images u8[B,H,W,3] by old_E_deg: the mean with the mirrored ones."""
        x = self.plain(image)
        both = self.apply({"old_E_deg": variables}, "old_E_deg", jnp.concatenate([x, x[:, :, ::-1]]))
        return sum(jnp.split(both, 2)) / 2

    # ---- forward

    def features(self, nets, x, net):
        return self.forward(nets, x, False)[0].test()[net]

    def forward(self, nets, x, train, key=None):
        """(Outputs, {network: batch_stats}) of normalised images [B,H,W,3].

        nets: {network: variables}. key: for dropout and the guided attention's choice, in training.
        """
        stats, keys = {}, [None] * 4 if key is None else jax.random.split(key, 4)

        def moving(name, *args, method=None, key=None):
            options = dict(train=train, method=method, key=key)
            out, stats[name] = self.call(moved(nets, stats), name, *args, **options)
            return out

        f_inv, last = moving("E_con", x, method="shared")
        f_sen = moving("E_id", last if self.shared else x)
        weights = None
        if "A_deg" in self.modules:
            weights = moving("A_deg", *self.described(nets, x, f_sen, train, keys[3]))
        weighted = f_sen if weights is None or self.on_neck else f_sen * weights
        seen = f_sen if self.before else weighted
        neck_inv, p_inv = moving("E_con", f_inv, method="classify", key=keys[0])
        neck_sen, p_sen = moving("E_id", seen, method="classify", key=keys[1])
        if self.on_neck:
            neck_sen = neck_sen if weights is None else neck_sen * weights
            f_fuse = jnp.concatenate([neck_sen, neck_inv], -1)
        else:
            f_fuse = jnp.concatenate([weighted, f_inv], -1)
            if self.before and not train:  # the test compares what the fusion sees
                neck_sen = moving("E_id", weighted, method="classify")[0]
        _, p_fuse = moving("C", f_fuse, key=keys[2])
        return Outputs(f_fuse, f_inv, seen, p_fuse, p_inv, p_sen, neck_inv, neck_sen, weights), stats

    def described(self, nets, x, f_sen, train, key):
        """A_deg's arguments: a description f[B,C] of the degradation of x, for the form "guided" f_sen too.

        The description is of D_deg's scores or features, of E_deg's codes, or f_sen; it gets no gradient.
        """
        source = self.config.direid.attention_input
        if source == "score":
            description = jnp.stack([o.mean((1, 2, 3)) for o in self.apply(nets, "D_deg", x)], -1)
        elif source == "feature":
            description = self.apply(nets, "D_deg", x, method="pooled")
        elif source == "code":
            description = self.apply(nets, "E_deg", x)
        else:
            description = f_sen
        description = lax.stop_gradient(description)
        if self.config.direid.attention_form != "guided":
            return (description,)
        # training draws one of the two ways for the whole batch, tests go by the code
        by_code = jax.random.bernoulli(key) if train and source == "code" else True
        return f_sen, None if source == "self" else description, by_code

    # ---- the step

    def step(self, state, batch):
        x, pid = self.view(batch["train"]), batch["train"]["pid"]
        new, metrics = self.update(state, x, pid, self.device_key(self.key(state)))
        return new, metrics | {"lr": self.rate(state.step)}

    def update(self, state, x, pid, key):
        """One iteration: (State, {name: f32[]}); x f[B,H,W,3] normalised, pid i32[B], key for all draws."""
        code_key, first_key, second_key = jax.random.split(key, 3)
        other = None if self.replays == "off" else self.replay(state, x, code_key)

        def loss(trained):
            nets, replayed = {**state.nets, **trained}, None
            out, stats = self.forward(nets, x, True, first_key)
            if other is not None:
                again, stats = self.forward(moved(nets, stats), other, True, second_key)
                replayed = again.p_inv
            values = self.losses(out, pid, replayed)
            total = sum(values.values())
            accuracy = jnp.mean(out.p_fuse.argmax(-1) == pid)
            watched = self.watched(out.weights)
            return total, stats, {"loss": total, **values, "accuracy": accuracy, **watched}, None

        new, metrics, _ = _steps.descend(loss, state, self.tx, self.axis)
        return new, metrics

    def watched(self, weights):
        """{"attention", "attention_spread": f[]} of weights f[B,D], {} of None; no gradient."""
        if weights is None:
            return {}
        level = lax.stop_gradient(weights).mean(-1, keepdims=True)
        return {
            "attention": level.mean(),
            "attention_spread": jnp.sqrt(_steps.variance(level, self.axis)[0]),
        }

    def losses(self, out, pid, replayed=None):
        """Weighted losses of Outputs (eq. 14), {"fuse", "inv", "sen"[, "smooth"]: f[]}, of labels i32[B].

        replayed: logits p_inv [B,K] of the replayed images.
        """
        d = self.config.direid
        values = {}
        for name, weight in dict(fuse=d.w_fuse, inv=d.w_inv_reid, sen=d.w_sen_reid).items():
            logits, feature = getattr(out, f"p_{name}"), getattr(out, f"f_{name}")
            values[name] = weight * reid(logits, feature, pid, self.config.loss, self.axis)
        if replayed is not None:
            values["smooth"] = d.w_replay * agreement(out.p_inv, replayed, d.replay_loss)
        return values

    def replay(self, state, x, key):
        """Images [B,H,W,3] with the content of x and other degradations, no gradient."""
        c, _ = self.call(state.nets, "old_E_con", x, train=False, method="content")
        images = self.apply(state.nets, "old_G", c, self.replay_codes(state, x, key))
        return lax.stop_gradient(images).astype(x.dtype)

    def replay_codes(self, state, x, key):
        """Codes f[B,D] for a batch: random entries of the bank, or those of x permuted."""
        if self.replays == "bank":
            codes = state.memory["codes"]
            return codes[jax.random.randint(key, (len(x),), 0, len(codes))]
        return jax.random.permutation(key, self.apply(state.nets, "old_E_deg", x))


def agreement(logits, replayed, form):
    """Distance of the predictions on replayed images from those on the images themselves, [B,K] each."""
    choice("direid.replay_loss", form, ("kl", "kl_detach", "js", "js_detach"))
    detach = form.endswith("_detach")
    if form.startswith("kl"):
        return distill.kl(logits, replayed, detach=detach)
    return distill.js(lax.stop_gradient(logits) if detach else logits, replayed)
