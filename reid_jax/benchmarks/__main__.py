"""`python -m reid_jax.benchmarks NAME [options]`: a table for people, then one line of JSON."""

import importlib
import json
import sys

NAMES = ("step", "data", "eval", "rerank", "cluster", "scaling")


def main():
    if len(sys.argv) < 2 or sys.argv[1] not in NAMES:
        usage = f"usage: python -m reid_jax.benchmarks {{{','.join(NAMES)}}} [options]"
        sys.exit(f"{usage}; --help after a name lists them")
    module = importlib.import_module(f"reid_jax.benchmarks.{sys.argv[1]}")
    figures = module.main(sys.argv[2:])
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
