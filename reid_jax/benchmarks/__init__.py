"""Timings of this library beside what people use: `python -m reid_jax.benchmarks step` (or `data`)."""
