"""What the generator has learned, measured on people it was not trained on.

The structure of one person is drawn in the appearance of another. A feature sees such a picture: the
teacher's where there is one (it saw no generated picture), else E_a's.

    donor   percent of the pictures whose feature is nearer to the appearance's person than to the structure's
    recon   mean absolute difference, in levels of 255, of pictures decoded from their own codes
    moved   mean absolute difference, in levels, of a picture and the same structure in another appearance

Of drawn people the silhouette is known too:

    outline       correlation of the pictures' edges with those of the structure's silhouette
    outline_real  the same of the real pictures, what a generator that moves nothing would reach
    shape         percent of the pictures whose edges are more like the structure's silhouette than the
                  appearance's
"""

import logging

import jax.numpy as jnp
import numpy as np

from reid_jax.methods._steps import unit
from reid_jax.methods._study import OUTLINE, one_each, outlines, picture, pictures, silhouettes, table

STUDY = {
    "title": "What stage {stage} learned to draw",
    "link": "Swaps",
    "lead": "Test people, whom nothing was trained on: the structure of one in the appearance of another.",
    "figures": {
        "donor": ("Pass for the appearance's person, %", "rather than for the structure's, by a feature"),
        "recon": ("Reconstruction, levels", "mean absolute difference of 255; lower is better"),
        "moved": ("Change by another appearance, levels", "0: the generator ignores appearance"),
        "shape": ("Have the structure's outline, %", "rather than the appearance's, by silhouettes"),
        **OUTLINE,
    },
    "arrays": {
        "grid/swaps": {
            "title": "Structure of the column, appearance of the row",
            "lead": "First row: who lends structure. First column: who lends appearance. All others are "
            "generated. The same people at every step.",
            "alt": "first row: structures, first column: appearances, between them the generated pictures",
            "alt_earlier": "the same people",
        },
    },
}
log = logging.getLogger(__name__)
PEOPLE, GRID = 64, 6  # measured; in the grid


def of(method):
    """Method.study of the stage dgnet, a swap.Dgnet."""

    def prepare(dataset, over):
        records = one_each(dataset.gallery)[:PEOPLE]
        if len(records) < 2:
            log.warning("stage dgnet is not measured: %s shows fewer than two people", dataset.name)
            return None
        measured = over(lambda state, *images: measure(state, images, method))
        drawn = over(lambda state, *images: swap(state, images, method))
        loaded, data = [], method.config.data

        def study(state):
            if not loaded:
                loaded.extend((pictures(records, data), silhouettes(dataset, records, data)))
            people, bodies = loaded
            measures = measured(state, people, np.roll(people, 1, 0))
            figures = {
                "donor": 100 * float(measures["donor"].mean()),
                "recon": float(measures["recon"].mean()),
                "moved": float(measures["moved"].mean()),
            }
            figures |= {} if bodies is None else shapes(np.asarray(measures["swapped"]), people, bodies)
            return figures, {"grid/swaps": grid(state, people[:GRID], drawn)}

        return study

    return prepare


def grid(state, people, drawn):
    """u8[N+1,N+1,H,W,3]: structures above, appearances to the left."""
    count = len(people)
    swapped = drawn(state, np.tile(people, (count, 1, 1, 1)), np.repeat(people, count, 0))
    return table(people, people, np.asarray(swapped).reshape(count, count, *people.shape[1:]))


def decoded(method, nets, structure, appearance):
    """Normalised images f[B,H,W,3] with the structure of some and the appearance of others."""
    code = method.copy.apply(nets["E_a"], appearance, False).code
    return method.modules["G"].apply(nets["G"], method.structure(nets, structure), code)


def swap(state, images, method):
    """u8[B,H,W,3] of (structures, appearances) u8[B,H,W,3]."""
    output = decoded(method, state.nets, *(method.plain(i) for i in images))
    return jnp.rint(picture(method.config, output)).astype(jnp.uint8)


def shapes(swapped, people, bodies):
    """Figures of pictures with the structure of `people` in the next one's clothes; bodies: silhouettes."""
    own, others = outlines(swapped, bodies), outlines(swapped, np.roll(bodies, 1, 0))
    return {
        "outline": float(own.mean()),
        "outline_real": float(outlines(people, bodies).mean()),
        "shape": 100 * float((own > others).mean()),
    }


def measure(state, images, method):
    """{"donor" bool[B], "recon", "moved" f[B], "swapped" f[B,H,W,3]} of images and others u8[B,H,W,3]."""
    nets, (x, other) = state.nets, (method.plain(i) for i in images)
    swapped, rebuilt = decoded(method, nets, x, other), decoded(method, nets, x, x)
    levels = [picture(method.config, v) for v in (rebuilt, swapped, x)]
    seen, structure, appearance = (unit(feature(method, nets, v)) for v in (swapped, x, other))
    return {
        "donor": (seen * appearance).sum(-1) > (seen * structure).sum(-1),
        "recon": jnp.abs(levels[0] - levels[2]).mean((1, 2, 3)),
        "moved": jnp.abs(levels[0] - levels[1]).mean((1, 2, 3)),
        "swapped": levels[1],
    }


def feature(method, nets, x):
    """f[B,D] of normalised images, by the teacher or E_a."""
    if "T" in nets:
        return method.modules["T"].apply(nets["T"], method.enlarged(x), False).test
    return method.copy.apply(nets["E_a"], x, False).neck_prim
