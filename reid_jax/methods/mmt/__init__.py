"""MMT and MEB-Net, unsupervised domain adaptation by K networks that teach each other, by their codes.

K is the length of config.mmt.backbones: 1 is the baseline of clustering and training again, 2 MMT (Ge, Chen,
Li, ICLR 2020), 3 with authority MEB-Net (Zhai et al., ECCV 2020). Every network learns from the labelled
source, in a stage of its own. Then they adapt to the target: its images are clustered in rounds, and students
learn from the clusters and from the others' teachers, moving averages. The joint form (OpenUnReID's) has no
source stages: every step of `adapt` sees the source too, if there is one.
"""

import math

from reid_jax.errors import ConfigError
from reid_jax.methods import FIELDS_OF_SOME, _rounds, _steps
from reid_jax.methods.baseline import Baseline
from reid_jax.methods.mmt.adapt import Adapt
from reid_jax.methods.mmt.joint import Joint
from reid_jax.methods.mmt.networks import MOST, with_backbone
from reid_jax.methods.mmt.terms import TERMS

TITLE = "MMT"
FIELDS = dict(
    backbones=("", ""),  # of the networks, 1 to 3; "": config.model.backbone
    source_sees_target=True,  # images of the target move the running statistics of the source stages
    source_epoch=0,  # steps of an epoch there; 0: of one pass over the identities of the source
    rounds=40,  # of clustering and training
    steps=400,  # of a round
    cluster="kmeans",  # kmeans | minibatch (k-means) | dbscan: how the target is labelled
    clusters=500,  # kmeans: their number; dbscan: places in the classifiers, the largest clusters are kept
    restarts=10,  # kmeans: times it is begun anew
    jaccard="plain",  # dbscan on Jaccard distances: their form, plain | torchreid (as MMT's code),
    k1=30,  # length of the neighbour lists (torchreid: less 1; 20 there),
    k2=6,  # images a set is averaged over,
    eps=0.6,  # radius,
    rho=0.0,  # > 0: the radius is the mean of this share of the distances, the smallest, in the first round,
    min_samples=4,  # images within it, itself included, that make a core,
    lambda_value=0.0,  # L of distances (1 - L) J + L (d_i + d_j), d: how far the source's nearest image is
    teachers=True,  # False: each student learns from the clusters alone
    authority="",  # kmeans | minibatch | dbscan: how each teacher's features are clustered to weigh it by
    # their scatter (MEB-Net); "": all weigh the same
    soft_ce=0.5,  # a: weight of the teachers' predictions, against 1 - a of the labels
    soft_triplet=0.8,  # b: the same for the triplets
    alpha=0.999,  # EMA decay of the teachers
    ema_ramp=True,  # decay min(1 - 1 / (step + 1), alpha)
    teacher_first=False,  # teachers move before their pass of a step, by the students as they were
    joint=False,  # the joint form, without source stages (train.skip), from config.init
    dsbn=True,  # joint: norms of their own for source and target
)
METRICS = TERMS | {"accuracy": "Accuracy on labels"}
LABELS = "source"
CAMERAS = _rounds.crosses_cameras


class Source(Baseline):
    """Stages "source1", ...: the baseline on the source, without erasing; `number` of the network from 0."""

    number = 0
    heeds = FIELDS_OF_SOME[:-1]  # no generated images

    def __init__(self, config, info):
        count = 0 if config.mmt.joint else len(config.mmt.backbones)
        if self.number >= count:
            left = tuple(f"source{i + 1}" for i in range(count, MOST))
            raise ConfigError(
                f"config.mmt.backbones and config.mmt.joint make {count} networks with a stage on the "
                f"source, and this one is another: leave it out with config.train.skip={left}"
            )
        super().__init__(with_backbone(config, self.number), info)

    def measured(self, info):
        """Epochs have config.mmt.source_epoch steps, as the published codes count."""
        info, train, epoch = super().measured(info), self.config.train, self.config.mmt.source_epoch
        if epoch < 1:
            return info
        return info._replace(
            steps_per_epoch=epoch, total_steps=train.steps or math.ceil(train.epochs * epoch)
        )

    def streams(self, state):
        """Groups of the source's identities; every image of the target once an epoch."""
        from reid_jax.data import streams

        if self.info.labelled is None or self.info.unlabelled is None:
            raise ConfigError("set config.data.name=SOURCE+TARGET and config.data.target=TARGET")
        options = dict(data=self.config.data, seed=self.config.seed, views=("weak",))
        size = streams.sizes(self.config.data, "source")
        source = streams.gallery(self.info.labelled, **options, **size)
        return {"source": source, "target": streams.shuffled(self.info.unlabelled, **options)}

    def step(self, state, batch):
        """The baseline's on the source; a pass over the target then moves the running statistics alone."""
        new, metrics = super().step(state, {"train": batch["source"]})
        if not self.config.mmt.source_sees_target:
            return new, metrics
        net = state.nets["net"] | {"batch_stats": new.nets["net"]["batch_stats"]}
        _, stats = self.encoder.apply(net, self.view(batch["target"]), True, self.key(state))
        net = new.nets["net"] | {"batch_stats": _steps.pmean(stats, self.axis)}
        return new._replace(nets={"net": net}), metrics


class Source2(Source):
    number = 1


class Source3(Source):
    number = 2


def by_form(config, info):
    """Stage "adapt" in the config's form."""
    return (Joint if config.mmt.joint else Adapt)(config, info)


STAGES = {"source1": Source, "source2": Source2, "source3": Source3, "adapt": by_form}
