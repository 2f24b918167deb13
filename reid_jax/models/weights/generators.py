"""Key layouts of methods with image generators.

dgnet: NVlabs/DG-Net. gen_*.pt (part `a`: E_s, G), dis_*.pt (`a`: D), id_*.pt (`a`: E_a), and the teacher's
net_last.pth. camstyle: zhunzhong07/CamStyle's ReID network with head "classblock"; its CycleGANs' keys need
no layout. Files of camstyle look like MMT's, so that its layout is never guessed.
"""

import re

from reid_jax.models import Keys

_LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
_PARTS = (  # of our names with dots, and theirs
    (r"base\.", "model."),
    (r"nets\.", "cnns."),
    (r"model\.", "enc_content.model."),
    (r"dec\.res\.", "dec.model.1."),
    (r"dec\.up\.0\.conv\.", "dec.model.3."),
    (r"dec\.up\.1\.conv\.", "dec.model.5."),
    (r"dec\.convs\.0\.", "dec.model.6."),
    (r"dec\.convs\.1\.", "dec.model.7."),
    (r"dec\.convs\.2\.", "dec.model.8."),
)
_OWN = re.compile(r"enc_content\.|cnns\.\d|classifier\d?\.add_block\.0\.")
_CLASSBLOCK = {"add_block_0": "feat", "add_block_1": "feat_bn", "classifier_0": "classifier"}


def dgnet(modules, leaf):
    """Keys of a leaf of any of DG-Net's networks; those of E_s with and without `enc_content`."""
    name = ".".join([re.sub(r"_(\d+)(?=(_\d+)*$)", r".\1", m) for m in modules] + [_LEAVES.get(leaf, leaf)])
    for ours, theirs in _PARTS:
        if match := re.match(ours, name):
            return [theirs + name[match.end() :], *([name] if theirs.startswith("enc_content") else [])]
    return [name]


def camstyle(modules, leaf):
    """Keys of a leaf of a net with head "classblock"."""
    inner = [re.sub(r"_(\d+)$", r".\1", m) for m in modules]
    if modules[0] == "classifier" and len(modules) > 1:  # else it is another head's
        inner = [_CLASSBLOCK[modules[1]]]
    return [".".join([*inner, _LEAVES.get(leaf, leaf)])]


KEYS = {
    "dgnet": Keys(dgnet, lambda entries: any(_OWN.match(key) for key in entries)),
    "camstyle": Keys(camstyle, lambda entries: False),
}
