"""Backbones with blocks between their blocks."""

from reid_jax.models.backbones import non_local
from reid_jax.parity import nets


def nonlocal2d(case):
    """AGW's non-local block: output, gradients, running statistics"""
    return nets.module_results(case, non_local.LinearNonLocal(case.config.inner), case.train)


def agw_net(case):
    """AGW: ResNet-50 with non-local blocks, GeM, neck"""
    m = case.config
    fields = dict(stem_relu=m.stem_relu, pool="gem", gem_p=m.gem_p, neck="bnneck")
    return _whole(case, m.classes, "resnet50_nl", **fields)


def fastreid_resnet(case):
    """fast-reid's ResNet-50: pooling of the stem, non-local blocks, IBN"""
    m = case.config
    backbone = "resnet50_nl_ibn_a" if m.ibn else "resnet50_nl"
    fields = dict(stem_relu=m.stem_relu, stem_pool=m.stem_pool, neck="none")
    return _whole(case, 1, backbone, **fields)


def _whole(case, classes, backbone, **fields):
    """All that is recorded of a net with non-local blocks; their inner width is the weights'."""
    inner = {v.shape[0] for k, v in case.weights().items() if k.endswith("theta.weight")} or {1}
    blocks = dict(nl_blocks=tuple(case.config.non_local), nl_inner=inner.pop())
    fields = dict(last_stride=case.config.last_stride, **blocks, **fields)
    net = nets.build(classes, backbone=backbone, **fields)
    image = nets.channels_last(case.input("image"))
    variables = nets.net_variables(case, net, image)
    return nets.out(nets.net_results(net, variables, image, case.train))
