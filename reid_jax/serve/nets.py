"""A run's or an export's network in JAX, with only the leaves of its state that the feature depends on."""

import contextlib
import copy
import functools
import hashlib
import json
import os
import threading
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from reid_jax import methods
from reid_jax.data import tracklets
from reid_jax.errors import ConfigError, WeightsError
from reid_jax.fields import misfit, namespace
from reid_jax.models import layers, weights
from reid_jax.train import restore, stages

ARCHIVE, CONFIG_FILE = "model.safetensors", "config.json"
_PLACES = ("data.root", "data.csv", "report.baseline", "eval.also")
_FORMAT = 1  # of config.json


class Origin(NamedTuple):
    """Everything by which a net is built again, JSON but for the weights."""

    config: dict  # the run's
    stage: str
    net: str
    info: dict  # num_pids, num_cams, num_images, domains of the training data
    step: int


class Net:
    """u8[n,H,W,3] -> f32[n,D] of unit length, compiled once for each n.

    leaves: {path: array} of the state, those that the feature depends on, or a function of their paths.
    """

    padded = True

    def __init__(self, origin, leaves, device=None, where=""):
        self.origin, self.where, self.device = origin, where, find_device(device)
        self.info = methods.Info(**{**origin.info, "domains": tuple(origin.info["domains"])})
        self.config, self.method = stages.build(namespace(origin.config), origin.stage, self.info)
        if self.config.eval.distance.startswith("ratio"):
            raise ConfigError(
                f"features of this run are compared by config.eval.distance={self.config.eval.distance}, "
                "weights of parts that are seen, not by their cosine: write them with reid_jax embed and "
                "compare them with reid_jax score"
            )
        if origin.net == "all":
            raise ConfigError(f"net is 'all', but an Embedder is one network at a time: {self.method.nets}")
        (self.name,) = methods.choose_net(self.method, origin.net)
        data = self.config.data
        self.size, self.frames = (data.height, data.width), data.frames
        self.mirrors = getattr(self.config.eval, "mirror", False)
        self.like = stages.state_shapes(self.method)
        self._paths, self._tree = flat(self.like)
        self.used, self.dim = self._traced()
        self.arrays = self._chosen(leaves)
        self.hash = hash_of(self.arrays)
        self._put, self._lock, self._made = jax.device_put(self.arrays, self.device), threading.Lock(), {}

    # ---- pure functions of {path: array} and pictures
    def state(self, leaves):
        """The State of leaves; what is not among them is zeros, which no feature depends on."""
        flat = [leaves[p] if p in leaves else jnp.zeros(x.shape, x.dtype) for p, x in self._paths.items()]
        return jax.tree.unflatten(self._tree, flat)

    def features(self, leaves, image):
        """Unit f32[n,D] of pictures u8[n,H,W,3]."""
        return self.of_state(self.state(leaves), image)

    def of_state(self, state, image, camid=None):
        features = self.once(state, image, camid)
        if self.mirrors:
            features = features + self.once(state, image[..., ::-1, :], camid)
        return unit(features)

    def once(self, state, image, camid=None):
        """f[n,D] of the pictures as they are, of any length."""
        if self.frames and image.ndim == 4:  # a net of clips sees a picture as a clip
            image = image[:, None]
            if not self.method.frames_apart:
                image = jnp.repeat(image, self.frames, 1)
        if camid is None and not self.method.wants_camera:  # else None: unknown, the mean of the embeddings
            camid = jnp.zeros(image.shape[:1], jnp.int32)
        return self.method.embed_batch(state, {"image": image, "camid": camid}, self.name)

    def of_normalised(self, leaves, image):
        """`features` of pictures f32[n,H,W,3] that are normalised already."""
        other = copy.copy(self)
        other.method = copy.copy(self.method)
        other.method.plain = lambda x: x
        return other.features(leaves, image)

    def vectors(self, leaves, clip, real):
        """Sum f32[C] of the vectors of the real frames, bool[T], of a clip u8[T,H,W,3]."""
        state = self.state(leaves)
        rows = self.method.embed_frames(state, clip[None], self.name)[0].astype(jnp.float32)
        if self.mirrors:
            other = self.method.embed_frames(state, clip[None, ..., ::-1, :], self.name)[0]
            rows = (rows + other.astype(jnp.float32)) / 2
        return jnp.where(real[:, None], rows, 0).sum(0)

    def pooled(self, leaves, mean):
        """Unit f32[1,D] of a tracklet by the mean vector f32[C] of its frames."""
        return unit(self.method.embed_pooled(self.state(leaves), mean[None], self.name))

    # ---- running them
    def __call__(self, rows):
        """Features of u8[n,H,W,3], an array on the device that may not be finished."""
        return self.run(self.features, rows)

    def run(self, function, *rows):
        """A function of the leaves and arrays, compiled for their shapes, once whatever the threads."""
        key = function.__name__, *(r.shape for r in rows)
        with self._lock:
            if key not in self._made:
                with self.form():
                    shapes = jax.tree.map(
                        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (self._put, *rows)
                    )
                    placed = jax.sharding.SingleDeviceSharding(self.device)
                    made = jax.jit(function, in_shardings=placed, out_shardings=placed)
                    self._made[key] = made.lower(*shapes).compile()
        return self._made[key](self._put, *jax.device_put(rows, self.device))

    def form(self):
        """The form of convolutions for the device, where it is not JAX's default."""
        if self.device.platform == jax.default_backend():
            return contextlib.nullcontext()
        return layers.form("cpu" if self.device.platform == "cpu" else "plain")

    @property
    def tracklet(self):
        """u8[n,H,W,3] -> unit f32[D] by the method's rule; None for methods without one."""
        one_clip = self.frames and self.config.data.test_clip in tracklets.ONE_CLIP
        return self._by_clip if one_clip else self._by_frames if self.method.embeds_frames else None

    def _by_clip(self, rows):
        _, frames = tracklets.plan_clips(np.array([len(rows)]), self.config.data)
        return np.asarray(self.run(self.features, rows[frames]))[0]

    def _by_frames(self, rows):
        _, frames = tracklets.plan_clips(np.array([len(rows)]), self.config.data)
        total = 0
        for clip in frames:
            clip = clip if self.method.frames_apart else clip[clip >= 0]
            total = total + np.asarray(self.run(self.vectors, rows[clip], clip >= 0))
        return np.asarray(self.run(self.pooled, np.float32(total / len(rows))))[0]

    # ---- which leaves
    def _traced(self):
        """(paths of the leaves that features depend on, D)."""
        data = self.config.data
        image = jax.ShapeDtypeStruct((1, data.height, data.width, 3), jnp.uint8)
        camera = jax.ShapeDtypeStruct((1,), jnp.int32)
        try:
            (*state, _, by_camera), shape = reached(self.of_state, self.like, image, camera)
        except KeyError as e:
            raise ConfigError(
                f"features of this run depend on the label {e} of a picture too; write them with "
                "reid_jax embed"
            ) from e
        if by_camera and not self.method.wants_camera:
            raise ConfigError(
                "features of this run depend on the picture's camera too: write them with reid_jax embed, "
                "which knows the cameras of a data set"
            )
        used = np.array(state)
        if self.method.embeds_frames:
            used |= self._for_frames()
        return [p for p, u in zip(self._paths, used, strict=True) if u], shape[-1]

    def _for_frames(self):
        """bool of the leaves that tracklets depend on beside."""
        clip = jax.ShapeDtypeStruct((1, max(self.frames, 1), *self.size, 3), jnp.uint8)
        frames, shape = reached(lambda s, c: self.method.embed_frames(s, c, self.name), self.like, clip)
        mean = jax.ShapeDtypeStruct((1, shape[-1]), jnp.float32)
        pooled, _ = reached(lambda s, m: self.method.embed_pooled(s, m, self.name), self.like, mean)
        return np.array(frames[:-1]) | np.array(pooled[:-1])

    def _chosen(self, leaves):
        """{path: array} of the used leaves, checked."""
        variables = leaves(self.used) if callable(leaves) else leaves
        for path in self.used:
            want = self._paths[path]
            have = variables.get(path)
            if have is None or have.shape != want.shape:
                has = "is missing" if have is None else f"has shape {have.shape}, not {want.shape}"
                raise WeightsError(f"{self.where}: {path} {has}; the file is of another model, or damaged")
        return {path: np.asarray(variables[path], self._paths[path].dtype) for path in self.used}

    @functools.cached_property
    def card(self):
        from reid_jax.serve import card

        return card.of_net(self)


class ExportedNet(Net):
    """A Net of an export, whose card lies beside it."""

    card = None


def unit(features):
    """Rows f[n,D] at unit length, f32."""
    features = features.astype(jnp.float32)
    return features / jnp.maximum(jnp.linalg.norm(features, axis=-1, keepdims=True), 1e-12)


def reached(function, *shapes):
    """([whether the first output depends on it, for every leaf of the arguments], the output's shape)."""
    closed = jax.make_jaxpr(function)(*shapes)
    wanted = {closed.jaxpr.outvars[0]}
    for eqn in reversed(closed.jaxpr.eqns):
        if not wanted.isdisjoint(eqn.outvars):
            wanted.update(v for v in eqn.invars if not isinstance(v, Literal))
    return [v in wanted for v in closed.jaxpr.invars], closed.out_avals[0].shape


def flat(tree):
    """({leaf path: leaf}, structure), paths as checkpoints have them."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
    names = (jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves)
    return dict(zip(names, (leaf for _, leaf in leaves), strict=True)), structure


def hash_of(arrays):
    """SHA-256 over names, types, shapes and bytes of {path: array}: the same for a run and its exports."""
    total = hashlib.sha256()
    for path in sorted(arrays):
        array = np.ascontiguousarray(arrays[path])
        total.update(f"{path} {array.dtype} {array.shape}\n".encode())
        total.update(array.reshape(-1).view(np.uint8))
    return total.hexdigest()


def find_device(device):
    """A jax.Device of None (first accelerator, else CPU), "cpu", "cuda:1" or a Device; ConfigError."""
    if isinstance(device, jax.Device):
        return device
    if device is None:
        return jax.local_devices()[0]
    platform, _, number = str(device).partition(":")
    try:
        return jax.local_devices(backend=platform)[int(number or 0)]
    except (RuntimeError, ValueError, IndexError) as e:
        there = ", ".join(f"{d.platform}:{d.id}" for d in jax.local_devices())
        raise ConfigError(f"device is {device!r}; this machine has {there} (and cpu)") from e


# ---- from a run, to and from an archive
def of_run(workdir, checkpoint="best", net="auto", device=None, changes=None):
    """Net of a run's last stage. changes: function of the config tree, in place (dtype, say)."""
    tree = stages.of_run(workdir)
    if changes:
        changes(tree)
    stage, checkpoints = stages.last_begun(workdir)
    with contextlib.closing(checkpoints):
        step = checkpoints.choose(checkpoint)
        info = restore.info_of(checkpoints.read_meta(step), workdir, None)
        known = {"num_pids": info.num_pids, "num_cams": info.num_cams}
        known |= {"num_images": info.num_images, "domains": list(info.domains)}
        origin = Origin(tree, stage, net, known, int(step))
        made = Net(origin, lambda paths: checkpoints.read_some(step, paths), device, workdir)
    made.workdir = workdir
    return made


def write_archive(folder, net):
    """Writes model.safetensors and config.json."""
    weights.save(os.path.join(folder, ARCHIVE), net.arrays, {"format": "reid_jax-export", "hash": net.hash})
    about = {"format": _FORMAT, **net.origin._replace(config=without_places(net.origin.config))._asdict()}
    with open(os.path.join(folder, CONFIG_FILE), "w", encoding="utf-8") as file:
        json.dump(about | {"net": net.name}, file, indent=1, sort_keys=True)


def without_places(tree):
    """A config without names of files and folders, which tell of the machine and its user."""
    tree = json.loads(json.dumps(tree))
    for field in _PLACES:
        section, name = field.split(".")
        if tree.get(section, {}).get(name):
            tree[section][name] = ""
    for name, value in tree.get("init", {}).items():
        tree["init"][name] = "" if isinstance(value, str) and os.sep in value else value
    return tree


def of_export(folder, device=None):
    """Net of an export's archive; WeightsError for a damaged one, or of another hash than the card's."""
    from reid_jax.serve import embedder

    card = embedder.read_card(folder)
    path = os.path.join(folder, CONFIG_FILE)
    try:
        with open(path, encoding="utf-8") as file:
            about = json.load(file)
        embedder.check_whole(folder, card, CONFIG_FILE)
        origin = _origin(about)
    except FileNotFoundError as e:
        raise ConfigError(
            f"{folder} has no {CONFIG_FILE}; export with --formats=safetensors, or take backend='onnx'"
        ) from e
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as e:
        raise WeightsError(f"{path} is damaged ({e}); copy the folder again") from e
    archive = os.path.join(folder, ARCHIVE)
    made = ExportedNet(origin, weights.read(archive).entries, device, archive)
    if made.hash != card["hash"]:
        raise WeightsError(
            f"{archive} holds the model {made.hash[:12]}, and the card is of {card['hash'][:12]}: a byte of "
            "it changed, or the files are of two exports; copy the folder again"
        )
    made.card = card
    return made


def _origin(about):
    """Origin of config.json; ValueError, KeyError or TypeError when that is damaged."""
    if about.pop("format") != _FORMAT:
        raise ValueError("it is of another version of reid_jax")
    origin = Origin(**about)
    if wrong := misfit(origin.config, methods.defaults(str(origin.config["method"]))):
        raise ValueError(wrong)
    counts = [origin.info[k] for k in ("num_pids", "num_cams", "num_images")] + origin.info["domains"]
    if len(origin.info) != 4 or not all(type(n) is int and 0 <= n < 2**31 for n in counts):
        raise ValueError("info is not what is known of training data")
    if not isinstance(origin.net, str) or origin.stage not in methods.stage_names(namespace(origin.config)):
        raise ValueError(f"net is {origin.net!r} and stage {origin.stage!r}")
    return origin
