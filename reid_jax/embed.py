"""`python -m reid_jax.embed`, the same as `python -m reid_jax embed`."""

from reid_jax import cli
from reid_jax.commands.embed import main

if __name__ == "__main__":
    cli.run(main)
