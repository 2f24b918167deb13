"""What DI-REID's stages share: modules by name, tests on an image and its mirror image, earlier weights."""

import jax
import jax.numpy as jnp
from flax import traverse_util
from jax import lax

from reid_jax.config import choice
from reid_jax.errors import CheckpointError
from reid_jax.losses import identity, triplet
from reid_jax.methods import Method
from reid_jax.models import modes

STEM = "base"  # module of E_con, of the teacher's E_id too


class Stage(Method):
    """modules: {name in state.nets: linen module}, set by the stages."""

    modules: dict

    def features(self, nets, x, net):
        """Test features f32[B,D] of normalised images [B,H,W,3]; `net` is one of self.nets."""
        raise NotImplementedError

    def embed(self, state, image, net):
        """The mean of the features of an image and its mirror image."""
        x = self.plain(image)
        return (self.features(state.nets, x, net) + self.features(state.nets, x[:, :, ::-1], net)) / 2

    def apply(self, nets, name, *args, method=None):
        """A network without modes; nets: {name: variables}."""
        return self.modules[name].apply(nets[name], *args, method=method)

    def call(self, nets, name, *args, train, method=None, key=None):
        """A network with modes: (output, its batch_stats, moved in training); key: of dropout."""
        return modes.call(self.modules[name], nets[name], *args, train=train, method=method, key=key)

    def device_key(self, key):
        """A key that differs between the devices."""
        return key if self.axis is None else jax.random.fold_in(key, lax.axis_index(self.axis))


def moved(nets, stats):
    """nets with the batch_stats of some networks replaced: {name: variables}, {name: batch_stats}."""
    return {**nets, **{n: {**nets[n], "batch_stats": s} for n, s in stats.items()}}


def reid(logits, feature, pid, loss, axis_name=None):
    """Cross entropy and batch-hard triplet on an unnormalised feature, the two added."""
    ce = identity.cross_entropy(logits, pid, label_smooth=loss.label_smooth)
    options = dict(distance=choice("loss.triplet", loss.triplet, triplet.DISTANCES), margin=loss.margin)
    return ce + loss.triplet_weight * triplet.batch_hard(feature, pid, axis_name=axis_name, **options)[0]


def graft(variables, source, module=None):
    """variables with the leaves that `source` has at the same places, of all modules or of one (STEM).

    Every such leaf must be there: CheckpointError when the networks differ.
    """
    known, new = traverse_util.flatten_dict(source, sep="/"), {}
    for path, leaf in traverse_util.flatten_dict(dict(variables), sep="/").items():
        if module and path.split("/")[1] != module:
            new[path] = leaf
        elif path not in known or known[path].shape != leaf.shape:
            shape = known[path].shape if path in known else "missing"
            raise CheckpointError(
                f"{path} of the earlier stage is {shape}, this one needs {leaf.shape}: the stages must have "
                "the same config.model and config.direid"
            )
        else:
            new[path] = jnp.asarray(known[path])
    return traverse_util.unflatten_dict(new, sep="/")
