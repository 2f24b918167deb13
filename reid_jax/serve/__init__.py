"""A trained model in use: features in Python, export, gallery, page and trackers.

Above reid_jax.train and reid_jax.eval, below the commands. What an ONNX export needs (`embedder`, `pictures`,
`trackers`) imports neither jax nor the training packages.
"""
