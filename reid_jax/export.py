"""`python -m reid_jax.export`, the same as `python -m reid_jax export`."""

from reid_jax import cli
from reid_jax.commands.export import main

if __name__ == "__main__":
    cli.run(main)
