"""Records a case from a PyTorch module (needs torch: the `convert` extra).

    from reid_jax.parity.record import record
    record("net__mine.npz", model.eval(), {"image": images}, reference="my/repo@commit",
           config={"backbone": "resnet50", "num_classes": 751, "neck": "bnneck"})

and `python -m reid_jax.parity net__mine.npz` compares. For a module of another kind write a runner: a
function of a `Case`, called TOPIC__COMPONENT as the file, that returns {recorded name: array}.
"""

import copy
import json
import os

import numpy as np

from reid_jax.errors import DataError
from reid_jax.parity.case import recipe


def record(
    path,
    module,
    inputs,
    *,
    reference,
    config=None,
    seed=0,
    gradients=False,
    by_recipe=False,
    notes="",
    **meta,
):
    """Runs a torch module in float64 and writes inputs, weights and outputs as a case (.npz, float32).

    module: torch.nn.Module; its own mode (train or eval) is kept and recorded; left unchanged.
    inputs: {name: tensor or array}, handed over by position.
    Outputs: a tensor becomes out/y, a dict out/NAME, a sequence out/0, out/1, ...; in train mode the
    moved running statistics become out/after/KEY.
    gradients: records the gradients of sum(y * weight), weight drawn from `seed`, by all parameters and
    float inputs; only for a module with a single output.
    by_recipe: gives the module weights that follow from key, shape and seed (`case.recipe`) and stores
      only the shapes: small files for large nets.
    reference: repository and commit, or whatever tells where the module comes from. meta: further entries.
    """
    import torch

    name = os.path.splitext(os.path.basename(path))[0]
    if "__" not in name:
        raise DataError(f"{path}: a case is called TOPIC__COMPONENT.npz, for example net__mine.npz")
    module = copy.deepcopy(module).double()
    before = {k: _array(v) for k, v in module.state_dict().items()}
    if by_recipe:
        before = {k: recipe(k, v.shape, seed) for k, v in before.items()}
    module.load_state_dict({k: torch.as_tensor(v) for k, v in before.items()})  # as stored: float32
    tensors = {k: _tensor(torch, v) for k, v in inputs.items()}
    for tensor in tensors.values():
        tensor.requires_grad_(gradients and tensor.is_floating_point())
    outputs = _named(module(*tensors.values()))
    arrays = {f"in/{k}": _array(v) for k, v in tensors.items()}
    if by_recipe:
        arrays |= {f"shape/{k}": np.array(v.shape, np.int64) for k, v in before.items()}
    else:
        arrays |= {f"param/{k}": v for k, v in before.items()}
    arrays |= {f"out/{k}": _array(v) for k, v in outputs.items()}
    if module.training:
        moved = {k: v for k, v in module.state_dict().items() if "running_" in k}
        arrays |= {f"out/after/{k}": _array(v) for k, v in moved.items()}
    if gradients:
        arrays |= _gradients(torch, module, tensors, outputs, seed)
    mode = "train" if module.training else "eval"
    about = {"format": 1, "case": name, "reference": reference, "seed": seed, "mode": mode, **meta}
    about |= {"config": config or {}, "weights": "recipe" if by_recipe else "stored", "notes": notes}
    np.savez_compressed(path, meta=np.array(json.dumps(about)), **arrays)


def _gradients(torch, module, tensors, outputs, seed):
    if list(outputs) != ["y"]:
        raise DataError(f"gradients need a module with a single output, this one has {', '.join(outputs)}")
    y = outputs["y"]
    weight = np.random.default_rng(seed).standard_normal(tuple(y.shape)).astype(np.float32)
    (y * torch.as_tensor(weight, dtype=y.dtype)).sum().backward()
    grads = {f"grad/{k}": _array(p.grad) for k, p in module.named_parameters() if p.grad is not None}
    grads |= {f"grad/in/{k}": _array(t.grad) for k, t in tensors.items() if t.grad is not None}
    return grads | {"in/weight": weight}


def _tensor(torch, value):
    """A leaf tensor with the values that will be stored, floats in float64."""
    tensor = torch.as_tensor(value).detach()
    return tensor.float().double() if tensor.is_floating_point() else tensor.clone()


def _array(tensor):
    array = tensor.detach().cpu().numpy()
    return array.astype(np.float32) if array.dtype.kind == "f" else array


def _named(outputs):
    if isinstance(outputs, dict):
        return outputs
    if isinstance(outputs, (tuple, list)):
        return {str(i): y for i, y in enumerate(outputs)}
    return {"y": outputs}
