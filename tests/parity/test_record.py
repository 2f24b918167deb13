"""Cases recorded from PyTorch modules on the spot (needs torch)."""

import pytest

torch = pytest.importorskip("torch")

from reid_jax.errors import DataError  # noqa: E402
from reid_jax.parity import run  # noqa: E402
from reid_jax.parity.record import record  # noqa: E402


class Block(torch.nn.Module):
    def __init__(self, inside, features, stride):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(inside, features, 3, stride, 1, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(features)
        self.conv2 = torch.nn.Conv2d(features, features, 3, 1, 1, bias=False)
        self.bn2 = torch.nn.BatchNorm2d(features)
        if stride > 1 or inside != features:
            conv = torch.nn.Conv2d(inside, features, 1, stride, bias=False)
            self.downsample = torch.nn.Sequential(conv, torch.nn.BatchNorm2d(features))

    def forward(self, x):
        y = torch.relu(self.bn1(self.conv1(x)))
        shortcut = self.downsample(x) if hasattr(self, "downsample") else x
        return torch.relu(self.bn2(self.conv2(y)) + shortcut)


class ResNet18(torch.nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(64)
        inside = 64
        for stage, (features, stride) in enumerate(((64, 1), (128, 2), (256, 2), (512, 2)), 1):
            blocks = [Block(inside, features, stride), Block(features, features, 1)]
            setattr(self, f"layer{stage}", torch.nn.Sequential(*blocks))
            inside = features
        self.classifier = torch.nn.Linear(512, classes)

    def forward(self, x):
        x = torch.nn.functional.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        for stage in (1, 2, 3, 4):
            x = getattr(self, f"layer{stage}")(x)
        pooled = x.mean((2, 3))
        return {"pooled": pooled, "logits": self.classifier(pooled)}


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_a_net_of_ours(tmp_path, mode):
    path = tmp_path / "net__resnet18.npz"
    config = {"backbone": "resnet18", "neck": "none", "last_stride": 2, "num_classes": 5}
    module = ResNet18(5).train(mode == "train")
    image = torch.randn(4, 3, 70, 36, generator=torch.Generator().manual_seed(0))
    record(path, module, {"image": image}, reference="this test", config=config, by_recipe=True)
    report = run.report(path, {}, float32=False)
    assert report["ok"], "\n".join(run.details(report))
    assert len(report["arrays"]) == (2 if mode == "eval" else 42)
    assert path.stat().st_size < 1 << 20


def test_a_layer_with_gradients(tmp_path):
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh())
    record(tmp_path / "my__layer.npz", module, {"x": torch.randn(5, 3)}, reference="t", gradients=True)

    def my__layer(case):
        import jax
        import jax.numpy as jnp

        w, x, weight = case.weights(), case.input("x"), case.input("weight")

        def loss(w, x):
            y = jnp.tanh(x @ w["0.weight"].T + w["0.bias"])
            return (y * weight).sum(), y

        (_, y), (grads, grad_x) = jax.value_and_grad(loss, (0, 1), has_aux=True)(w, x)
        return {"out/y": y, "grad/in/x": grad_x} | {f"grad/{k}": v for k, v in grads.items()}

    report = run.report(tmp_path / "my__layer.npz", {"my__layer": my__layer}, float32=False)
    assert report["ok"] and len(report["arrays"]) == 4, report


def test_a_name_without_topic(tmp_path):
    with pytest.raises(DataError, match="TOPIC__COMPONENT"):
        record(tmp_path / "mine.npz", torch.nn.Identity(), {"x": torch.ones(1)}, reference="t")


class SplitAttention(torch.nn.Module):
    """Split attention, written from its description with explicit indices."""

    def __init__(self, inside, features, radix, groups):
        super().__init__()
        inner = max(inside * radix // 4, 32)
        self.features, self.radix, self.groups = features, radix, groups
        self.conv = torch.nn.Conv2d(inside, features * radix, 3, 1, 1, groups=groups * radix, bias=False)
        self.bn0 = torch.nn.BatchNorm2d(features * radix)
        self.fc1 = torch.nn.Conv2d(features, inner, 1, groups=groups)
        self.bn1 = torch.nn.BatchNorm2d(inner)
        self.fc2 = torch.nn.Conv2d(inner, features * radix, 1, groups=groups)

    def forward(self, x):
        x = torch.relu(self.bn0(self.conv(x)))
        parts = [x[:, r * self.features : (r + 1) * self.features] for r in range(self.radix)]
        gap = sum(parts).mean((2, 3), keepdim=True)
        scores = self.fc2(torch.relu(self.bn1(self.fc1(gap))))[:, :, 0, 0]
        each = self.features // self.groups  # channels of a cardinal group
        y = torch.zeros_like(parts[0])
        for g in range(self.groups):
            first = [g * self.radix * each + r * each for r in range(self.radix)]
            weights = torch.softmax(torch.stack([scores[:, f : f + each] for f in first]), 0)
            for r in range(self.radix):
                part = parts[r][:, g * each : (g + 1) * each]
                y[:, g * each : (g + 1) * each] += part * weights[r][:, :, None, None]
        return y


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize(
    "radix,groups", [(2, 2), *(pytest.param(*x, marks=pytest.mark.slow) for x in ((3, 1), (2, 4)))]
)
def test_split_attention_with_groups(tmp_path, radix, groups, mode):
    torch.manual_seed(0)
    module = SplitAttention(24, 24, radix, groups).train(mode == "train")
    config = dict(in_channels=24, channels=24, radix=radix, groups=groups, kernel=3, padding=1)
    x = torch.randn(3, 24, 5, 4)
    path = tmp_path / "efl__splat.npz"
    record(path, module, {"x": x}, reference="t", config=config, gradients=True, by_recipe=True)
    report = run.report(path, {}, float32=False)
    assert report["ok"], "\n".join(run.details(report))
