"""`python -m reid_jax.zoo`, the same as `python -m reid_jax zoo`."""

from reid_jax import cli
from reid_jax.commands.zoo import main

if __name__ == "__main__":
    cli.run(main)
