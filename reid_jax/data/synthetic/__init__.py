"""Synthetic pedestrians in the Market-1501 layout: a data set that anyone can make in seconds.

`generate` writes it, `sheet` shows it (or any other set). Pictures are pure functions of seed, identity,
camera and number, whatever the order and the number of processes.
"""

from reid_jax.data.synthetic.sheet import sheet
from reid_jax.data.synthetic.write import FOLDER, camera_names, generate, stored_camera_names

__all__ = ["FOLDER", "camera_names", "generate", "sheet", "stored_camera_names"]
