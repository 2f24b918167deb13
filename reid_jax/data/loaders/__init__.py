"""Readers of the original folder layouts: which file is whose picture, seen by which camera.

One module for each family of data sets; `common` says what a reader is. A new data set is a module with
LAYOUTS, named here.
"""

from reid_jax.data.loaders import market, me_reid, msmt17

LAYOUTS = {name: layout for module in (market, msmt17, me_reid) for name, layout in module.LAYOUTS.items()}
