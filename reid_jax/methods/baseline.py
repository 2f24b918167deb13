"""Strong baseline: one encoder, cross entropy + batch-hard triplet (BoT, BNNeck by config).

The shortest complete method; copy it to begin a new one.
"""

import jax
import jax.numpy as jnp

from reid_jax.methods import Method, State, parts
from reid_jax.models import heads

TITLE = "Baseline"
METRICS = {"ce": "Identity cross entropy", "triplet": "Identity triplet", "accuracy": "Identity accuracy"}


def stages(config, info):
    """The single stage "train"; see reid_jax.methods for the contract."""
    model = heads.build(config.model, info.num_pids, info.axis_name)
    encoder = heads.encoder(model, config.train.accumulate)
    tx = parts.adam(config.optim, info, mask=heads.trainable_mask)
    lr = parts.schedule(config.optim, info, config.optim.lr)

    def init(key, batch):
        variables = encoder.init(key, parts.view(config, batch, 0)[:1])
        return State(jnp.int32(0), {"net": variables}, {"net": tx.init(variables["params"])})

    def step(state, batch):
        def loss(params):
            variables = {"params": params, "batch_stats": net["batch_stats"]}
            features, stats = encoder.apply(variables, image, True)
            ce, tri = parts.identity_losses(config.loss, features, batch["pid"], info.axis_name)
            accuracy = jnp.mean(features.logits.argmax(-1) == batch["pid"])
            return ce + tri, (stats, {"loss": ce + tri, "ce": ce, "triplet": tri, "accuracy": accuracy})

        net, image = state.nets["net"], parts.view(config, batch, 0)
        (_, (stats, metrics)), grad = jax.value_and_grad(loss, has_aux=True)(net["params"])
        grad, stats, metrics = parts.pmean((grad, stats, metrics), info.axis_name)
        params, opt = parts.apply_gradient(tx, grad, state.opt["net"], net["params"])
        nets = {"net": {"params": params, "batch_stats": stats}}
        return State(state.step + 1, nets, {"net": opt}), {**metrics, "lr": lr(state.step)}

    def embed(state, image, net):
        return parts.test_feature(state.nets[net], encoder, config, image)

    def embed_frames(state, image, net):
        return parts.test_vectors(state.nets[net], model, config, image)

    def embed_pooled(state, mean, net):
        return parts.pooled_feature(state.nets[net], model, mean)

    def warm_start(state, load):
        return state._replace(nets={"net": load("net", state.nets["net"])})

    able = dict(embed_frames=embed_frames, embed_pooled=embed_pooled, accumulates=True)
    apart = heads.frames_apart(config.model)
    return {"train": Method(init, step, embed, ("net",), warm_start, **able, frames_apart=apart)}
