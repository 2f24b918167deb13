"""The picture of one shot: a person at a place, both shadows, and what the sensor makes of it.

`render` is a pure function of person, camera and shot.
"""

from math import exp, radians

import numpy as np
from PIL import Image

from reid_jax.data.synthetic.camera import BODY, MIDDLE
from reid_jax.data.synthetic.figure import Pose, draw_figure
from reid_jax.data.synthetic.painter import View, unit


def _cut(panorama, y, x, height, width):
    y = min(max(0, y), panorama.shape[-2] - height)
    x = min(max(0, x), panorama.shape[-1] - width)
    return panorama[..., y : y + height, x : x + width]


def window_of(panorama, camera, shot):
    """The part of a panorama f32[..,TALL*H,LONG*H] of the camera that a shot shows, f32[..,H,W]."""
    height = camera.height
    x, y = round(shot.window[0] * height), round(shot.window[1] * height)
    return _cut(panorama, y, x, height, camera.width)


def view_of(camera, shot, person_height=1.0):
    """The View of a shot: a person of any height keeps the middle of the body in place."""
    c, h = camera.settings, camera.height
    size = BODY * h * c["size"] * shot.zoom
    foot_y = h * (0.5 + shot.shift[1]) + MIDDLE * size * person_height
    return look(camera, shot.yaw, size, (camera.width * 0.5 + shot.shift[0] * h, foot_y))


def look(camera, yaw, size, foot):
    """The View of somebody `size` pixels tall (the average body) who stands at `foot` (x, y) in pixels."""
    c = camera.settings
    x, y, z = c["light"]
    return View(
        yaw=yaw,
        pitch=radians(c["pitch"]),
        size=size,
        foot=foot,
        light=unit(x, y, z),
        ambient=float(c["ambient"]),
        diffuse=float(c["diffuse"]),
    )


def _contact_shadow(image, contacts, size, strength):
    """Dark, soft spots on the ground below each foot; a lifted foot's is wider and weaker."""
    h, w = image.shape[1:]
    for x, y, half, lift in contacts:
        tall = 0.018 * size + 0.25 * half
        x0, x1 = max(0, int(x - 2.2 * half)), min(w, int(x + 2.2 * half) + 2)
        y0, y1 = max(0, int(y - 2.2 * tall)), min(h, int(y + 2.2 * tall) + 2)
        if x1 <= x0 or y1 <= y0:
            continue
        px = (np.arange(x0, x1, dtype=np.float32) + 0.5 - x) / half
        py = (np.arange(y0, y1, dtype=np.float32) + 0.5 - y) / tall
        spot = np.exp(-py * py)[:, None] * np.exp(-px * px)
        image[:, y0:y1, x0:x1] *= 1 - strength / (1 + 14 * lift) * spot


def _cast_shadow(image, alpha, foot_y, shear, length, strength):
    """The silhouette laid on the ground: away from the camera, or towards it when length < 0."""
    h, w = alpha.shape
    mask = Image.fromarray((alpha * 255).astype(np.uint8))
    k = 1 / length
    data = (1.0, -shear * k, shear * k * foot_y, 0.0, k, foot_y - k * foot_y)
    laid = mask.transform((w, h), Image.Transform.AFFINE, data, Image.Resampling.BILINEAR)
    image *= 1 - (strength / 255) * np.asarray(laid, np.float32)


def _blur(image, sigma):
    """Separable 3-tap blur, enough for the small sigmas used here."""
    if sigma < 0.15:
        return image
    side = min(0.32, 0.55 * (1 - exp(-(sigma**2))))
    out = (1 - 2 * side) * image
    out[:, 1:-1] += side * (image[:, :-2] + image[:, 2:])
    out[:, 0] += side * (image[:, 0] + image[:, 1])
    out[:, -1] += side * (image[:, -1] + image[:, -2])
    image = out
    out = (1 - 2 * side) * image
    out[:, :, 1:-1] += side * (image[:, :, :-2] + image[:, :, 2:])
    out[:, :, 0] += side * (image[:, :, 0] + image[:, :, 1])
    out[:, :, -1] += side * (image[:, :, -1] + image[:, :, -2])
    return out


def expose(image, camera, gain, tint, grain):
    """Scene light f32[3,H,W] -> picture u8[H,W,3]; gain, tint, grain as in Shot."""
    c = camera.settings
    h, w = image.shape[1:]
    tint = np.asarray(tint, np.float32)[:, None, None] * gain
    image = _blur(image, c["blur"] * h / 128)
    image *= camera.curve * tint
    if c["contrast"] != 1 or c["lift"]:
        a = (1 - c["lift"]) * c["contrast"]
        image *= a
        image += 0.4 * (1 - c["contrast"]) + c["lift"]
    if camera.air is not None:
        tall, wide = camera.air.shape
        flakes = _cut(camera.air, grain[0] % (tall - h + 1), grain[1] % (wide - w + 1), h, w)
        image += 0.85 * flakes * (0.95 - image)
    if c["resolution"] < 0.98:
        image = _coarse(image, c["resolution"], h, w)
    image *= 255
    if c["noise"] > 0:
        image += _cut(camera.noise, grain[1] % (h + 1), grain[0] % (3 * w + 1), h, w)
    image = np.minimum(np.maximum(image, 0), 255)
    return np.ascontiguousarray(image.astype(np.uint8).transpose(1, 2, 0))


def _coarse(image, factor, h, w):
    levels = (np.clip(image, 0, 1) * 255).astype(np.uint8)
    picture = Image.fromarray(np.ascontiguousarray(levels.transpose(1, 2, 0)))
    small = picture.resize((max(8, round(w * factor)), max(16, round(h * factor))), Image.Resampling.BILINEAR)
    back = np.asarray(small.resize((w, h), Image.Resampling.BICUBIC))
    return back.transpose(2, 0, 1).astype(np.float32) * (1 / 255)


def add_person(image, light, person, camera, view, pose, cloth):
    """Paint a person with both shadows into image f32[3,H,W]; light f32[3,H,W] of the place; in place."""
    c = camera.settings
    h, w = image.shape[1:]
    rgba, contacts = draw_figure(person, pose, view, h, w, cloth=cloth)
    if c["shadow"]:
        shear, length = c["shadow"]
        _cast_shadow(image, rgba[3], view.foot[1], shear * 0.8, length, 0.38 * min(1.0, camera.strength))
    _contact_shadow(image, contacts, view.size, c["contact"])
    image *= 1 - rgba[3]
    rgba[:3] *= light * float(c["figure"])
    image += rgba[:3]


def add_front(image, front, camera):
    """Lay what stands before the person, premultiplied f32[4,H,W], over image f32[3,H,W]; in place."""
    image *= 1 - front[3]
    image += front[:3] * float(camera.settings["figure"]) ** 0.5


def render(person, camera, shot):
    """The picture u8[H,W,3] of `person` (None: an empty place) by `camera` in `shot`."""
    h, w = camera.height, camera.width
    x, y = round(shot.window[0] * h), round(shot.window[1] * h)
    image = _cut(camera.picture, y, x, h, w).copy()
    if person is not None:
        view = view_of(camera, shot, person.height)
        pose = Pose(shot.phase, shot.stride, shot.lean, shot.turn, shot.head_turn, shot.nod)
        cloth = (camera.cloth, shot.grain[0], shot.grain[1])
        add_person(image, _cut(camera.light, y, x, h, w), person, camera, view, pose, cloth)
    if shot.front >= 0:
        add_front(image, _cut(camera.fronts[shot.front], y, x, h, w), camera)
    if camera.halo is not None:
        image += _cut(camera.halo, y, x, h, w)
    return expose(image, camera, shot.gain, shot.tint, shot.grain)
