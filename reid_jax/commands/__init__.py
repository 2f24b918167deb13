"""The commands on runs, features and weight files: each a module with `main(argv) -> exit code`.

`python -m reid_jax` lists them. What several need stands elsewhere: parsing, messages and exit codes in
reid_jax.cli, tables in reid_jax.tables, opening a run in reid_jax.train.restore.
"""
