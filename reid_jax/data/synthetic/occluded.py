"""Half hidden people search whole ones: the image set, something in front of every query and no other.

What hides a person is a board from one edge of the picture, in a colour of its own. occlusion.csv tells
where it is and which share of the picture stays visible; `truth.points` counts points behind it as hidden.
"""

import numpy as np

TABLE = "occlusion.csv"
SIDES = ("bottom", "left", "right", "top")
SHARES = (0.35, 0.6)  # of the picture, hidden
_BOARD = 11  # name of a random stream


def hidden(job, settings):
    """(side, (left, top, right, bottom) in pixels) of what hides a query; None of other pictures."""
    if job.split != "query":
        return None
    rng = _stream(job, settings)
    side, share = SIDES[rng.choice(4, p=(0.4, 0.25, 0.25, 0.1))], rng.uniform(*SHARES)
    h, w = settings["height"], settings["width"]
    y, x = round(share * h), round(share * w)
    boxes = {"bottom": (0, h - y, w, h), "left": (0, 0, x, h), "right": (w - x, 0, w, h), "top": (0, 0, w, y)}
    return side, boxes[side]


def covered(picture, job, settings):
    """The picture u8[H,W,3] with the board in front of a query; others as they are."""
    occluder = hidden(job, settings)
    if occluder is None:
        return picture
    left, top, right, bottom = occluder[1]
    rng = _stream(job, settings).spawn(1)[0]
    colour, slats = rng.uniform(30, 220, 3), 1 + 0.12 * np.sin(np.arange(right - left) / rng.uniform(0.8, 4))
    board = colour * slats[:, None] + rng.normal(0, 5, (bottom - top, right - left, 1))
    picture = picture.copy()
    picture[top:bottom, left:right] = np.clip(board, 0, 255).astype(np.uint8)
    return picture


def table(jobs, settings):
    """Bytes of occlusion.csv: path, side, box and visible share of every query."""
    area, lines = settings["height"] * settings["width"], ["path,side,left,top,right,bottom,visible"]
    for job in jobs:
        if job.split == "query":
            side, box = hidden(job, settings)
            visible = 1 - (box[2] - box[0]) * (box[3] - box[1]) / area
            lines.append(",".join(map(str, (job.path, side, *box, f"{visible:.4f}"))))
    return ("\n".join(lines) + "\n").encode()


def _stream(job, settings):
    return np.random.default_rng([settings["seed"], _BOARD, job.pid + 1, job.cam, job.n])
