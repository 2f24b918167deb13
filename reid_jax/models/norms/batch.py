"""Batch norm everywhere."""

from reid_jax.models.norms import Norms

NAMES = {"batch": Norms}
