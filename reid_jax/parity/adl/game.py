"""The game of encoder, camera head and critic."""

import jax

from reid_jax.losses import adversarial, identity
from reid_jax.methods import Info, adl
from reid_jax.methods.adl import nets as modules
from reid_jax.parity import nets
from reid_jax.parity.adl import _build


def mutual_information(case):
    """omega, its exp and the JS estimate: values, gradients"""
    f, z, permutation = (case.input(k) for k in ("identity", "camera", "permutation"))
    critic = modules.Critic(case.config.hidden)
    params = _build.filled(case, critic, case.weights(), f, z)["params"]

    def logits(params, f, z):
        return (critic.apply({"params": params}, f, x) for x in (z, z[permutation]))

    def omega(params, f, z):
        return adversarial.omega(*logits(params, f, z))

    joint, marginal = logits(params, f, z)
    value = omega(params, f, z)
    results = {"joint_logit": joint, "marginal_logit": marginal, "omega": value, "js": adversarial.js(value)}
    results["exp_omega"] = adversarial.pull(value, "exp")
    half = adversarial.NO_DEPENDENCE / 2
    results["dim_positive"] = jax.nn.log_sigmoid(joint).mean() - half
    results["dim_negative"] = -jax.nn.log_sigmoid(-marginal).mean() + half
    results = nets.out(results)
    objectives = {
        "omega": lambda x: adversarial.pull(x, "linear"),
        "exp_omega": lambda x: adversarial.pull(x, "exp"),
        "exp_omega_50": lambda x: adversarial.pull(x, "exp", 50),
        "discriminator": lambda x: -x,
    }
    for name, of in objectives.items():
        grads, *inputs = jax.jit(jax.grad(lambda *a, of=of: of(omega(*a)), (0, 1, 2)))(params, f, z)
        grads = _build.torch(grads) | dict(zip(("in/identity", "in/camera"), inputs, strict=True))
        results |= {f"grad/{name}/{k}": v for k, v in grads.items()}
    return results


_ENCODER = {"0": "bn0", "1": "fc1", "2": "bn2", "4": "fc4", "5": "bn5"}


_CAMERA = {"0": "fc0", "1": "bn1", "3": "fc3"}


_CRITIC = {"0": "fc1", "2": "fc2", "4": "fc3"}


def _game(case, f, names, **fields):
    """(Adl with these fields, variables of E, H and D); names: {player: {start of a case's key: ours}}."""
    method = adl.Adl(_build.config(**fields), Info(1, case.config.cameras))
    args = {"encoder": (f, False), "camera": (f, False), "critic": (f, f)}
    weights = case.weights()
    variables = {
        n: _build.filled(case, method.modules[n], _build.renamed(weights, names[n]), *args[n]) for n in args
    }
    return method, variables


def _with_params(variables, params):
    return {n: {**v, "params": params[n]} for n, v in variables.items()}


def _game_grads(prefix, grads, grad_f, names):
    entries = {k: v for n in grads for k, v in _build.torch(grads[n], names[n]).items()}
    return {f"grad/{prefix}/{k}": v for k, v in entries.items()} | {f"grad/{prefix}/in/feature": grad_f}


def adl_modules(case):
    """E, H and D of the ADL code: outputs, losses, gradients"""
    m, f, camid = case.config, case.input("feature"), case.input("camera")
    names = {
        "encoder": {f"encoder.seq.{k}": v for k, v in _ENCODER.items()},
        "camera": {f"camera_head.{k}": v for k, v in _CAMERA.items()},
        "critic": {f"discriminator.discrimintor.{k}": v for k, v in _CRITIC.items()},
    }
    method, variables = _game(case, f, names)
    encoder, camera, critic = (method.modules[n] for n in adl.PLAYERS)

    def forward(params, f):
        all_ = _with_params(variables, params)
        z, _ = encoder.apply(all_["encoder"], f, True, mutable=["batch_stats"])
        other = z[case.input("permutation")]
        joint, marginal = (critic.apply(all_["critic"], f, x) for x in (z, other))
        logits, _ = camera.apply(all_["camera"], z, True, mutable=["batch_stats"])
        omega = adversarial.omega(joint, marginal)
        values = {"omega": omega, "camera_loss": identity.cross_entropy(logits, camid)}
        pull = adversarial.pull(omega, "exp", m.temperature)
        values["feature_loss"] = m.camera_weight * values["camera_loss"] + pull
        pairs = {"joint": joint, "marginal": marginal}
        probability = {f"{k}_probability": jax.nn.sigmoid(v) for k, v in pairs.items()}
        return values | {"discriminator_loss": -omega, "z_train": z} | probability

    params = {n: v["params"] for n, v in variables.items()}
    results = nets.out(jax.jit(forward)(params, f))
    results["out/z_eval"] = encoder.apply(variables["encoder"], f, False)
    for name in ("discriminator", "feature"):
        grads, grad_f = jax.jit(jax.grad(lambda *a, n=name: forward(*a)[f"{n}_loss"], (0, 1)))(params, f)
        results |= _game_grads(name, grads, grad_f, names)
    return results


def adl_objective(case):
    """the whole game: losses, gradients of all players, with every option"""
    m, f, camid = case.config, case.input("feature"), case.input("camera")
    names = {
        "encoder": {f"encoder.{k}": v for k, v in _ENCODER.items()},
        "camera": {f"camera_head.{k}": v for k, v in _CAMERA.items()},
        "critic": {f"critic.fc{i}": f"fc{i}" for i in (1, 2, 3)},
    }
    results = {}
    for tag in sorted({k.split("/")[1].rpartition(".")[0] for k in case.arrays if k.startswith("out/")}):
        fields = dict(zip(("encoder_input", "transform", "critic_input_norm"), tag.split("."), strict=True))
        fields |= dict(lam=m.adl_weight, lam_cam=m.camera_weight)
        method, variables = _game(case, f, names, **fields)
        params = {n: v["params"] for n, v in variables.items()}

        def loss(params, f, method=method, variables=variables):
            permutation = case.input("permutation")
            total, _, metrics, _ = method.game(_with_params(variables, params), f, camid, permutation)
            return total, metrics

        (total, metrics), (grads, grad_f) = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, f)
        values = {"omega": metrics["omega"], "adl": metrics["adl"], "camera": metrics["cam_ce"]}
        values["total"] = total
        results |= {f"out/{tag}.{k}": v for k, v in values.items()}
        results |= _game_grads(tag, grads, grad_f, names)
    return results
