"""Evaluation: features of images, retrieval figures, the camera probe and stored feature sets."""
