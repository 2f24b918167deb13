"""Synthetic pedestrians: data sets that anyone can make in seconds.

`generate` writes pictures in the layout of Market-1501, walking tracklets in that of MARS, or low-resolution
and low-light pictures in DI-REID's; `sheet`, `strip` and `animate` show them (or any other set). Pictures are
pure functions of seed, identity, camera and number, whatever the order and the number of processes.
"""

from reid_jax.data.synthetic.kinds import FOLDER, KINDS, camera_names, layout_of
from reid_jax.data.synthetic.sheet import animate, sheet, strip
from reid_jax.data.synthetic.write import generate, stored_camera_names, stored_kind

__all__ = [
    "FOLDER",
    "KINDS",
    "animate",
    "camera_names",
    "generate",
    "layout_of",
    "sheet",
    "stored_camera_names",
    "stored_kind",
    "strip",
]
