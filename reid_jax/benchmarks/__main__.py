"""Time and memory of the library's parts: a table, then a line of JSON.

python -m reid_jax benchmarks step --help
python -m reid_jax benchmarks eval --size market
"""

import importlib
import json
import sys

from reid_jax import cli

NAMES = ("step", "data", "eval", "rerank", "cluster", "rounds", "scaling", "serve")


def main(argv=None):
    """Runs a benchmark; its own parser reads the options behind its name."""
    argv = sys.argv[1:] if argv is None else argv
    parser = cli.parser("benchmarks", __doc__)
    parser.add_argument("name", choices=NAMES, help="--help after a name lists its options")
    name = parser.parse_args(argv[:1]).name
    module = importlib.import_module(f"reid_jax.benchmarks.{name}")
    print(json.dumps(module.main(argv[1:])))
    return 0


if __name__ == "__main__":
    cli.run(main)
