"""DI-REID: degradation-invariant ReID (Huang et al., CVPR 2020; preset "journal": its IJCV 2022 version).

Three stages, each readable in its file:

    teacher   E_id, a ReID network (this file)
    gan       DDGAN: E_con, E_deg, G against D_real and D_deg (gan.py); what it has learned (study.py)
    dfen      DFEN: f_inv of E_con with f_sen of E_id, weighted by the degradation (dfen.py, reid.py)

Without degradation learning (config.train.skip=("gan",), the paper's "w/o DIL") E_con starts from the
teacher's stem and the attention, which needs stage gan, must be off.
"""

import jax
import jax.numpy as jnp
from flax import traverse_util

from reid_jax.errors import CheckpointError, ConfigError
from reid_jax.methods import Method, State, parts
from reid_jax.methods.direid import dfen, gan, nets, reid, study
from reid_jax.methods.direid.layers import run

TITLE = "DI-REID"
METRICS = {"accuracy": "Identity accuracy"}
STUDY = study.STUDY
STAGES = ("teacher", "gan", "dfen")


def stages(config, info):
    """The three stages; see reid_jax.methods for the contract."""
    made = {"teacher": teacher, "gan": ddgan, "dfen": dual_features}
    return {name: make(config, info) for name, make in made.items() if name not in config.train.skip}


def both_ways(embed):
    """embed(image) averaged over the image and its mirror image."""
    return lambda image: (embed(image) + embed(image[:, :, ::-1])) / 2


def teacher(config, info):
    """Stage "teacher": E_id by cross entropy and triplet loss on its pooled feature."""
    E_id = nets.identity_encoder(config, info)
    tx = parts.adam(config.optim, info)
    lr = parts.schedule(config.optim, info, config.optim.lr)

    def init(key, batch):
        variables = nets.init(E_id, key, parts.view(config, batch, 0)[:2])
        return State(jnp.int32(0), {"E_id": variables}, {"E_id": tx.init(variables["params"])})

    def step(state, batch):
        variables, x = state.nets["E_id"], parts.view(config, batch, 0)
        key = dropout_key(config, state.step, info.axis_name)

        def loss(params):
            own = {**variables, "params": params}
            f, stats = run(E_id, own, x, train=True)
            own["batch_stats"] = stats
            (_, logits), stats = run(E_id, own, f, train=True, method="classify", key=key)
            total = reid.reid(logits, f, batch["pid"], config.loss, info.axis_name)
            accuracy = jnp.mean(logits.argmax(-1) == batch["pid"])
            return total, (stats, {"loss": total, "accuracy": accuracy})

        (_, (stats, metrics)), grad = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        grad, stats, metrics = parts.pmean((grad, stats, metrics), info.axis_name)
        params, opt = parts.apply_gradient(tx, grad, state.opt["E_id"], variables["params"])
        new = {"E_id": {"params": params, "batch_stats": stats}}
        return State(state.step + 1, new, {"E_id": opt}), {**metrics, "lr": lr(state.step)}

    def embed(state, image, net):
        variables = state.nets["E_id"]

        @both_ways
        def neck(x):
            f, _ = run(E_id, variables, x, train=False)
            return run(E_id, variables, f, train=False, method="classify")[0][0]

        return neck(parts.plain(config, image))

    def warm_start(state, load):
        return state._replace(nets={"E_id": load("E_id", state.nets["E_id"])})

    return Method(init, step, embed, ("sen",), warm_start)


def dropout_key(config, step, axis_name):
    """A key of its own for every step and device."""
    key = jax.random.fold_in(jax.random.key(config.seed), step)
    return key if axis_name is None else jax.random.fold_in(key, jax.lax.axis_index(axis_name))


def ddgan(config, info):
    """Stage "gan"; config.optim is its own, see config.stages.gan."""
    models, d = gan.build(config, info), config.direid
    weight = gan.weights(config)

    def images(batch):
        x = [parts.plain(config, batch["image"][:, i]) for i in range(3)]
        pids = {"pid_i": batch["pid"], "pid_k": batch["pid_k"]}
        return dict(zip(("x_i", "x_j", "x_k"), x, strict=True)) | pids

    def init(key, batch):
        return gan.init_state(key, images(batch)["x_i"], models=models)

    def step(state, batch):
        lr = gan.learning_rate(config.optim.lr, config.optim.gamma, d.gan_milestones, state.step)
        draws = gan.draw(config, state.step, info.axis_name)
        options = dict(models=models, config=config, axis_name=info.axis_name)
        state, metrics = gan.update(state, images(batch), draws, lr, weight, **options)
        return state, {**metrics, "lr": lr}

    def embed(state, image, net):
        @both_ways
        def f_inv(x):
            return run(models.E_con, state.nets["E_con"], x, train=False, method="identity")[0]

        return f_inv(parts.plain(config, image))

    def inherit(state, load, extract):
        del extract
        new = dict(state.nets)
        known = load("teacher", "E_id")
        new["E_con"] = graft(new["E_con"], known, "base")
        if "E_id" in new:
            new["E_id"] = graft(new["E_id"], known)
        return state._replace(nets=new)

    measure = study.of(config, models)
    return Method(init, step, embed, ("inv",), batches="triples", inherit=inherit, study=measure)


def dual_features(config, info):
    """Stage "dfen"; with a replay the first stage's networks stay beside those that are trained."""
    models, d = dfen.build(config, info), config.direid
    if "gan" in config.train.skip and (models.D_deg or models.E_deg or d.replay != "off"):
        raise ConfigError(
            "config.train.skip leaves out the stage gan, which the attention and the replay need: set "
            "config.direid.attention_input to 'none' or 'self' and config.direid.replay to 'off'"
        )
    old = gan.build(config, info) if d.replay != "off" else None
    tx = reid.optimiser(config, info)
    lr = parts.schedule(config.optim, info, config.optim.lr)

    def init(key, batch):
        image = parts.view(config, batch, 0)
        state = reid.init_state(key, image, models=models, tx=tx)
        return state._replace(nets=state.nets | replayed(key, image)) if old else state

    def replayed(key, image):
        """What the replay needs of the first stage, under names of its own."""
        first = gan.init_state(key, image, models=old).nets
        found = {f"old_{n}": first[n] for n in ("E_con", "G", "E_deg")}
        if d.replay == "bank":
            found["bank"] = {"codes": jnp.zeros((info.num_images, d.code_dim))}
        return found

    def step(state, batch):
        key = dropout_key(config, state.step, info.axis_name)
        options = dict(models=models, tx=tx, config=config, gan_models=old, axis_name=info.axis_name)
        x = parts.view(config, batch, 0)
        state_, metrics = reid.update(state, x, batch["pid"], key, **options)
        return state_, {**metrics, "lr": lr(state.step)}

    def embed(state, image, net):
        @both_ways
        def test(x):
            return dfen.forward(state.nets, x, False, models=models)[0].test()[net]

        return test(parts.plain(config, image))

    def code(variables, image):
        return reid.codes(old.E_deg, variables, parts.plain(config, image))

    def inherit(state, load, extract):
        new = dict(state.nets)
        E_id = load("teacher", "E_id")
        new["E_id"] = graft(new["E_id"], E_id)
        if "gan" in config.train.skip:
            new["E_con"] = graft(new["E_con"], E_id, "base")
            return state._replace(nets=new)
        for name in {"E_con", "D_deg", "E_deg"} & set(new):
            new[name] = graft(new[name], load("gan", name))
        for name in {"old_E_con", "old_G", "old_E_deg"} & set(new):
            new[name] = graft(new[name], load("gan", name.removeprefix("old_")))
        if "bank" in new:
            new["bank"] = {"codes": jnp.asarray(extract(code, new["old_E_deg"]))}
        return state._replace(nets=new)

    return Method(init, step, embed, ("fuse", "inv", "sen"), inherit=inherit)


def graft(variables, source, part=None):
    """variables with the leaves that `source` has at the same places, of all or of one part ("base").

    Every leaf of the part must be there: CheckpointError when the networks differ.
    """
    have, new = traverse_util.flatten_dict(source, sep="/"), {}
    for path, leaf in traverse_util.flatten_dict(dict(variables), sep="/").items():
        if part and path.split("/")[1] != part:
            new[path] = leaf
        elif path not in have or have[path].shape != leaf.shape:
            shape = have[path].shape if path in have else "missing"
            raise CheckpointError(
                f"{path} of the earlier stage is {shape}, this one needs {leaf.shape}: the stages must have "
                "the same config.model and config.direid"
            )
        else:
            new[path] = jnp.asarray(have[path])
    return traverse_util.unflatten_dict(new, sep="/")
