"""The steps of ADL's two phases: losses on pseudo labels, and the game about the camera."""

import jax
import jax.numpy as jnp
from jax import lax

from reid_jax.errors import ConfigError
from reid_jax.losses import adversarial, identity, triplet
from reid_jax.losses import batch as batches
from reid_jax.methods import Method, _steps
from reid_jax.models import layers


class Steps(Method):
    """A stage with `modules` net, heads, joint and, where the game is played, encoder, camera and critic."""

    # ---- losses

    def camera_by_camera(self, variables, image):
        """Train-mode features f[K,C,D] of images [K,C,H,W,3] and the new running statistics.

        The images of one camera at a time, in order: batch statistics are those of a camera, running ones
        move C times.
        """
        net = self.modules["net"]

        def one_camera(stats, image):
            f, changed = net.apply({**variables, "batch_stats": stats}, image, True, mutable=["batch_stats"])
            return changed["batch_stats"], f

        images, global_norm = jnp.moveaxis(image, 1, 0), net.base.axis_name is not None
        stats, f = layers.scan(one_camera, variables["batch_stats"], images, collectives=global_norm)
        return jnp.moveaxis(f, 0, 1), stats

    def inter_loss(self, logits, f, pid):
        """(L_inter, its cross entropy, its triplet loss, share of anchors nearer to their positive), f[]."""
        ce, loss = identity.cross_entropy(logits, pid), self.config.loss
        options = dict(distance=loss.triplet, margin=loss.margin, axis_name=self.axis)
        tri, aux = triplet.batch_hard(f, pid, **options)
        return ce + self.config.adl.triplet * tri, ce, tri, aux["correct"]

    def game(self, variables, f, camid, partners):
        """The game about the camera in f [B,D]: (total f[], {network: batch_stats}, metrics).

        variables: {network: its variables} of E, H and D. camid i32[B]. partners i32[N] of the global batch:
        with which rows a row makes pairs that do not belong together.
        total = lam L_ADL + lam_cam L_camera + L_D.
        """
        adl, stop = self.config.adl, lax.stop_gradient

        def apply(name, x):
            return self.modules[name].apply(variables[name], x, True, mutable=["batch_stats"])

        z, encoder_stats = apply("encoder", f if self.live else stop(f))
        logits, camera_stats = apply("camera", z)
        loss_camera = identity.cross_entropy(logits, camid)
        value = self.omega(stop(variables["critic"]), f, z if adl.encoder_plays else stop(z), partners)
        loss_adl = adversarial.pull(value, adl.transform, adl.temperature)
        loss_critic = -self.omega(variables["critic"], stop(f), stop(z), partners)
        total = adl.lam * loss_adl + adl.lam_cam * loss_camera + loss_critic
        metrics = {"omega": value, "adl": loss_adl, "cam_ce": loss_camera}
        metrics["cam_accuracy"] = jnp.mean(logits.argmax(-1) == camid)
        stats = {"encoder": encoder_stats["batch_stats"], "camera": camera_stats["batch_stats"]}
        return total, stats, metrics, (stop(f), stop(z))

    def omega(self, critic, f, z, partners):
        """omega of the critic with these variables, f[]: its own z against the z of the row's partner."""
        f, z = (adversarial.standardised(x, self.config.adl.critic_input_norm) for x in (f, z))
        other = batches.of_partners(z, partners, self.axis)
        joint, marginal = (self.modules["critic"].apply(critic, f, x) for x in (z, other))
        return adversarial.omega(joint, marginal, self.axis)

    # ---- steps

    def intra_step(self, state, batch):
        """One step within the cameras.

        batch: K images of each of the C cameras, image j of camera c in row j C + c, on every device a K / n
        of them; pid i32[B]: pseudo labels, numbered for each camera apart.
        """
        batch = batch["train"]
        image, pid, cameras = self.view(batch), batch["pid"], self.cameras
        if len(image) % cameras:
            raise ConfigError(
                f"{len(image)} images on a device are not the same number of each of {cameras} cameras: make "
                "config.adl.intra.instances a multiple of the number of devices"
            )
        rows = (len(image) // cameras, cameras)

        def stage_loss(variables):
            f, stats = self.camera_by_camera(variables["net"], image.reshape(*rows, *image.shape[1:]))
            logits, changed = self.modules["heads"].apply(
                variables["heads"], f, True, mutable=["batch_stats"]
            )
            value, accuracy = intra_loss(logits, pid.reshape(rows)), logits.argmax(-1) == pid.reshape(rows)
            metrics = {"ce": value / cameras, "accuracy": jnp.mean(accuracy)}
            stats = {"net": stats, "heads": changed["batch_stats"]}
            return value, f.reshape(-1, f.shape[-1]), stats, metrics

        return self.update(state, batch, stage_loss, "intra")

    def inter_step(self, state, batch):
        """One step over all cameras; pid i32[B]: their joint labels."""
        batch = batch["train"]
        image, pid = self.view(batch), batch["pid"]

        def stage_loss(variables):
            stats = {}
            f, stats["net"] = self.modules["net"].apply(
                variables["net"], image, True, mutable=["batch_stats"]
            )
            logits, stats["joint"] = self.modules["joint"].apply(
                variables["joint"], f, True, mutable=["batch_stats"]
            )
            value, ce, tri, _ = self.inter_loss(logits, f, pid)
            metrics = {"ce": ce, "triplet": tri, "accuracy": jnp.mean(logits.argmax(-1) == pid)}
            return value, f, {n: s["batch_stats"] for n, s in stats.items()}, metrics

        return self.update(state, batch, stage_loss, "inter")

    def update(self, state, batch, stage_loss, phase):
        """The step of all players of a phase: (State, metrics).

        stage_loss: {network: variables} -> (L_stage, f [B,D], {network: batch_stats}, metrics).
        """

        def loss(variables):
            total, f, stats, metrics = stage_loss(variables)
            metrics, pair = metrics | {"loss_stage": total} | mixing(variables["net"]["params"]), None
            if "critic" in variables:
                partners = _steps.partners(self.key(state), len(f), self.axis)
                game = self.game(variables, f, batch["camid"], partners)
                total, stats, metrics = total + game[0], stats | game[1], metrics | game[2]
                pair = game[3]
            return total, stats, {"loss": total, **metrics}, pair

        new, metrics, pair = _steps.descend(loss, state, self.tx[phase], self.axis)
        if "frifm" in state.memory:
            new = self.without_frifm(state, new)
        if pair is not None and self.config.adl.critic_steps > 1:
            new = self.more_of_the_critic(state, new, pair, self.tx[phase])
        if self.config.adl.schedule == "blocks" and "critic" in self.tx[phase]:
            new = self.in_turn(state, new, self.tx[phase])
        return new, metrics | {"lr": jnp.float32(getattr(self.config.adl, phase).lr)}

    def without_frifm(self, old, new):
        """`new` with the FRIFMs of `old` where state.memory["frifm"] is 0."""

        def chosen(path, before, after):
            mine = any(str(k.key).startswith("frifm") for k in path)
            return jnp.where(old.memory["frifm"] > 0, after, before) if mine else after

        params = jax.tree_util.tree_map_with_path(
            chosen, old.nets["net"]["params"], new.nets["net"]["params"]
        )
        return new._replace(nets={**new.nets, "net": {**new.nets["net"], "params": params}})

    def more_of_the_critic(self, old, new, pair, tx):
        """`new` after the other steps of adl.critic_steps, on a pair (f, z) with partners of their own."""
        for i in range(1, self.config.adl.critic_steps):
            partners = _steps.partners(jax.random.fold_in(self.key(old), i), len(pair[0]), self.axis)

            def loss(variables, partners=partners):
                return -self.omega(variables["critic"], *pair, partners), {}, {}, None

            grads, stats, _, _ = _steps.gradient(loss, new.nets, ("critic",), self.axis)
            new = _steps.moved(new, tx, grads, stats)
        return new

    def in_turn(self, old, new, names):
        """`new` without the moves of the networks that rest; the critic's block of steps comes first."""
        critic_moves = (old.step // self.config.adl.block) % 2 == 0
        variables, opt = dict(new.nets), dict(new.opt)
        for name in names:
            moves = critic_moves if name == "critic" else ~critic_moves
            after = new.nets[name]["params"], new.opt[name]
            before = old.nets[name]["params"], old.opt[name]
            params, opt[name] = jax.tree.map(lambda a, b, m=moves: jnp.where(m, a, b), after, before)
            variables[name] = {**variables[name], "params": params}
        return new._replace(nets=variables, opt=opt)


def mixing(params):
    """{"aibn", "aibn_most": f[]} of AIBN's weights in a tree of parameters; {} without."""
    leaves = jax.tree_util.tree_leaves_with_path(lax.stop_gradient(params))
    weights = [x.mean() for path, x in leaves if str(path[-1].key) == "adaptive_weight"]
    return {"aibn": jnp.stack(weights).mean(), "aibn_most": jnp.stack(weights).max()} if weights else {}


def intra_loss(logits, pid):
    """L_intra, the sum of the cameras' cross entropies, of logits f[K,C,classes] and pid i32[K,C]: f[]."""
    cameras = logits.shape[1]
    return cameras * identity.cross_entropy(logits.reshape(-1, logits.shape[-1]), pid.reshape(-1))
