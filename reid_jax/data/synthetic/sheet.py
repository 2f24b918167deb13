"""Contact sheet: one row per identity, one column per camera."""

from collections import defaultdict

from PIL import Image, ImageDraw, ImageFont

from reid_jax.data import images
from reid_jax.errors import DataError

GAP, HEAD, SIDE = 4, 22, 62  # pixels: between cells, header row, label column
_PAPER, _INK, _EMPTY = (255, 255, 255), (30, 30, 30), (232, 232, 232)


def _choose(cells, ids):
    """The identities seen by most cameras, then in order of their number."""
    seen = defaultdict(set)
    for pid, camid in cells:
        seen[pid].add(camid)
    best = sorted(seen, key=lambda pid: (-len(seen[pid]), pid))[:ids]
    return sorted(best)


def _open(path, size):
    return Image.fromarray(images.original(path)).resize(size, Image.Resampling.BICUBIC)


def sheet(records, camera_names, *, ids=8, per_cell=1, height=128, width=64):
    """Draw a contact sheet.

    records: items with .path, .pid and .camid (0-based); camera_names: one str per camera; ids: rows at most;
    per_cell: pictures side by side in a cell; height, width: of one picture in pixels. A cell without
    pictures stays grey. Returns a PIL image of the size that `sheet_size` tells. DataError if empty.
    """
    cells = defaultdict(list)
    for record in records:
        cells[record.pid, record.camid].append(record.path)
    if not cells:
        raise DataError("contact sheet: no images to show; check the folder and the split")
    pids = _choose(cells, ids)
    page = Image.new("RGB", sheet_size(len(pids), len(camera_names), per_cell, height, width), _PAPER)
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(12)
    step = per_cell * width + GAP
    for column, name in enumerate(camera_names):
        pen.text((SIDE + column * step + step / 2, HEAD / 2), str(name), _INK, font, anchor="mm")
    for row, pid in enumerate(pids):
        top = HEAD + row * (height + GAP)
        pen.text((SIDE / 2, top + height / 2), f"{pid:04d}", _INK, font, anchor="mm")
        for column in range(len(camera_names)):
            left = SIDE + column * step
            pen.rectangle((left, top, left + per_cell * width - 1, top + height - 1), _EMPTY)
            for k, path in enumerate(sorted(cells.get((pid, column), ()))[:per_cell]):
                page.paste(_open(path, (width, height)), (left + k * width, top))
    return page


def sheet_size(rows, columns, per_cell=1, height=128, width=64):
    """(width, height) in pixels of a sheet with this many rows and columns."""
    return SIDE + columns * (per_cell * width + GAP), HEAD + rows * (height + GAP)


# ---- tracklets ------------------------------------------------------------------------------------------
def strip(records, camera_names, *, tracklets=8, frames=12, height=128, width=64):
    """Contact strip: one tracklet a row, consecutive frames from left to right.

    records: items with .frames (paths), .pid and .camid; one tracklet for each of the first identities is
    shown, of cameras in turn, and the first `frames` of its frames. Returns a PIL image. DataError if empty.
    """
    chosen = _some(records, tracklets)
    columns = min(frames, max(len(r.frames) for r in chosen))
    size = SIDE + columns * (width + 1), len(chosen) * (height + GAP)
    page = Image.new("RGB", size, _PAPER)
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(12)
    for row, record in enumerate(chosen):
        top = row * (height + GAP)
        label = f"{record.pid:04d}\n{camera_names[record.camid]}".replace(" ", "\n")
        pen.multiline_text((SIDE / 2, top + height / 2), label, _INK, font, anchor="mm", align="center")
        for k, path in enumerate(record.frames[:columns]):
            page.paste(_open(path, (width, height)), (SIDE + k * (width + 1), top))
    return page


def animate(records, *, tracklets=8, frames=48, height=128, width=64):
    """Moving pictures of tracklets side by side, each in a loop: a list of `frames` PIL images."""
    chosen = _some(records, tracklets)
    loops = [[_open(path, (width, height)) for path in r.frames[:frames]] for r in chosen]
    pages = []
    for k in range(frames):
        page = Image.new("RGB", (len(chosen) * (width + GAP) - GAP, height), _PAPER)
        for column, loop in enumerate(loops):
            page.paste(loop[k % len(loop)], (column * (width + GAP), 0))
        pages.append(page)
    return pages


def _some(records, count):
    """At most `count` tracklets: of each identity one, of another camera than that of the one before."""
    people = defaultdict(list)
    for record in records:
        if record.frames:
            people[record.pid].append(record)
    if not people:
        raise DataError("contact strip: no tracklets to show; check the folder and the split")
    chosen = []
    for pid in sorted(people)[:count]:
        cameras = sorted({r.camid for r in people[pid]})
        camid = cameras[len(chosen) % len(cameras)]
        chosen.append(next(r for r in people[pid] if r.camid == camid))
    return chosen
