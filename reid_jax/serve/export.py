"""A run's network as files for others: the archive, StableHLO, ONNX, and their card; all or nothing.

Every file is loaded in a fresh process and compared with the run's own features before it is kept. Exports
compute in float32, whatever the run's config.model.dtype.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from reid_jax.errors import ConfigError, WeightsError
from reid_jax.models import layers
from reid_jax.serve import card, check, nets, onnx, pictures
from reid_jax.serve.embedder import sha256

FORMATS = ("safetensors", "stablehlo", "onnx")
ONNX_INPUTS = {"uint8": "model.onnx", "nchw": "model_nchw.onnx"}
PLATFORMS = ("cpu", "cuda", "tpu")
_TIMEOUT = 900  # seconds for a fresh process


def export(
    workdir,
    output,
    formats=FORMATS,
    onnx_inputs=("uint8",),
    opset=17,
    folder=None,
    checkpoint="best",
    net="auto",
    compare=None,
):
    """Writes an export of a run to a new folder `output`; the card as a dict.

    onnx_inputs: of ONNX_INPUTS. folder: of pictures to compare on beside noise. compare: (folder, file) ->
    what check.compare gives; default: that in a fresh process. ConfigError for what cannot be exported,
    WeightsError for a file whose features differ from the run's; then nothing is left at `output`.
    """
    _check(output, formats, onnx_inputs, opset)
    model = nets.of_run(workdir, checkpoint, net, "cpu", in_float32)
    part = f"{output.rstrip('/')}.part"
    shutil.rmtree(part, ignore_errors=True)
    try:
        os.makedirs(part)
        about = _write(part, model, formats, onnx_inputs, opset, inputs(model, folder), compare or fresh)
        if os.path.isdir(output):
            os.rmdir(output)  # an empty one
        os.replace(part, output)
    except OSError as e:
        raise WeightsError(
            f"{output} cannot be written ({e.strerror or e}); mend that and export again"
        ) from e
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return about


def _check(output, formats, onnx_inputs, opset):
    for flag, given, known in (("formats", formats, FORMATS), ("onnx-input", onnx_inputs, ONNX_INPUTS)):
        if unknown := [name for name in given if name not in known] or (["nothing"] if not given else []):
            raise ConfigError(f"--{flag} has {unknown[0]}; it knows {', '.join(known)}")
    onnx.check_opset(opset)
    if os.path.exists(output) and (not os.path.isdir(output) or os.listdir(output)):
        raise ConfigError(f"--output={output} is there already; choose another folder, or remove it")
    needed = {"onnx": ("onnx", "onnxruntime"), "stablehlo": ("flatbuffers",)}
    for name in formats:
        for package in needed.get(name, ()):
            if not _installed(package):
                raise ConfigError(
                    f"--formats={name} needs the package {package}: pip install 'reid_jax[export]', or leave "
                    f"{name} out"
                )


def _installed(package):
    try:
        __import__(package)
    except ImportError:
        return False
    return True


def in_float32(tree):
    """Sets the compute type of a config and its stages, in place."""
    tree["model"]["dtype"] = "float32"
    for stage in tree.get("stages", {}).values():
        stage.get("model", {}).pop("dtype", None)


def inputs(model, folder=None):
    """u8[16,H,W,3] to compare on: noise, half of it pictures of `folder` where there is one."""
    count = max(check.BATCHES)
    noise = np.random.default_rng(0).integers(0, 256, (count, *model.size, 3), np.uint8)
    if folder:
        from reid_jax.data import datasets

        reader = pictures.Reader(*model.size)
        for i, record in enumerate(datasets.pictures(folder)[: count // 2]):
            noise[2 * i] = reader(record.path)
    return noise


def _write(folder, model, formats, onnx_inputs, opset, images, compare):
    """Writes all files; the card."""
    features = np.asarray(model(images), np.float32)
    if not np.isfinite(features).all():
        raise WeightsError("the run's features are not finite; export another checkpoint")
    np.savez(os.path.join(folder, "check.npz"), image=images, feature=features)
    about, names = card.of_net(model), []
    if "safetensors" in formats:
        nets.write_archive(folder, model)
        names.append(nets.ARCHIVE)
    if "stablehlo" in formats:
        names.append(write_stablehlo(folder, model))
    if "onnx" in formats:
        names += [write_onnx(folder, model, kind, opset) for kind in onnx_inputs]
    card.write(folder, about)  # which the archive is read with
    about["parity"] = {name: checked(folder, name, compare) for name in names}
    every = sorted(p.name for p in Path(folder).iterdir() if p.name not in ("card.json", "README.md"))
    about["files"] = {name: sha256(os.path.join(folder, name)) for name in every}
    about["read_until"] = card.READ_UNTIL.format(**about["made_with"])
    card.write(folder, about)
    return about


def checked(folder, name, compare):
    """What compare says of a file; WeightsError and no file when it is too far from the run."""
    compared = compare(folder, name)
    if not (compared["difference"] <= check.DIFFERENCE and compared["cosine"] >= check.COSINE):
        os.remove(os.path.join(folder, name))
        raise WeightsError(
            f"{name} gives other features than the run: they differ by {compared['difference']:.2g} (at most "
            f"{check.DIFFERENCE:g} is allowed), the least cosine is {compared['cosine']:.8f}; nothing was "
            "kept"
        )
    return compared


def fresh(folder, name):
    """check.compare in a fresh process."""
    code = [sys.executable, "-m", "reid_jax.serve.check", folder, name]
    root = str(Path(__file__).parent.parent.parent)
    paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": paths, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(code, capture_output=True, text=True, timeout=_TIMEOUT, env=environment)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise WeightsError(f"{name} cannot be loaded ({reason[:300]}); nothing was kept")
    return json.loads(done.stdout.strip().splitlines()[-1])


def write_stablehlo(folder, model):
    """model.stablehlo: u8[b,H,W,3] -> f32[b,D] for cpu, cuda and tpu, weights inside."""
    from jax import export as exporting

    (batch,) = exporting.symbolic_shape("b")
    image = jax.ShapeDtypeStruct((batch, *model.size, 3), jnp.uint8)
    arrays = {path: jnp.asarray(array) for path, array in model.arrays.items()}
    with layers.form("plain"):  # a CPU's forms are slow elsewhere
        made = exporting.export(jax.jit(lambda x: model.features(arrays, x)), platforms=PLATFORMS)(image)
    with open(os.path.join(folder, "model.stablehlo"), "wb") as file:
        file.write(made.serialize())
    return "model.stablehlo"


def write_onnx(folder, model, kind="uint8", opset=17):
    """model.onnx of uint8 pictures [batch,H,W,3], or model_nchw.onnx of normalised maps [batch,3,H,W]."""
    import onnx as package

    name, (height, width) = ONNX_INPUTS[kind], model.size
    metadata = {"hash": model.hash, "method": model.origin.config["method"]}
    arrays = {path: jnp.asarray(array) for path, array in model.arrays.items()}  # NumPy's refuse a tracer
    with layers.form("plain"):
        if kind == "uint8":
            options = dict(name="image", output="feature", opset=opset, metadata=metadata)
            made = onnx.export(lambda x: model.features(arrays, x), (height, width, 3), jnp.uint8, **options)
        else:
            options = dict(name="images", output="output0", opset=opset, metadata=metadata)
            made = onnx.export(
                lambda x: model.of_normalised(arrays, x),
                (height, width, 3),
                jnp.float32,
                order=(0, 3, 1, 2),
                **options,
            )
            about = {"model_name": "", "preprocess": "resize", "model_kwargs": {"img_size": [height, width]}}
            with open(os.path.join(folder, f"{name}.metadata.json"), "w", encoding="utf-8") as file:
                json.dump(about, file, indent=1)
    package.save(made, os.path.join(folder, name))
    return name
