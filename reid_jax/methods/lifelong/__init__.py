"""Lifelong re-identification: sets one after another, old ones gone, everybody to be found in the end.

A stage for each set of config.data.name (market1501+cuhk_sysu+...), named by it and in that order; a step's
network begins as the last step's, its classifier grows. Rows (config.lifelong.mode): finetune (nothing
against forgetting) and joint (one stage on all sets at once) are the bounds; lwf, old scores are kept (Li and
Hoiem, ECCV 2016); aka, a graph of accumulated knowledge (Pu et al., CVPR 2021); krkc, replayed pictures, a
memory network that learns too, averaged weights (Yu et al., AAAI 2023).
"""

import functools

from reid_jax.config import choice
from reid_jax.errors import ConfigError
from reid_jax.methods.lifelong.aka import Aka
from reid_jax.methods.lifelong.krkc import Krkc
from reid_jax.methods.lifelong.step import Joint, Step

FIELDS = dict(
    mode="lwf",  # finetune | joint | lwf | aka | krkc
    ids=0,  # identities of each set that train, the first in order; 0: all
    epoch_steps=0,  # steps of an epoch; 0: the batches of the set
    classes="step",  # cross entropy among the classes of the step alone, or all so far
    smooth_classes=0,  # > 0: label smoothing gives each class e over this number instead of over the classes
    distill=1.0,  # lwf, aka: weight of the distillation of old scores,
    temperature=2.0,  # and of theirs, and krkc's
    old_norms="running",  # lwf, aka: norms of the old network take running statistics, or the batch's
    vertices=64,  # aka: of the graph,
    sigma=2.0,  # width of its edges between images and vertices,
    dropout=0.6,  # of its layer's input,
    stability=5e-4,  # weight of what keeps its vertices,
    graph_gamma=0.5,  # and its learning rate's factor from step to step
    memory_lr=0.1,  # krkc: factor of the memory network's learning rate,
    replay_ids=250,  # identities of a set that are kept when it is over, drawn with replacement,
    replay_images=2,  # and images of each, those least like its mean, which are K of the replayed batch,
    replay_batch=64,  # and identities of a replayed batch,
    replay_margin=0.3,  # margin of their batch-hard triplet
)
ROWS = {
    "finetune": ("Finetuning", Step),
    "joint": ("Joint training", Joint),
    "lwf": ("LwF", Step),
    "aka": ("AKA", Aka),
    "krkc": ("KRKC", Krkc),
}
TITLE = "Lifelong"
METRICS = {
    "ce": "Identity cross entropy",
    "triplet": "Identity triplet",
    "accuracy": "Identity accuracy",
    "distill": "Distillation of old scores",
    "stability": "Stability of the graph's vertices",
    "replay": "Triplet on replayed pictures",
    "agree": "Divergence from the memory network",
    "memory_ce": "Identity cross entropy, memory network",
    "memory_triplet": "Identity triplet, memory network",
    "memory_replay": "Triplet on replayed pictures, memory network",
    "memory_agree": "Divergence of the memory network",
}
LABELS = "all"
SETTINGS = ("sets one after another",)


def title(config):
    """The row's name."""
    return ROWS[config.lifelong.mode][0]


def sets(config):
    """{stage: names of the sets it trains on}."""
    names = config.data.name.split("+")
    if choice("lifelong.mode", config.lifelong.mode, tuple(ROWS)) == "joint":
        return {"joint": tuple(names)}
    return {name: (name,) for name in names}


def STAGES(config):  # noqa: N802 - the contract's name
    """{set: its stage}; of mode joint {"joint": the only one}."""
    if config.train.skip:
        raise ConfigError(
            f"config.train.skip is {tuple(config.train.skip)}, and every step begins with the last one's "
            "network: name fewer sets in config.data.name"
        )
    names = tuple(sets(config))
    kind = ROWS[config.lifelong.mode][1]
    return {name: functools.partial(kind, names=names, number=i) for i, name in enumerate(names)}
