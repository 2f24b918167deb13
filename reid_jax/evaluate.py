"""`python -m reid_jax.evaluate`, the same as `python -m reid_jax score`."""

from reid_jax import cli
from reid_jax.commands.score import main

if __name__ == "__main__":
    cli.run(main)
