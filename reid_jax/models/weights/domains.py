"""Key layouts of nets for sets that training has not seen, on ResNets.

dualnorm: BJTUJia/person_reID_DualNorm. metabin: bismex/MetaBIN. m3l: HeliosZhao/M3L. snr: microsoft/SNR's net
of classification, whose gate is spelt style_reid_laye. Those on MobileNetV2: backbones.mobilenetv2.
"""

import re

from reid_jax.models import Keys
from reid_jax.models.weights.names import dotted, leaf_name

_METABIN = {"downsample_0": "downsample.conv", "downsample_1": "downsample.bn"}


def _names(base, inner=dotted, **heads):
    """Keys.names; base: what stands before the trunk's modules; inner: a module's name; heads: theirs."""

    def keys(modules, leaf):
        first, *below = modules
        front = [base] if first == "base" and base else []
        outside = [] if first == "base" else [heads.get(first, dotted(first))]
        return [".".join([*front, *outside, *map(inner, below), leaf_name(leaf)])]

    return keys


def _restitution(modules, leaf):
    """SNR's: IN1, style_reid_laye1.fc1; fc1 behind stage 1, and fc."""
    if modules[0] != "base" or not (stage := re.fullmatch(r"restitution(\d)", modules[1])):
        return _names("", classifier="fc")(modules, leaf)
    renamed = {"IN": f"IN{stage[1]}", "classifier": f"fc{stage[1]}"}
    place = renamed.get(modules[2], f"style_reid_laye{stage[1]}.{modules[2]}")
    return [f"{place}.{leaf_name(leaf)}"]


def _having(*patterns):
    """Keys.matches: each of the patterns is in some key."""
    return lambda entries: all(any(re.search(p, key) for key in entries) for p in patterns)


def _memories(entries):
    ibn = any(".bn1.IN." in key for key in entries)
    name = "resnet50_ibn_a" if ibn else "resnet50"
    return {"backbone": name, "stem_relu": False, "head": "contrast", "contrast_bias": True}


_TRUNK = r"layer1\.0\.conv1\.weight$"
_RESNET = dict(backbone="resnet50", neck="bnneck")
KEYS = {
    "dualnorm": Keys(
        _names("", neck="fn"),
        _having(r"^fn\.running_mean$", rf"^{_TRUNK}"),
        fields=lambda entries: _RESNET | {"norm": "dualnorm", "last_stride": 2},
    ),
    "metabin": Keys(
        _names(
            "backbone",
            lambda module: _METABIN.get(module, dotted(module)),
            neck="heads.classifier_norm",
            classifier="heads.classifier_fc",
        ),
        _having(r"^backbone\..*\.bat_n\.", rf"^backbone\.{_TRUNK}"),
        fields=lambda entries: _RESNET | {"norm": "metabin"},
    ),
    "m3l": Keys(
        _names("base", neck="feat_bn"),
        _having(r"^feat_bn\.meta_mean1$", rf"^base\.{_TRUNK}"),
        fields=_memories,
    ),
    "snr": Keys(_restitution, _having(r"^style_reid_laye\d\.", rf"^{_TRUNK}")),
}
