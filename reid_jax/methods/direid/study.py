"""What DDGAN has learned, measured on people it was not trained on.

The gallery's images count as clean; each is degraded once more by the synthetic degradation, with a strength
of its own. Donors of degradations are other people seen by the same camera, so that what is measured is not
the camera.

    strength      how much of a donor's degradation is transferred: the measure (sharpness, for "ill"
                  brightness) of the picture with a clean donor's code minus that with a degraded donor's,
                  divided by the difference of the true pictures. 0 none, 1 as the true degradation
    psnr          dB, of the picture with the degraded donor's code against the truly degraded one, and
    psnr_nothing  of the clean picture against it
    sharpness     of reconstructions, divided by that of the originals (mean absolute Laplacian)
    score_gap     mean score of D_deg on clean pictures minus that on degraded ones
    score_auc     percent: a clean and a degraded picture of any two people are told apart by their scores
    content       distance of the content of x and F(x), divided by that of the contents of two people
    code_std      deviation of the degradation codes over people
    map_change    |m(x) - m(F(x))| / |m(x)| of the content maps m, mean over people, and
    map_change_teacher  of the last maps of E_id, where stage gan has it (w_pre)

Maps to look at are means of absolute values over the channels, of clean pictures and their degraded versions.
STUDY is what a page says of all this (train/titles.py: its form, and the names of arrays).
"""

import logging

import jax.numpy as jnp
import numpy as np

from reid_jax.data import decode, degrade, images
from reid_jax.methods._study import one_each, picture
from reid_jax.methods.direid import judges
from reid_jax.models import cells

STUDY = {
    "title": "What stage {stage} learned of degradation",
    "link": "Degradation",
    "lead": "Measured on test people. Each clean picture is degraded once more; the degradation of a picture "
    "is taken from another person of the same camera. Nothing of this is a retrieval figure.",
    "figures": {
        "strength": ("Transfer strength", "of the donor's degradation: 0 none, 1 as the true degradation"),
        "psnr": ("PSNR, dB", "of pictures degraded by transfer against truly degraded ones"),
        "psnr_nothing": ("PSNR of doing nothing, dB", "of the clean pictures against the same"),
        "sharpness": ("Sharpness", "of reconstructions, originals 1"),
        "score_gap": ("Score gap", "of D_deg between clean and degraded pictures; its margin is 1"),
        "score_auc": ("Score AUC, %", "a clean and a degraded picture of any people told apart by D_deg"),
        "content": ("Content distance", "of a picture and its degraded version, that of two people 1"),
        "code_std": ("Code deviation", "of the degradation codes over people"),
        "map_change": ("Change of content maps", "under the degradation, by their norm: 0 none"),
        "map_change_teacher": ("Change of the teacher's maps", "the same of its last maps"),
    },
    "levels": {"psnr": "psnr_nothing"},
    "arrays": {
        "grid/cross": {
            "title": "Content of the row, degradation of the column",
            "lead": "First column: contents, clean people, then degraded ones. First row: donors of "
            "degradations, for up to four cameras a clean person and a degraded one, then real poor "
            "pictures. All others are generated. The same people at every step.",
            "alt": "first column: contents, first row: donors of degradations, between them the generated "
            "pictures",
            "alt_earlier": "the same contents and donors",
        },
        "map": {
            "title": "Feature maps under degradation",
            "lead": "People that were not trained on: the clean picture and its degraded version. Heat maps: "
            "mean absolute value over the channels, of E_con's content and, where the stage has the teacher, "
            "of its last map to compare with; red is high, one scale of colours for the two pictures of a "
            "row. What does not mind the degradation looks the same on both sides.",
            "columns": ("clean", "degraded"),
            "rows": {"content": "content (E_con)", "teacher": "teacher (E_id)"},
        },
        "band/score": {"title": "Degradation score of D_deg at known levels", "xlabel": "level"},
        "hist/score": {"title": "Scores of clean and degraded pictures", "xlabel": "degradation score"},
        "scatter/code": {"title": "Degradation codes by {}", "labels": {"score": "degradation score"}},
    },
}
log = logging.getLogger(__name__)
PEOPLE, POINTS, GRID = 96, 1000, 4  # measured; codes in a plot; rows of a grid
LEVELS = 7


def of(method):
    """Method.study of the stage gan, a gan.Ddgan."""
    config = method.config

    def prepare(dataset, over):
        pictures = None
        if not measurable(dataset):
            log.warning(
                "stage gan is not measured: %s has no two people in the gallery who are seen by one camera",
                dataset.name,
            )
            return None
        measured = over(lambda state, *images: measure(state, images, method))
        coded = over(lambda state, image: describe(state, image, method))

        def study(state):
            nonlocal pictures
            pictures = pictures or Pictures(config, dataset)
            measures = measured(state, pictures.x, pictures.poor, pictures.donor, pictures.poor_donor)
            figures = summary(measures)
            leveled = coded(state, pictures.levels.reshape(-1, *pictures.x.shape[1:]))["score"]
            codes = coded(state, pictures.some)
            arrays = {
                "band/score/x": pictures.level,
                "band/score/y": -leveled.reshape(len(pictures.levels), -1),
                "hist/score/clean": -measures["score"][:, 0],
                "hist/score/degraded": -measures["score"][:, 1],
                "scatter/code/points": codes["code"],
                "scatter/code/brightness": codes["brightness"],
                "scatter/code/sharpness": codes["sharpness"],
                "scatter/code/score": -codes["score"],
            }
            arrays |= {n: a[pictures.shown] for n, a in measures.items() if n.startswith("map/")}
            arrays["map/image"] = np.stack([pictures.x, pictures.poor], 1)[pictures.shown]
            arrays |= places(method, state, pictures.x[:1], arrays)
            return figures, arrays | pictures.grids(state, coded_swap)

        coded_swap = over(lambda state, content, donor: swap(state, content, donor, method))
        return study

    return prepare


def maps_of(method, nets, image):
    """{name: maps [B,h,w,C]} that are shown, of images u8[B,H,W,3]."""
    x = method.plain(image)
    maps = {"content": content(method, nets, x)}
    if "E_id" in nets:
        maps["teacher"] = method.call(nets, "E_id", x, train=False, method="map")[0]
    return maps


def places(method, state, image, arrays):
    """{"rows/NAME" f[h], "columns/NAME" f[w]}: where the cells of arrays map/NAME are centred, in pixels."""
    positions = {}
    for name in ("content", "teacher"):
        if f"map/{name}" in arrays:
            read = cells.windows(lambda nets, x, n=name: maps_of(method, nets, x)[n], state.nets, image)
            centres = cells.centres(read, image.shape[1:3], arrays[f"map/{name}"].shape[2:])
            positions[f"rows/{name}"], positions[f"columns/{name}"] = (np.float32(c) for c in centres)
    return positions


def measurable(dataset):
    """Whether there is a person in the gallery whose degradation another of the same camera can take."""
    return any(j is not None for j in next_of_camera(one_each(dataset.gallery)))


class Pictures:
    """The test images of a study, u8[N,H,W,3] each, the same at every evaluation.

    x: clean; poor: x degraded; donor, poor_donor: of the next person of the camera. levels [L,N',...]: some
    people at L known `level`s. some: any test images. shown: rows of x whose maps are kept, spread over the
    list.
    """

    def __init__(self, config, dataset):
        size = config.data.height, config.data.width
        settings, pixels = degrade.Settings.of(config.data.degrade), decode.Pixels.of(config.data)
        clean = one_each(dataset.gallery)
        donors = next_of_camera(clean)
        people = [i for i, j in enumerate(donors) if j is not None][:PEOPLE]

        def original(record):
            return images.original(record.path, pixels)

        pictures = {i: original(clean[i]) for i in {*people, *(donors[i] for i in people)}}
        poor = {i: settings.draw(np.random.default_rng([config.seed, i]), p) for i, p in pictures.items()}

        def stack(source, rows):
            return np.stack([degrade.enlarge(source[i], *size) for i in rows])

        partner = [donors[i] for i in people]
        self.x, self.poor = stack(pictures, people), stack(poor, people)
        self.donor, self.poor_donor = stack(pictures, partner), stack(poor, partner)
        self.level, self.levels = known_levels(settings, [pictures[i] for i in people[:24]], size)
        some = [*dataset.query, *dataset.gallery]
        some = [some[i] for i in np.unique(np.linspace(0, len(some) - 1, min(POINTS, len(some))).astype(int))]
        self.some = np.stack([degrade.enlarge(original(r), *size) for r in some])
        self.cameras = np.array([clean[i].camid for i in people])
        self.shown = np.unique(np.linspace(0, len(people) - 1, GRID).astype(int))
        poor_query = [original(r) for r in one_each(dataset.query)[:GRID]]
        self.real_poor = [degrade.enlarge(picture, *size) for picture in poor_query]

    def grids(self, state, swapped):
        """{grid/TITLE: u8[R,C,H,W,3]}.

        cross: first row the donors, first column the contents, between them content of the row with the
        degradation of the column. Donors: a clean and a degraded person of each camera (at most four), then
        real poor images; contents: clean people, then degraded ones.
        """
        first = [int(np.flatnonzero(self.cameras == c)[-1]) for c in np.unique(self.cameras)[:4]]
        donors = [p for i in first for p in (self.x[i], self.poor[i])] + self.real_poor[:2]
        contents = [*self.x[:GRID], *self.poor[:2]]
        pairs = [(a, b) for a in contents for b in donors]
        output = swapped(state, *(np.stack(side) for side in zip(*pairs, strict=True)))
        output = output.reshape(len(contents), len(donors), *output.shape[1:])
        top = np.concatenate([np.full_like(self.x[:1], 255), np.stack(donors)])
        rows = [top, *(np.concatenate([c[None], row]) for c, row in zip(contents, output, strict=True))]
        return {"grid/cross": np.stack(rows)}


def next_of_camera(records):
    """For each record the index of the next one of its camera, cyclic; None for the only one."""
    of_camera = {}
    for i, r in enumerate(records):
        of_camera.setdefault(r.camid, []).append(i)
    following = {}
    for rows in of_camera.values():
        if len(rows) > 1:
            following |= dict(zip(rows, [*rows[1:], rows[0]], strict=True))
    return [following.get(i) for i in range(len(records))]


def known_levels(settings, pictures, size):
    """(levels f32[L] from none to the strongest, pictures u8[L,N,H,W,3] degraded to them)."""
    name = {"res": "ratio", "ill": "gamma", "jpeg": "quality", "blur": "radius", "noise": "deviation"}
    name = name[settings.kind]
    low, high = getattr(settings.ranges, name)
    none = {"ratio": 1.0, "gamma": 1.0, "quality": 95.0}.get(name, 0.0)
    worst = low if name == "quality" else high
    levels = np.linspace(none, worst, LEVELS, dtype=np.float32)

    def at(level):
        ranges = settings.ranges._replace(gain=(1.0, 1.0), **{name: (float(level), float(level))})
        rng = np.random.default_rng(0)
        drawn = (p if level == none else degrade.draw(rng, p, settings.kind, ranges) for p in pictures)
        return np.stack([degrade.enlarge(p, *size) for p in drawn])

    return levels, np.stack([at(level) for level in levels])


def measure(state, images, method):
    """Measurements of every person: dict of [B] or [B,k]; images: x, poor, donor, poor_donor u8[B,H,W,3]."""
    nets, config = state.nets, method.config
    x, poor, donor, poor_donor = (method.plain(i) for i in images)
    c = [content(method, nets, v) for v in (x, poor, donor)]
    d = [method.apply(nets, "E_deg", v) for v in (x, donor, poor_donor)]
    x_ii, with_clean, with_poor = (picture(config, method.apply(nets, "G", c[0], code)) for code in d)
    true, true_poor = (i.astype(jnp.float32) for i in images[:2])
    level = brightness if config.data.degrade.kind == "ill" else sharpness

    def apart(a, b):
        return jnp.abs(a - b).mean((1, 2, 3))

    maps = {"content": c[:2]}
    if "E_id" in nets:
        maps["teacher"] = [method.call(nets, "E_id", v, train=False, method="map")[0] for v in (x, poor)]
    measures = {f"map/{n}": jnp.stack([heat(m) for m in pair], 1) for n, pair in maps.items()}
    measures |= {f"change/{n}": relative(*pair) for n, pair in maps.items()}
    return measures | {
        "transferred": level(with_clean) - level(with_poor),
        "true": level(true) - level(true_poor),
        "mse": jnp.square(with_poor - true_poor).mean((1, 2, 3)),
        "mse_nothing": jnp.square(true - true_poor).mean((1, 2, 3)),
        "sharp": jnp.stack([sharpness(x_ii), sharpness(true)], -1),
        "score": jnp.stack([score(method, nets, v) for v in (x, poor)], -1),
        "content": jnp.stack([apart(c[0], c[1]), apart(c[0], c[2])], -1),
        "code": d[0],
    }


def summary(measures):
    """The figures of the module's docstring, of the measurements of all people."""
    from sklearn.metrics import roc_auc_score  # a second that no command needs to start

    def psnr(mse):
        return float(np.mean(10 * np.log10(255**2 / np.maximum(mse, 1e-6))))

    sharp, content_, score_ = (measures[n].mean(0) for n in ("sharp", "content", "score"))
    labels = np.repeat([1, 0], len(measures["score"]))
    names = {"change/content": "map_change", "change/teacher": "map_change_teacher"}
    changes = {title: float(measures[n].mean()) for n, title in names.items() if n in measures}
    return changes | {
        "strength": float(measures["transferred"].mean() / measures["true"].mean()),
        "psnr": psnr(measures["mse"]),
        "psnr_nothing": psnr(measures["mse_nothing"]),
        "sharpness": float(sharp[0] / sharp[1]),
        "score_gap": float(score_[0] - score_[1]),
        "score_auc": 100 * float(roc_auc_score(labels, measures["score"].T.ravel())),
        "content": float(content_[0] / content_[1]),
        "code_std": float(measures["code"].std(0).mean()),
    }


def heat(maps):
    """Means of absolute values over the channels: [B,h,w,C] -> f32[B,h,w]."""
    return jnp.abs(maps.astype(jnp.float32)).mean(-1)


def relative(a, b):
    """Distance of maps [B,h,w,C] from a to b, by the norm of a: f32[B]."""
    a, b = (v.astype(jnp.float32).reshape(len(v), -1) for v in (a, b))
    return jnp.linalg.norm(a - b, axis=1) / jnp.maximum(jnp.linalg.norm(a, axis=1), 1e-12)


def content(method, nets, x):
    """Content maps [B,h,w,C] of normalised images, in test mode."""
    return method.call(nets, "E_con", x, train=False, method="content")[0]


def score(method, nets, x):
    """Quality by D_deg [B]: mean over scales and maps, higher is better."""
    return -judges.degradation_score(method.modules["D_deg"], nets["D_deg"], x)


def describe(state, image, method):
    """{"code" [B,D], "score" [B], "brightness" [B], "sharpness" [B]} of images u8[B,H,W,3]."""
    x, levels = method.plain(image), image.astype(jnp.float32)
    code = method.apply(state.nets, "E_deg", x)
    described = {"brightness": brightness(levels), "sharpness": sharpness(levels)}
    return described | {"code": code, "score": score(method, state.nets, x)}


def swap(state, image, donor, method):
    """The content of one image with the degradation of another, u8[B,H,W,3] each."""
    nets, (x, y) = state.nets, (method.plain(i) for i in (image, donor))
    output = method.apply(nets, "G", content(method, nets, x), method.apply(nets, "E_deg", y))
    return jnp.rint(picture(method.config, output)).astype(jnp.uint8)


def brightness(x):
    """Mean level [B]."""
    return x.mean((1, 2, 3))


def sharpness(x):
    """Mean absolute Laplacian of the grey picture [B]."""
    grey = x.mean(-1)
    around = grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:]
    return jnp.abs(around - 4 * grey[:, 1:-1, 1:-1]).mean((1, 2))
