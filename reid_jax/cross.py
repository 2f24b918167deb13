"""`python -m reid_jax.cross`, the same as `python -m reid_jax cross`."""

from reid_jax import cli
from reid_jax.commands.cross import main

if __name__ == "__main__":
    cli.run(main)
