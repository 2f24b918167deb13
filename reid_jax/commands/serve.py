"""A page in the browser that searches a gallery.

    python -m reid_jax serve people.sqlite --model runs/a --root pictures

Other machines reach it only with --host and a --token. It asks nothing of other hosts; put a proxy with TLS
before it where it is reached over a network.
"""

import os
import secrets

from reid_jax import cli, places
from reid_jax.errors import ConfigError
from reid_jax.serve.gallery import Gallery, exists, is_address, shown


def main(argv=None):
    """Entry point; returns the exit code when the server was stopped."""
    args = parse(argv)
    from reid_jax.serve import app as page

    host = args.host.strip("[]")
    open_to_all = host not in page.LOOPBACK
    if args.token == "new":
        args.token = secrets.token_urlsafe(24)
        print(f"token: {args.token}", flush=True)
    if open_to_all and not args.token:
        raise ConfigError(
            f"--host={args.host} lets other machines in, which needs --token (--token=new makes one)"
        )
    with opened(args) as gallery:
        app = page.create(gallery, root=args.root, token=args.token, any_host=open_to_all)
        print(f"http://{args.host}:{args.port}/   (Ctrl+C ends it)", flush=True)
        served(app, host, args.port)
    return 0


def parse(argv):
    """Command line -> namespace."""
    parser = cli.parser("serve", __doc__)
    add = parser.add_argument
    add("gallery", metavar="GALLERY", type=lambda t: t if is_address(t) else places.local(t, "GALLERY"))
    add("--model", help="run or export (default: what built the gallery)")
    add("--root", metavar="FOLDER", type=places.argument("--root"), help="show pictures that lie below it")
    add("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine only)")
    add("--port", type=int, default=8000, help="default: 8000")
    add("--token", default=os.environ.get("REID_JAX_TOKEN", ""), help="what callers must know; new: make one")
    add("--ann", action="store_true", help="use the approximate index where it is right")
    args = parser.parse_args(argv)
    if not 0 <= args.port <= 65535:
        parser.error(f"--port={args.port}: a port is a number up to 65535")
    if args.root and not os.path.isdir(args.root):
        parser.error(f"--root={args.root}: there is no such folder")
    return args


def opened(args):
    """The Gallery with its model; its searches are logged."""
    import reid_jax

    source = args.model
    if source is None:
        with Gallery(args.gallery, mode="r") as gallery:
            source = gallery.file.meta.get("source")
        if not source:
            raise ConfigError(f"{shown(args.gallery)} does not say what built it; give --model")
    if not exists(args.gallery):  # no new one
        Gallery(args.gallery, mode="r")
    return Gallery(args.gallery, reid_jax.load(source), ann="auto" if args.ann else "off", log_searches=True)


def served(app, host, port):
    """Runs the application until it is stopped; ConfigError where the address cannot be taken."""
    try:
        import uvicorn
    except ImportError as error:
        raise ConfigError(f"the page needs uvicorn ({error}): pip install 'reid_jax[web]'") from error
    config = uvicorn.Config(
        app, host=host, port=port, log_config=None, access_log=False, server_header=False, lifespan="off"
    )
    try:
        uvicorn.Server(config).run()
    except SystemExit as error:  # uvicorn has said why
        raise ConfigError(f"{host}:{port} cannot be listened on; choose another --port") from error


if __name__ == "__main__":
    cli.run(main)
