"""Weights from and to PyTorch: what fits where, and a .safetensors file of it.

    python -m reid_jax convert resnet50.pth                                   # what is in it, what fits
    python -m reid_jax convert resnet50.pth resnet50.safetensors --backbone=resnet50
    python -m reid_jax convert runs/a network.safetensors --to=mmt            # a trained network to PyTorch

Files in: PyTorch's .pth and .pt (read as data, nothing in them runs), .safetensors, .npz, or the --workdir of
a finished run. The file out begins training with --config.init.weights=FILE, or, with --to, is a PyTorch
state dictionary: model.load_state_dict(safetensors.torch.load_file(FILE)). Keys of --to=reid_jax are
params.base.layer1_0.conv1.kernel and so on, convolutions [kh,kw,in,out]. torchvision, timm and ResNeSt
share their keys: --from=torchvision leaves their ImageNet classifier `fc` out, --from=imagenet and
--to=imagenet take it for the net's classifier (with --neck=none).
"""

import json
import os
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np

from reid_jax import __version__, cli, places
from reid_jax.config import defaults, namespace
from reid_jax.errors import WeightsError
from reid_jax.models import backbones, heads, weights
from reid_jax.train import checkpoint, warm

SYNONYMS = {"timm": "torchvision", "resnest": "torchvision", "torchreid": "torchvision"}
NECKS = ("auto", "ap3d", "bnneck", "none")
_LISTS = ("used", "unused", "missing", "ignored", "cast", "inflated")
_SHOWN = 8  # keys of a list in the terminal


def arguments(argv):
    """Parsed command line."""
    parser = cli.parser("convert", __doc__)
    sources = ("auto", *weights.layouts(), *SYNONYMS)
    add = parser.add_argument
    add(
        "source", metavar="IN", type=places.argument("IN"), help="weight file, or --workdir of a finished run"
    )
    add(
        "target",
        metavar="OUT",
        nargs="?",
        type=places.argument("OUT", places.written),
        help="file to write, .safetensors; without it only look",
    )
    add(
        "--backbone",
        choices=heads.BACKBONES,
        help="default: IN's own if it or its keys say so, else resnet50",
    )
    add("--neck", choices=NECKS, default="auto", help="head of the model (default: as in IN)")
    add("--classes", type=cli.whole(0), default=0, help="classes of the model (default: as in IN)")
    add(
        "--from",
        dest="layout",
        choices=sources,
        default="auto",
        help="key layout of IN (default: by its keys)",
    )
    add("--to", choices=weights.targets(), default="reid_jax", help="key layout of OUT (default: reid_jax)")
    add("--key", default="", help="part of IN to read, e.g. model or teacher")
    add("--net", default="", help="network of a run to read (default: its method's first)")
    add("--inflate", action="store_true", help="put a 2-D net's weights into an AP3D net")
    add("--all", action="store_true", help="print lists of keys in full")
    add("--json", action="store_true", help="print the whole report as JSON")
    add(
        "--report",
        metavar="FILE",
        default="",
        type=places.argument("--report", places.written),
        help="write the whole report as JSON",
    )
    return parser.parse_args(argv)


def read_run(workdir, net):
    """(Weights of one network of a finished run, its config.model fields)."""
    stage, arrays = warm.best_of(workdir)
    names = warm.networks(arrays)
    name = net or next(iter(warm.default_nets(workdir, stage, arrays)), "")
    if not name:
        raise WeightsError(f"{workdir} has several networks; choose with --net: {', '.join(names)}")
    if name not in names:
        raise WeightsError(f"{workdir} has no network {name!r}; --net may be {', '.join(names)}")
    front = f"nets/{name}/"
    entries = {k[len(front) :].replace("/", "."): v for k, v in arrays.items() if k.startswith(front)}
    notes = (f"network {name!r}; the run also has {', '.join(n for n in names if n != name) or 'no other'}",)
    model = checkpoint.read_config(workdir)["model"]
    return weights.Weights(entries, "run", len(arrays) - len(entries), notes), model


def read(args):
    """(Weights of IN, fields of config.model that IN knows)."""
    if os.path.isdir(args.source):
        return read_run(args.source, args.net)
    if args.net:
        raise WeightsError(f"--net={args.net} needs the --workdir of a run; {args.source} is a file (--key?)")
    file = weights.read(args.source, args.key)
    ours = "reid_jax" in file.metadata
    return file, json.loads(file.metadata.get("model", "{}")) if ours else {}


def shapes(model, file, args):
    """Variables of the model as ShapeDtypeStructs, and its config.model fields.

    file: weights.Recognised. Neck, pooling, norm, classes, MMT's embedding and, in layouts of one family of
    nets, backbone and head follow from it unless the command line says them.
    """

    def entry(*path):
        return next((file.entries[k] for k in weights.keys(path, file.layout) if k in file.entries), None)

    def rows(kernel):
        return kernel.shape[-1 if file.layout == "reid_jax" else 0] if np.ndim(kernel) > 1 else 0

    told = weights.implied(file)
    neck = args.neck if args.neck != "auto" else told.get("neck", "auto")
    if neck == "auto":
        bias = entry("params", "classifier", "bias") is not None
        normed = entry("params", "neck", "scale") is not None
        neck = "none" if not normed else "ap3d" if bias else "bnneck"
    implied = {"pool": "gem"} if weights.exponent_of(file) is not None else {}
    implied |= {"norm": "aibn"} if any(k.endswith(".adaptive_weight") for k in file.entries) else {}
    implied |= told
    backbone = args.backbone or (implied | model).get("backbone", "resnet50")
    model = defaults()["model"] | implied | model | {"neck": neck, "backbone": backbone}
    if not backbones.pools_stem(backbone):
        model["stem_pool"] = "padded"
    size, cameras = heads.image_size(namespace(model)), 0
    if hasattr(backbones.find(backbone), "image_size"):  # positions that are trained, perhaps cameras
        positions, table = (entry("params", "base", name) for name in ("pos_embed", "sie_embed"))
        cameras = 0 if table is None else len(table)
        if positions is not None:
            size = backbones.find(backbone).image_size(namespace(model), positions)
    features = rows(entry("params", "feat", "kernel"))
    options = dict(num_features=features, num_cams=cameras)
    net = heads.build(namespace(model), 1, **options)
    counts = (rows(entry("params", name, "kernel")) for name in ("classifier", *net.top.classifiers))
    net = heads.build(namespace(model), args.classes or max(counts) or 1, **options)
    frames = (2,) if backbone.startswith("ap3d") else ()
    image = jax.ShapeDtypeStruct((1, *frames, *size, 3), jnp.float32)
    return jax.eval_shape(heads.encoder(net).init, jax.random.key(0), image), model


def inspect(source):
    """What a file holds: counts, types, sizes."""
    types = Counter(str(v.dtype) for v in source.entries.values())
    return {
        "kind": source.kind,
        "tensors": len(source.entries),
        "numbers": sum(int(np.prod(v.shape, dtype=np.int64)) for v in source.entries.values()),
        "dtypes": dict(types),
        "skipped": source.skipped,
        "metadata": source.metadata,
        "notes": list(source.notes),
    }


def convert(args):
    """Reads, maps and (with OUT) writes; the report as a dict."""
    check_target(args)
    source, model = read(args)
    report = {"file": args.source} | inspect(source)
    layout = SYNONYMS.get(args.layout, args.layout).removeprefix("auto")
    try:
        file = weights.recognise(source.entries, layout)
        like, model = shapes(model, file, args)
        report |= {"backbone": model["backbone"], "head": model["head"], "neck": model["neck"]}
        report["pool"] = model["pool"]
        leaves, mapped = weights.fill(source.entries, like, file.layout, args.inflate)
    except WeightsError as error:
        raise WeightsError(f"{args.source}: {error}\n{summary(report)}") from error
    report |= mapped | {"notes": report["notes"] + mapped["notes"]}
    if args.target:
        report["written"] = write(args, leaves, model, report)
    return report


def check_target(args):
    """Raises WeightsError when OUT or --report cannot be written."""
    for target in filter(None, (args.target, args.report)):
        if os.path.realpath(target) == os.path.realpath(args.source):
            raise WeightsError(f"{target} would overwrite the input; choose another name")
        if not os.path.isdir(os.path.dirname(os.path.abspath(target))):
            raise WeightsError(f"{target}: the folder {os.path.dirname(target)} does not exist")
    if args.target and not args.target.endswith(".safetensors"):
        raise WeightsError(f"{args.target}: the file to write must end in .safetensors")


def write(args, leaves, model, report):
    """Writes OUT and says what is in it."""
    layout = args.to
    entries = weights.to_torch(weights.nested(leaves), layout, counters=True)
    metadata = {
        "format": "reid_jax" if layout == "reid_jax" else "pt",
        "layout": layout,
        "model": json.dumps(model),  # config.model
        "source_layout": report["layout"],
        "reid_jax": __version__,
    }
    weights.save(args.target, entries, metadata)
    if layout == "fastreid":
        foreign = [
            k for k in entries if k.startswith("feat.") or k in ("heads.bias", "heads.classifier.bias")
        ]
        if foreign:
            report["notes"].append(
                f"fast-reid's own head has no {', '.join(foreign)}; load with strict=False"
            )
    for field, value in weights.STEMS.get(layout, {}).items():
        if model[field] != value and backbones.pools_stem(model["backbone"]):
            report["notes"].append(
                f"nets of layout {layout} have {field} {value!r}, this one {model[field]!r}: there its "
                "features will be a little different"
            )
    if report["missing"] and layout != "reid_jax":
        report["notes"].append("OUT lacks what is missing; loading it into a whole net needs strict=False")
    return {"file": args.target, "layout": layout, "tensors": len(entries)}


def summary(report, whole=False):
    """The report as text."""
    types = ", ".join(f"{n} {t}" for t, n in report["dtypes"].items())
    lines = [
        f"file      {report['file']} ({report['kind']})",
        f"holds     {report['tensors']} tensors ({types}), {report['numbers']:,} numbers; "
        f"{report['skipped']} other values",
    ]
    if "layout" in report:
        also = weights.ALSO.get(report["layout"])
        lines.append(f"layout    {report['layout']}{f' (also of {also})' if also else ''}")
        lines.append(f"model     {report['backbone']}, {_head(report)}, pool {report['pool']}")
        for name in _LISTS:
            keys = report[name]
            shown = weights.listing(keys, len(keys) if whole else _SHOWN)
            lines.append(f"{name:9} {len(keys)}" + (f": {shown}" if keys else ""))
    lines += [f"note      {note}" for note in report["notes"]]
    if "written" in report:
        out = report["written"]
        lines.append(f"written   {out['file']}: {out['tensors']} tensors, layout {out['layout']}")
    return "\n".join(lines)


def _head(report):
    """The head in words: one with a choice of necks by its neck."""
    return f"neck {report['neck']}" if report["head"] == "global" else f"head {report['head']}"


def write_report(path, report):
    """Writes the report as JSON; WeightsError when that fails."""
    try:
        checkpoint.write_json(path, report)
    except OSError as error:
        raise WeightsError(f"--report={path} cannot be written ({error.strerror or error})") from error


def main(argv=None):
    """Entry point; returns the exit code, raises ReidError."""
    args = arguments(argv)
    report = convert(args)
    if args.report:
        write_report(args.report, report)
    print(json.dumps(report, indent=1) if args.json else summary(report, args.all))
    return 0
