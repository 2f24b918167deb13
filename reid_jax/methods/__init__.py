"""The method contract: a method is a module of this package, found by its name.

A module has TITLE (its name in tables), FIELDS (its own fields, config.NAME, with their defaults), METRICS
(readable titles of what its steps report), LABELS (which identities it may read), SETTINGS (what it is for,
where LABELS alone does not say) and STAGES, its stages by name in order, or a function of the config that
gives them; then `sets(config)` may name the training sets of each stage, {stage: names}, for figures of what
is kept of earlier ones. Where LABELS hides identities, CAMERAS says whether the cameras of these images are
read (True, False, or a function of a stage's config); if not, they are hidden too. A stage is a subclass of
`Method`: settings and modules in the object, arrays in the `State`; its functions are pure, and know nothing
of files, loops or devices but the name of the device axis. Each stage has its own checkpoints, its own
settings (config.stages.NAME, laid over the config it is built from) and may take over networks of earlier
ones (`inherit`).
"""

import copy
import functools
import importlib
import math
import pkgutil
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from reid_jax import config as common
from reid_jax.errors import ConfigError
from reid_jax.methods import _steps

LABELS = ("all", "source", "none")  # whose identities a method may read: of all sets, of the labelled ones

FIELDS_OF_SOME = (
    "loss.center", "loss.verification", "optim.freeze_norms_eval", "model.classifier", "data.generated",
)  # fmt: skip

SETTINGS = {  # what methods are for, by LABELS
    "all": ("supervised",),
    "none": ("unsupervised",),
    "source": ("domain adaptation",),
}


class Info(NamedTuple):
    """What a method may know about the data and the run."""

    num_pids: int  # labelled training identities
    num_cams: int
    steps_per_epoch: int = 1  # this and the next: set by `Method` where the rows are at hand
    total_steps: int = 1
    axis_name: str | None = None  # device axis of the step, None outside pmap
    num_images: int = 0  # rows whose identities are hidden if there are any, else all training rows
    domains: tuple = ()  # identities of each domain; () for a single one
    labelled: Any = None  # data.rows.Rows with identities; this and the next are None without training data
    unlabelled: Any = None  # Rows whose identities are hidden, in random order
    attributes: Any = None  # i32[num_pids, A], a table by identity


class State(NamedTuple):
    """Everything that training changes, one entry per network, optimiser and memory."""

    step: Any  # i32[]
    nets: dict  # name -> variables ({"params", "batch_stats"} or {"params"})
    opt: dict  # name -> optax state; only trained networks have one
    memory: dict = {}  # banks, centroids, labels i32[N]: neither gradient nor optimiser  # noqa: RUF012
    key: Any = (
        None  # u32[2] of config.seed, in a run: an input of the compiled step, so that all seeds share it
    )


class Part(NamedTuple):
    """Steps of one sort. A stage is a list of them; an ordinary one has a single part.

    step:     (State, {stream: batch}) -> (State, {metric: f32[]}), pure, per device
    streams:  State (numpy) -> {name: data.streams.Stream}, the same after a resume; DataError when these
              labels allow no training, and then the part has no steps
    steps:    0: `epochs` epochs of the first stream; or State (numpy) -> int, where labels decide
    begin:    (State, features) -> State, on the host, before the first step: labels, memories, fresh heads
    features: networks (names of `Method.nets`) whose features of the training rows `begin` gets as
              {name: f32[N,D]}; (): those of the first as one array; None: no features, `begin` gets None
    of_source: `begin` gets a pair of such features: the second of the rows with identities
    round:    > 0: number of the round that this part ends; the intervals of evaluations and checkpoints then
              count rounds instead of epochs
    labels_by_camera: whether state.memory["labels"] count within each camera, to rate them rightly
    singles: whether images that are alone with their label count as labelled when labels are rated
    """

    name: str
    step: Callable
    streams: Callable
    steps: int | Callable = 0
    epochs: float = 1
    begin: Callable | None = None
    features: tuple | None = ()
    of_source: bool = False
    round: int = 0
    labels_by_camera: bool = False
    singles: bool = True


class Method:
    """One stage of a method; what is None here is for those that can do it.

    Features are of uint8 images [B,H,W,3] or clips [B,T,H,W,3]. The defaults serve a method with one encoder:
    `network`, a models.heads net, in state.nets under the first name of `nets`.

    inherit: (State, load, extract) -> State, on the host, after `warm_start`: takes over networks of earlier
             stages, load(stage, net) -> variables as numpy, load(stage, "") -> the memory.
             extract(f, variables) -> f(variables, image) of the training rows (those with hidden
             identities, if there are any), numpy [N,D]; with labelled=True of those with identities, with
             rows=data.rows.Rows of these. Before the first stage it is traced with shapes, to find what
             does not fit
    study:   (dataset, over) -> (State -> ({name: figure}, {name: array})): measurements of its own on the
             test images, taken at every evaluation; None where those images do not allow it. over(f) makes a
             pure function (State, arrays of B rows) -> tree into one for any number of rows, run in batches.
             Arrays called grid/TITLE u8[R,C,H,W,3] become pictures
    look:    (State, clips) -> {"map/TITLE": f32[B,T,h,w], "weight": f32[B,T]}: where the network looks and
             how much it trusts each frame, for pictures; maps named in look_deviation have channels
    """

    nets = ("net",)  # what embed knows, the default first
    camera_net = ""  # one for embed whose features tell cameras apart, for pictures
    accumulates = False  # whether the step heeds config.train.accumulate
    heeds = ()  # of FIELDS_OF_SOME, those that the step does something with
    embeds_frames = False  # whether tracklets can be tested by all their frames (embed_frames, embed_pooled)
    frames_apart = True  # whether a frame's vector is the same whatever the other frames of its clip
    rounds = 0  # of labelling and training; 0: none
    look_deviation = ()  # maps of `look` that are features f[B,T,h,w,C]: their deviation is shown
    network = encoder = None
    inherit = study = look = None

    def __init__(self, config, info):
        self.config, self.info, self.axis = config, info, info.axis_name
        self.info = self.measured(info)

    def measured(self, info):
        """info with the steps of an epoch and of the stage, where the training rows are at hand.

        Called before a subclass has set anything: `streams` may use self.config and self.info. Stages with
        rounds, whose streams need labels, have schedules of their own.
        """
        if self.rounds or (info.labelled is None and info.unlabelled is None):
            return info
        epoch = next(iter(self.streams(None).values())).sampler.batches_per_epoch
        train = self.config.train
        return info._replace(
            steps_per_epoch=epoch, total_steps=train.steps or math.ceil(train.epochs * epoch)
        )

    def init(self, key):
        """Fresh State from a key; to be called under jit."""
        raise NotImplementedError

    def part(self, i):
        """Part number i of the stage, None after the last."""
        return None if i else Part("train", self.step, self.streams, self.info.total_steps)

    def streams(self, state):
        """The default's one stream: batches of the labelled rows, as config.data.batches says."""
        from reid_jax.data import streams

        del state
        offered = {"pk": streams.pk, "shuffled": streams.shuffled, "domains": streams.domains}
        offered["gallery"] = streams.gallery
        stream = offered[common.choice("data.batches", self.config.data.batches, tuple(offered))]
        _steps.check_halves(self.network, self.config.data, self.info.labelled)
        return {"train": stream(self.info.labelled, self.config.data, self.config.seed)}

    def step(self, state, batch):
        """One step of the default part: (State, {"train": batch}) -> (State, {metric: f32[]})."""
        raise NotImplementedError

    def embed(self, state, image, net):
        """Test features f32[B,D] by network `net`."""
        features, _ = self.encoder.apply(state.nets[net], self.plain(image), False)
        return features.test

    @property
    def wants_camera(self):
        """Whether features depend on a picture's camera, too; in training's numbers, others are unknown."""
        return getattr(self.network, "wants_camera", False)

    def embed_batch(self, state, batch, net):
        """Test features f32[B,D] of a batch of the test pipeline: image, camid i32[B], extra labels [B,...].

        For methods whose features depend on more than the picture; `embed` is all that others need.
        """
        if not self.wants_camera:
            return self.embed(state, batch["image"], net)
        image = self.plain(batch["image"])
        return self.encoder.apply(state.nets[net], image, False, camera=batch["camid"])[0].test

    def embed_frames(self, state, clip, net, camera=None):
        """A vector of each frame of clips: f32[B,T,C]; or one of the clip, f32[B,1,C].

        camera: i32[B], given where the method `wants_camera`.
        """
        cameras = (camera,) if self.wants_camera else ()
        return self.network.apply(state.nets[net], self.plain(clip), False, *cameras, method="vectors")

    def embed_pooled(self, state, mean, net):
        """Test features f32[B,D] of tracklets from the mean f32[B,C] of their frames' vectors."""
        return self.network.apply(state.nets[net], mean, False, method="head").test

    def warm_start(self, state, load):
        """State with pretrained networks, on the host.

        load(name, variables, fallback=None): the variables of network `name` with pretrained weights filled
        in
        (those of network `fallback` when the source has none of that name).
        """
        name = self.nets[0]
        return state._replace(nets={**state.nets, name: load(name, state.nets[name])})

    # ---- what steps are written with

    def view(self, batch, i=0):
        """View `i` of a batch: normalised images [B,H,W,3] or clips [B,T,H,W,3] in the compute type."""
        return _steps.view(self.config, batch, i)

    def plain(self, image):
        """Test images: normalised, not augmented."""
        return _steps.plain(self.config, image)

    def blank(self):
        """One normalised black image [1,H,W,3] or clip [1,T,H,W,3], to make networks with."""
        d = self.config.data
        return self.plain(np.zeros((1, *([d.frames] if d.frames else []), d.height, d.width, 3), np.uint8))

    def fresh(self, nets, tx, memory=None):
        """State at step 0 of {name: variables}; tx: {name: optax chain} of the trained ones.

        ConfigError: a pattern of config.optim matches no parameter of any of these.
        """
        _steps.check_patterns(self.config.optim, [nets[name]["params"] for name in tx])
        opt = {name: chain.init(nets[name]["params"]) for name, chain in tx.items()}
        return State(jnp.int32(0), nets, opt, {} if memory is None else memory)

    def key(self, state):
        """The key of a step, the same on all devices; without state.key that of config.seed."""
        seeded = (
            jax.random.key(self.config.seed) if state.key is None else jax.random.wrap_key_data(state.key)
        )
        return jax.random.fold_in(seeded, state.step)


def names():
    """Names of all methods: the public modules of this package that offer STAGES."""
    public = [m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")]
    return sorted(n for n in public if hasattr(importlib.import_module(f"{__name__}.{n}"), "STAGES"))


@functools.cache
def find(name):
    """Returns the module of method `name`; raises ConfigError when there is none."""
    public = [m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")]
    if name in public:
        module = importlib.import_module(f"{__name__}.{name}")
        if hasattr(module, "STAGES"):
            return module
    raise ConfigError(f"config.method is {name!r}; the methods are {', '.join(names())}")


def stages_of(config):
    """{stage: (config, info) -> Method} of a config, in order."""
    offered = find(config.method).STAGES
    return offered(config) if callable(offered) else offered


def stage_names(config):
    """The stages of a config in order."""
    return tuple(stages_of(config))


def build(config, stage, info):
    """The Method of a stage; config: the stage's own."""
    return stages_of(config)[stage](config, info)


def sets(config):
    """{stage: names of the sets it trains on}, of methods whose stages train on different ones; else {}."""
    return getattr(find(config.method), "sets", lambda config: {})(config)


def reads_cameras(config):
    """Whether a stage reads the cameras of images whose identities it may not know; config: its own."""
    reads = getattr(find(config.method), "CAMERAS", False)
    return bool(reads(config) if callable(reads) else reads)


def settings(name):
    """What method `name` is for: "supervised", "domain generalisation", ...; one or more."""
    module = find(name)
    return getattr(module, "SETTINGS", SETTINGS[module.LABELS])


def about(name):
    """(title, a line on method `name`): its TITLE and the first line of its module's text."""
    module = find(name)
    line = module.__doc__.strip().splitlines()[0].rstrip(".:")
    return module.TITLE, line.removeprefix(f"{module.TITLE}: ")


def defaults(name):
    """All fields of a config of method `name` with their defaults: the common ones and its own."""
    fields = getattr(find(name), "FIELDS", None)
    return common.defaults() | {"method": name} | ({name: copy.deepcopy(fields)} if fields else {})


def choose_net(method, net):
    """Resolves config.eval.net (auto, all or a network's name) to a list of names."""
    if net == "auto":
        return [method.nets[0]]
    if net == "all":
        return list(method.nets)
    if net in method.nets:
        return [net]
    raise ConfigError(
        f"config.eval.net is {net!r}; this method and mode have auto, all, {', '.join(method.nets)}"
    )
