"""Body points: heat maps, visible parts, the head on them and its score."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from reid_jax.data import points
from reid_jax.eval import ranking, scoring
from reid_jax.methods import pgfa
from reid_jax.models.heads import pose
from reid_jax.parity import nets
from reid_jax.parity.sup.stripes import Maps


def pgfa_head(case):
    """PGFA: stripes, pose pooling, classifiers, losses, gradients, running statistics, test feature"""
    m, x, target = case.config, nets.channels_last(case.input("x")), case.input("target")
    heat = case.input("heat")
    block = functools.partial(pose.ClassBlock, m.classes, m.features, m.dropout)
    module = pose.PoseNet(Maps(), block, m.parts)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), x, False, heat))
    variables = nets.fill(shapes, case.weights(), case.dtype, layout="pgfa")

    def loss(params, x):
        all_ = {**variables, "params": params}
        out, changed = module.apply(all_, x, case.train, heat, mutable=["batch_stats"])
        part, whole = pgfa.losses(out, target)
        return pgfa.total(part, whole, m.lam), (out, part, whole, changed)

    descend = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    (total, (out, part, whole, changed)), (grads, grad_x) = descend(variables["params"], x)
    grads = nets.torch_entries({"params": grads}, "pgfa") | {"in/x": nets.channels_first(grad_x)}
    results = {f"grad/total/{k}": v for k, v in grads.items()}
    results |= {f"out/after/{k}": v for k, v in nets.torch_entries(changed, "pgfa").items()}
    tested = module.apply(variables, x, False, heat)
    return results | nets.out(
        {
            **{"partial": out.stripes, "joined": out.joined, "part_logits": jnp.stack(out.logits)},
            **{"logits": out.pose_logits, "loss_part": part, "loss_pose": whole, "total": total},
            "global_feature_eval": tested.pose,
        }
    )


def pgfa_heat(case):
    """PGFA's heat maps as its code draws them"""
    m, coordinates = case.config, np.asarray(case.input("points"))
    size = np.array([m.height, m.width])
    heat = pose.pillow_heat(coordinates[None], size[None], tuple(m.map), m.threshold)[0]
    first = pose.gaussian(coordinates[0], size) * pose.sure(coordinates[0], m.threshold)
    return {"out/first": first, "out/heat": heat}


def pgfa_part_label(case):
    """PGFA's visible parts, of the person with the most points"""
    m, people = case.config, np.asarray(case.input("points"))
    chosen = [points.person(list(each), m.threshold, last=True) for each in people]
    chosen = np.stack([np.full(people.shape[2:], -1.0) if p is None else p for p in chosen])
    return {"out/visible": pose.visible(jnp.asarray(chosen), m.height, m.parts, m.threshold)}


def pgfa_distance(case):
    """PGFA's score, by two products of stored features"""
    sides = {}
    for side in ("query", "gallery"):
        features = (case.input(f"{side}_{name}") for name in ("global", "parts", "visible"))
        sides[side] = np.asarray(pgfa.stored(*features), case.dtype)
    count = [len(f) for f in sides.values()]
    labels = [np.zeros(n, int) for n in count] + [np.zeros(count[0], int), np.ones(count[1], int)]
    distance = f"ratio{case.config.parts + 1}"
    scores, _ = ranking.problem(*sides.values(), *labels, distance, False, None, None)
    rows = scores.fill(scoring.buffer(*count, scores.dtype), np.arange(count[0]))
    return {"out/similarity": rows[:, : count[1]]}
