"""SCAL (Chen et al., ICCV 2019), self-critical attention, after its description.

An agent A = A(X) attends to the map X behind each stage of the backbone, X' = X A; a critic V = C(X', A)
guesses the reward R of the attention, which is not differentiable.

    net     CE + triplet on X', - agent * mean over stages of V, the critic held
    critic  mean over stages of (V - R)^2, X and A held
    R = 1 where the class is right, + 1 where it is likelier than without the last attention

Both move in one step, each by its own optimiser. There is no public code; what nobody says is a field below.
"""

import jax
import jax.numpy as jnp
from jax import lax

from reid_jax.config import choice
from reid_jax.errors import ConfigError
from reid_jax.fields import within
from reid_jax.methods import Method, _steps
from reid_jax.models import heads
from reid_jax.models.critic import Attention, Critic

TITLE = "SCAL"
FIELDS = dict(
    attention="spatial",  # spatial | channel
    stages=(1, 2, 3, 4),  # of the backbone, behind which it attends
    kernel=7,  # spatial: of the convolution, odd
    ratio=16,  # channel: squeeze
    critic=True,  # False: the attention alone
    relative=True,  # whether R counts the gain over the map without the last attention
    agent=0.1,  # weight of -V
    hold_state=True,  # -V moves the net through A alone, not through X
    hidden=256,  # the critic's layer
    grid=(8, 4),  # spatial: rows and columns of A that the critic sees
    critic_lr=3.5e-4,
)
METRICS = {
    "ce": "Identity cross entropy",
    "triplet": "Identity triplet",
    "accuracy": "Identity accuracy",
    "value": "Critic's value",
    "reward": "Reward of the attention",
    "critic": "Critic's squared error",
    "agreement": "Correlation of value and reward",
}
LABELS = "all"


class Scal(Method):
    """The only stage."""

    def __init__(self, config, info):
        super().__init__(config, info)
        self.own = check(config)
        self.network = net(config, info)
        self.encoder = heads.encoder(self.network)
        self.critic = Critic(self.own.hidden, tuple(self.own.grid))
        self.tx = {"net": _steps.optimiser(config.optim, self.info, self.network)}
        if self.own.critic:
            self.tx["critic"] = _steps.optimiser(config.optim, self.info, lr=self.own.critic_lr)
        self.rate = _steps.schedule(config.optim, self.info, config.optim.lr)

    def init(self, key):
        first, second = jax.random.split(key)
        nets = {"net": self.encoder.init(first, self.blank())}
        nets["net"].pop("attention", None)
        if self.own.critic:
            _, _, pairs = self.attended(nets["net"], self.blank(), train=False)
            nets["critic"] = dict(self.critic.init(second, pairs))
        return self.fresh(nets, self.tx)

    def attended(self, variables, image, key=None, train=True):
        """(Branches, batch_stats, [(X, A)] stage by stage)."""
        rngs = None if key is None else {"style": key, "dropout": key}
        mutable = ["batch_stats", "attention"]
        out, changed = self.network.apply(variables, image, train, mutable=mutable, rngs=rngs)
        pairs = changed["attention"]["base"]
        return out, changed.get("batch_stats", {}), [pairs[name(stage)]["pair"] for stage in self.own.stages]

    def step(self, state, batch):
        image, pid, key = self.view(batch["train"]), batch["train"]["pid"], self.key(state)

        def loss(nets):
            out, stats, pairs = self.attended(nets["net"], image, key)
            ce, tri = _steps.identity_losses(self.config.loss, out, pid, self.axis)
            metrics = {"ce": ce, "triplet": tri, "accuracy": _steps.accuracy(out, pid)}
            value = ce + tri
            if self.own.critic:
                reward = self.reward(nets["net"], out, pairs[-1][0], pid)
                agent, critic = self.game(nets["critic"], pairs, reward, metrics)
                value = value + self.own.agent * agent + critic
            return value, {"net": stats}, metrics | {"loss": value}, None

        new, metrics, _ = _steps.descend(loss, state, self.tx, self.axis)
        return new, metrics | {"lr": self.rate(state.step)}

    def game(self, critic, pairs, reward, metrics):
        """(-V for the net, (V - R)^2 for the critic), f[] each; metrics gets their figures."""
        states = [(lax.stop_gradient(x), a) if self.own.hold_state else (x, a) for x, a in pairs]
        agent = -self.critic.apply(lax.stop_gradient(critic), states).mean()
        value = self.critic.apply(critic, lax.stop_gradient(pairs))
        error = jnp.square(value - reward).mean()
        metrics |= {"value": value.mean(), "reward": reward.mean(), "critic": error}
        metrics["agreement"] = correlation(lax.stop_gradient(value).mean(0), reward)
        return agent, error

    def reward(self, variables, out, x, pid):
        """R f[B], without gradient; x: the last stage's map before its attention."""
        logits = sum(jax.nn.log_softmax(each) for each in out.logits)
        reward = (logits.argmax(-1) == pid).astype(logits.dtype)
        if self.own.relative:
            plain, _ = self.network.apply(variables, x, True, method="of_map", mutable=["batch_stats"])
            plain = sum(jax.nn.log_softmax(each) for each in plain.logits)
            mine = jnp.arange(len(pid)), pid
            reward = reward + (logits[mine] > plain[mine])
        return lax.stop_gradient(reward)


def name(stage):
    """What the attention behind a stage is called in the backbone."""
    return f"attention{stage}"


def net(config, info):
    """heads.ReIDNet with attention behind the stages of config.scal."""
    fields = config.scal

    def refine(place):
        if place not in tuple(fields.stages):
            return None
        return Attention(fields.attention, fields.kernel, fields.ratio, name=name(place))

    whole = heads.build(config.model, info.num_pids, info.axis_name)
    return whole.clone(base=heads.trunk(config.model, info.axis_name, refine))


def correlation(a, b):
    """Of f[B] and f[B]; 0 where one of them is constant."""
    a, b = a - a.mean(), b - b.mean()
    scale = jnp.sqrt(jnp.square(a).sum() * jnp.square(b).sum())
    return jnp.where(scale > 0, (a * b).sum() / jnp.where(scale > 0, scale, 1), 0)


def check(config):
    """config.scal; ConfigError for fields that cannot be together."""
    fields, head = config.scal, config.model.head
    choice("scal.attention", fields.attention, ("spatial", "channel"))
    within(
        "scal",
        fields,
        kernel=(1, None),
        ratio=(1, None),
        hidden=(1, None),
        agent=(0, None),
        critic_lr=(0, None),
    )
    places = [p for p in heads.trunk(config.model).places if isinstance(p, int)]
    if not tuple(fields.stages) or set(fields.stages) - set(places) or fields.kernel % 2 == 0:
        raise ConfigError(
            f"config.scal.stages is {fields.stages} and kernel {fields.kernel}; {config.model.backbone} has "
            f"stages {places}, and the kernel is odd"
        )
    if fields.critic and fields.relative and max(fields.stages) != places[-1]:
        raise ConfigError(
            f"config.scal.stages is {fields.stages}; config.scal.relative compares with the last map without "
            f"its attention: attend behind stage {places[-1]} too, or set relative=False"
        )
    if len(fields.grid) != 2 or min(fields.grid) < 1:
        raise ConfigError(f"config.scal.grid is {fields.grid}; it must be rows and columns, as (8, 4)")
    if config.data.frames:
        raise ConfigError(f"config.data.frames is {config.data.frames}, but SCAL is for pictures")
    if head == "contrast":
        raise ConfigError("config.model.head is 'contrast', which has no classifier to reward: use 'global'")
    return fields


STAGES = {"train": Scal}
