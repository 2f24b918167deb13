"""PyTorch counterparts of the timed steps, written as PyTorch users write them (needs torch).

A plain ResNet50 with last stride 1 and a BN neck, TransReID's ViT-B/16, OSNet x1.0; the classes in STEPS
hold a step's state and do it with `run()`. As a script it serves one step to `reid_jax.benchmarks.step`; it
imports neither jax nor the library.
"""

import copy
import json
import sys
import time

import torch
from torch import nn
from torch.nn import functional as F


class Bottleneck(nn.Module):
    def __init__(self, inputs, mid, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, mid, 1, bias=False), nn.BatchNorm2d(mid)
        self.conv2, self.bn2 = nn.Conv2d(mid, mid, 3, stride, 1, bias=False), nn.BatchNorm2d(mid)
        self.conv3, self.bn3 = nn.Conv2d(mid, 4 * mid, 1, bias=False), nn.BatchNorm2d(4 * mid)
        self.downsample = None
        if stride > 1 or inputs != 4 * mid:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, 4 * mid, 1, stride, bias=False), nn.BatchNorm2d(4 * mid)
            )

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        y = self.bn3(self.conv3(y))
        y += x if self.downsample is None else self.downsample(x)
        return F.relu(y, inplace=True)


class ResNet50(nn.Module):
    """Image [B,3,H,W] -> (feature after the neck [B,2048], logits [B,K])."""

    def __init__(self, num_classes):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 64, 7, 2, 3, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, 1),
        )
        blocks, inputs = [], 64
        for mid, count, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 1)):
            for i in range(count):
                blocks.append(Bottleneck(inputs, mid, stride if i == 0 else 1))
                inputs = 4 * mid
        self.blocks, self.neck = nn.Sequential(*blocks), nn.BatchNorm1d(2048)
        self.classifier = nn.Linear(2048, num_classes)

    def forward(self, x):
        x = self.blocks(self.stem(x)).mean((2, 3)).float()
        f = self.neck(x)
        return f, self.classifier(f)


class Club(nn.Module):
    """q(f_cam | f_id) as a diagonal Gaussian."""

    def __init__(self, dim, hidden):
        super().__init__()
        self.mu = nn.Sequential(nn.Linear(dim, hidden // 2), nn.ReLU(), nn.Linear(hidden // 2, dim))
        self.logvar = nn.Sequential(
            nn.Linear(dim, hidden // 2), nn.ReLU(), nn.Linear(hidden // 2, dim), nn.Tanh()
        )

    def bound(self, x, y):
        mu, logvar = self.mu(x), self.logvar(x)
        negative = (mu - y.mean(0)) ** 2 + y.var(0, unbiased=False)
        return ((negative - (mu - y) ** 2) / (2 * logvar.exp())).sum(1).mean()

    def nll(self, x, y):
        mu, logvar = self.mu(x), self.logvar(x)
        return ((mu - y) ** 2 / logvar.exp() + logvar).sum(1).mean()


class Block(nn.Module):
    """Pre-norm transformer block; drop: share of images whose branches are dropped in training."""

    def __init__(self, width, heads, drop):
        super().__init__()
        self.heads, self.drop = heads, drop
        self.norm1, self.norm2 = nn.LayerNorm(width, 1e-6), nn.LayerNorm(width, 1e-6)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def attention(self, x):
        b, n, c = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))

    def kept(self, x):
        if not self.drop:
            return x
        mask = torch.rand(len(x), 1, 1, device=x.device) >= self.drop
        return x * mask / (1 - self.drop)

    def forward(self, x):
        x = x + self.kept(self.attention(self.norm1(x)))
        return x + self.kept(self.mlp(self.norm2(x)))


class TransReid(nn.Module):
    """ViT-B/16 with cameras, stride 16, and JPM: a global branch and four of shuffled patches."""

    def __init__(self, num_classes, num_cams, height, width, dim=768, depth=12, heads=12):
        super().__init__()
        self.patches = nn.Conv2d(3, dim, 16, 16)
        self.cls = nn.Parameter(0.02 * torch.randn(1, 1, dim))
        self.positions = nn.Parameter(0.02 * torch.randn(1, 1 + height * width // 256, dim))
        self.cameras = nn.Parameter(0.02 * torch.randn(num_cams, 1, dim))
        self.blocks = nn.Sequential(*(Block(dim, heads, 0.1 * i / (depth - 1)) for i in range(depth - 1)))
        self.b1, self.b2 = (nn.Sequential(Block(dim, heads, 0.1), nn.LayerNorm(dim, 1e-6)) for _ in "12")
        self.necks = nn.ModuleList(nn.BatchNorm1d(dim) for _ in range(5))
        self.classifiers = nn.ModuleList(nn.Linear(dim, num_classes, bias=False) for _ in range(5))

    def forward(self, x, camera):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1) + self.positions + 3 * self.cameras[camera]
        x = self.blocks(x)
        first, patches = x[:, :1], torch.cat([x[:, 5:], x[:, 1:5]], 1)
        patches = patches.view(len(x), 2, -1, x.shape[-1]).transpose(1, 2).flatten(1, 2)
        parts = patches.chunk(4, 1)
        features = [self.b1(x)[:, 0], *(self.b2(torch.cat([first, p], 1))[:, 0] for p in parts)]
        logits = [c(n(f.float())) for c, n, f in zip(self.classifiers, self.necks, features, strict=True)]
        return features, logits


def unit(inputs, outputs, size=1, stride=1, relu=True):
    """Convolution without bias, batch norm, ReLU."""
    layers = [nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False), nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers, nn.ReLU(inplace=True)) if relu else nn.Sequential(*layers)


def lite(channels):
    """1x1, depthwise 3x3, batch norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(channels, channels, 1, bias=False),
        nn.Conv2d(channels, channels, 3, 1, 1, groups=channels, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
    )


class OsBlock(nn.Module):
    """Streams of one to four lite 3x3 under one gate."""

    def __init__(self, inputs, outputs):
        super().__init__()
        mid = outputs // 4
        self.first, self.last = unit(inputs, mid), unit(mid, outputs, relu=False)
        self.streams = nn.ModuleList(nn.Sequential(*(lite(mid) for _ in range(t))) for t in (1, 2, 3, 4))
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(mid, mid // 16, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(mid // 16, mid, 1),
            nn.Sigmoid(),
        )
        self.shortcut = unit(inputs, outputs, relu=False) if inputs != outputs else nn.Identity()

    def forward(self, x):
        y = self.first(x)
        y = sum(z * self.gate(z) for z in (stream(y) for stream in self.streams))
        return F.relu(self.last(y) + self.shortcut(x))


class OSNet(nn.Module):
    """x1.0: image [B,3,H,W] -> (feature [B,512], logits [B,K])."""

    def __init__(self, num_classes):
        super().__init__()
        layers, inputs = [unit(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)], 64
        for width, shrinks in ((256, True), (384, True), (512, False)):
            layers += [OsBlock(inputs, width), OsBlock(width, width)]
            layers += [unit(width, width), nn.AvgPool2d(2)] if shrinks else []
            inputs = width
        self.trunk = nn.Sequential(*layers, unit(512, 512))
        self.fc = nn.Sequential(nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(inplace=True))
        self.classifier = nn.Linear(512, num_classes)

    def forward(self, x):
        f = self.fc(self.trunk(x).mean((2, 3)).float())
        return f, self.classifier(f)


def soft_margin(f, label):
    d = torch.cdist(f.float(), f.float())
    same = label[:, None] == label
    return F.softplus(d.masked_fill(~same, -9).amax(1) - d.masked_fill(same, 1e9).amin(1)).mean()


def batch_hard(f, label, margin=0.3):
    f = F.normalize(f.float())
    d = -f @ f.T
    same = label[:, None] == label
    positive = d.masked_fill(~same, -9).amax(1)
    negative = d.masked_fill(same, 9).amin(1)
    return F.relu(positive - negative + margin).mean()


def _adam(module, lr=3e-4):
    return torch.optim.Adam(module.parameters(), lr=lr, weight_decay=5e-4)


class Peer:
    """What all have in common: inputs, memory format and autocast."""

    def __init__(self, batch, height, width, num_pids, num_cams, *, bf16, channels_last, device):
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        self.bf16, self.device = bf16, device
        torch.manual_seed(0)
        images = torch.randn(2, batch, 3, height, width, device=device)
        self.views = [v.to(memory_format=self.format) for v in images]
        self.pid = torch.arange(batch, device=device) // 4 % num_pids
        self.cam = torch.arange(batch, device=device) % num_cams
        self.build(num_pids, num_cams)

    def net(self, classes):
        return ResNet50(classes).to(self.device, memory_format=self.format)

    def autocast(self):
        return torch.autocast(self.device, torch.bfloat16, enabled=self.bf16)


class Extract(Peer):
    def build(self, num_pids, num_cams):
        self.model = self.net(num_pids).eval()

    @torch.inference_mode()
    def run(self):
        with self.autocast():
            return self.model(self.views[0])[0]


class Baseline(Peer):
    def build(self, num_pids, num_cams):
        self.model = self.net(num_pids)
        self.adam = _adam(self.model)

    def run(self):
        with self.autocast():
            f, logits = self.model(self.views[0])
        loss = F.cross_entropy(logits.float(), self.pid) + batch_hard(f, self.pid)
        self.adam.zero_grad(set_to_none=True)
        loss.backward()
        self.adam.step()
        return loss.detach()


class Efl(Peer):
    """Two students, two teachers (train-mode forward, EMA), camera net, CLUB with n_mi inner steps."""

    n_mi, decay, lambda_kl, lambda_mi = 10, 0.999, 0.5, 1e-4

    def build(self, num_pids, num_cams):
        self.students = [self.net(num_pids) for _ in range(2)]
        self.teachers = [copy.deepcopy(s) for s in self.students]
        self.camera, self.q = self.net(num_cams), Club(2048, 1024).to(self.device)
        self.adams = [_adam(m) for m in (*self.students, self.camera)]
        self.adam_q = _adam(self.q, 1e-5)

    def run(self):
        with self.autocast():
            outs = [s(x) for s, x in zip(self.students, self.views, strict=True)]
            with torch.no_grad():
                targets = [t(x)[1].float() for t, x in zip(self.teachers, self.views, strict=True)]
            f_cam, cam_logits = self.camera(self.views[0])
        fixed = f_cam.detach().float()
        loss = F.cross_entropy(cam_logits.float(), self.cam) + batch_hard(f_cam, self.cam)
        for (f, logits), target in zip(outs, targets[::-1], strict=True):
            ce = F.cross_entropy(logits.float(), self.pid)
            loss = loss + (1 - self.lambda_kl) * ce + batch_hard(f, self.pid)
            kl = F.kl_div(logits.float().log_softmax(1), target.softmax(1), reduction="batchmean")
            loss = loss + self.lambda_kl * kl + self.lambda_mi * self.q.bound(f.float(), fixed)
        for adam in self.adams:
            adam.zero_grad(set_to_none=True)
        loss.backward()
        for adam in self.adams:
            adam.step()
        self._average()
        features = [f.detach().float() for f, _ in outs]
        for _ in range(self.n_mi):
            self.adam_q.zero_grad(set_to_none=True)
            sum(self.q.nll(f, fixed) for f in features).backward()
            self.adam_q.step()
        return loss.detach()

    @torch.no_grad()
    def _average(self):
        for teacher, student in zip(self.teachers, self.students, strict=True):
            old, new = list(teacher.parameters()), list(student.parameters())
            torch._foreach_lerp_(old, new, 1 - self.decay)


class TransReidStep(Peer):
    def build(self, num_pids, num_cams):
        height, width = self.views[0].shape[-2:]
        net = TransReid(num_pids, num_cams, height, width)
        self.model = net.to(self.device, memory_format=self.format)
        self.sgd = torch.optim.SGD(self.model.parameters(), lr=0.008, momentum=0.9, weight_decay=1e-4)

    def run(self):
        with self.autocast():
            features, logits = self.model(self.views[0], self.cam)
        loss = 0
        for weight, f, x in zip((0.5, *(0.125,) * 4), features, logits, strict=True):
            loss = loss + weight * (F.cross_entropy(x.float(), self.pid) + soft_margin(f, self.pid))
        self.sgd.zero_grad(set_to_none=True)
        loss.backward()
        self.sgd.step()
        return loss.detach()


class OsnetStep(Peer):
    def build(self, num_pids, num_cams):
        self.model = OSNet(num_pids).to(self.device, memory_format=self.format)
        settings = dict(lr=1.5e-3, weight_decay=5e-4, amsgrad=True)
        self.adam = torch.optim.Adam(self.model.parameters(), **settings)

    def run(self):
        with self.autocast():
            _, logits = self.model(self.views[0])
        loss = F.cross_entropy(logits.float(), self.pid, label_smoothing=0.1)
        self.adam.zero_grad(set_to_none=True)
        loss.backward()
        self.adam.step()
        return loss.detach()


STEPS = {"extract": Extract, "baseline": Baseline, "efl": Efl, "transreid": TransReidStep}
STEPS |= {"osnet": OsnetStep}


def peak_mib(device):
    if device == "cuda":
        return torch.cuda.max_memory_allocated() >> 20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def main():
    """Serves one step: settings as JSON in argv[1], then one line of JSON for each line read."""
    settings = json.loads(sys.argv[1])
    step = STEPS[settings.pop("step")](**settings)
    device = settings["device"]
    print(json.dumps({"torch": torch.__version__}), flush=True)
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        step.run()
        if device == "cuda":
            torch.cuda.synchronize()
        answer = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
        print(json.dumps(answer | {"peak_mib": peak_mib(device)}), flush=True)


if __name__ == "__main__":
    main()
