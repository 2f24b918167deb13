"""`python -m reid_jax.convert`, the same as `python -m reid_jax convert`."""

from reid_jax import cli
from reid_jax.commands.convert import main

if __name__ == "__main__":
    cli.run(main)
