"""Runner of the cases `net__ANYTHING`: a net of this library under somebody's weights.

meta.config holds fields of config.model (backbone, neck, pool, ...), `num_classes` and, with MMT's
embedding, `num_features`. Recorded: `in/image` or `in/clip`, `shape/` or `param/` in any key layout that
`reid_jax.models.weights` knows, and any of the names of `reid_jax.parity.nets.net_results`, such as
`out/pooled`, `out/feature` (after the neck) or `out/logits`.
"""

from reid_jax.config import defaults
from reid_jax.errors import ConfigError
from reid_jax.parity import nets


def net(case):
    """a whole net: whatever of its outputs is recorded"""
    fields = dict(case.meta.get("config", {}))
    num_classes, num_features = fields.pop("num_classes", 1), fields.pop("num_features", 0)
    if unknown := sorted(set(fields) - set(defaults()["model"])):
        raise ConfigError(f"the case's config has {', '.join(unknown)}, which config.model has not")
    module = nets.build(num_classes, num_features, **fields)
    x = nets.channels_last(case.input("clip" if "in/clip" in case.arrays else "image"))
    variables = nets.net_variables(case, module, x)
    naming = case.meta.get("naming", "torchvision")
    return nets.out(nets.net_results(module, variables, x, case.train, naming))
