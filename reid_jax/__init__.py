"""Person re-identification in JAX: identity separated from camera and degradation."""

__version__ = "0.1.0"
