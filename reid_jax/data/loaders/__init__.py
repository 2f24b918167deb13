"""Readers of the original folder layouts: which file is whose picture, seen by which camera.

One module for each family of data sets; `common` says what a reader is. A new data set is a module with
LAYOUTS, named here.
"""

from reid_jax.data.loaders import (
    airport,
    caviar,
    cuhk01,
    cuhk02,
    cuhk03,
    cuhk_sysu,
    duke_video,
    folder,
    grid,
    ilids,
    ilids_vid,
    lpw,
    ls_vid,
    market,
    mars,
    me_reid,
    mlr,
    msmt17,
    occluded,
    pku,
    prid,
    prid_video,
    sensereid,
    sysu_mm01,
    viper,
)

_IMAGES = (
    market,
    msmt17,
    me_reid,
    cuhk01,
    cuhk02,
    cuhk03,
    viper,
    grid,
    ilids,
    prid,
    caviar,
    mlr,
    airport,
    occluded,
    cuhk_sysu,
    sensereid,
    sysu_mm01,
    pku,
)
_VIDEOS = (mars, duke_video, ls_vid, ilids_vid, prid_video, lpw)
MODULES = (*_IMAGES, *_VIDEOS, folder)
LAYOUTS = {name: layout for module in MODULES for name, layout in module.LAYOUTS.items()}
