"""Writes a trained run's network as files for other programs, compared with the run before they are kept.

    python -m reid_jax export runs/a --output exported
    python -m reid_jax export runs/a --output exported --formats onnx --onnx-input uint8,nchw --pictures DIR
    python -m reid_jax export runs/a --output exported --push hf://OWNER/NAME

safetensors: the archive that reid_jax.load reads. stablehlo: for JAX without reid_jax, on CPUs, GPUs and
TPUs. onnx: for ONNX Runtime and TensorRT; --onnx-input nchw for trackers. card.json and README.md say what
the model is and from which similarity on a hit is to be believed; check.npz has 16 inputs and their features.
Nothing leaves this machine without --push.
"""

from reid_jax import cli, hardware, places


def main(argv=None):
    """Entry point; returns the exit code."""
    args = parse(argv)
    cli.prepare_jax()
    hardware.start()
    from reid_jax.serve import export, hub

    if args.push:
        hub.address(args.push)  # before the work
    about = export.export(
        args.run,
        args.output,
        args.formats,
        args.onnx_input,
        args.opset,
        args.pictures,
        args.checkpoint,
        args.net,
    )
    for name, parity in about["parity"].items():
        print(f"{name}: within {parity['difference']:.1e} of the run, least cosine {parity['cosine']:.8f}")
    print(
        f"{args.output}: {about['dim']} numbers a picture, model {about['hash'][:12]}, step {about['step']}"
    )
    if args.push:
        print(f"pushed: {hub.push(args.output, args.push, args.public)}")
    return 0


def parse(argv):
    """Command line -> namespace."""
    parser = cli.parser("export", __doc__)
    add = parser.add_argument
    add("run", metavar="RUN", type=places.argument("RUN"), help="workdir of a finished or unfinished run")
    output = places.argument("--output", places.written)
    add("--output", required=True, metavar="DIR", type=output, help="folder to make")
    formats = ["safetensors", "stablehlo", "onnx"]
    add("--formats", type=names, default=formats, help="default: safetensors,stablehlo,onnx")
    add("--onnx-input", type=names, default=["uint8"], help="uint8 (default), nchw, or both")
    add("--opset", type=int, default=17, help="of ONNX, 13 to 22 (default: 17)")
    add("--pictures", metavar="DIR", type=places.argument("--pictures"), help="compare on these too")
    add("--checkpoint", default="best", help="best (default), latest or a step")
    add("--net", default="auto", help="auto or a network of the method (default: auto)")
    add("--push", metavar="hf://OWNER/NAME", help="upload the export to the Hugging Face hub, as private")
    add("--public", action="store_true", help="with --push: for everybody to see")
    return parser.parse_args(argv)


def names(text):
    """'a,b' -> ['a', 'b']."""
    return [part.strip() for part in text.split(",") if part.strip()]
