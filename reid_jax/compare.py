"""`python -m reid_jax.compare`, the same as `python -m reid_jax compare`."""

from reid_jax import cli
from reid_jax.commands.compare import main

if __name__ == "__main__":
    cli.run(main)
