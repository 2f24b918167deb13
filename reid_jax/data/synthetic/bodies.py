"""Bodies of drawn pictures and frames: silhouettes, and the same body on another camera's background."""

import dataclasses
import functools
import os

import numpy as np
from PIL import Image

from reid_jax.data.synthetic import kinds, video, write
from reid_jax.data.synthetic.camera import camera_of, draw_shot
from reid_jax.data.synthetic.figure import Pose, draw_figure
from reid_jax.data.synthetic.person import person_of
from reid_jax.data.synthetic.picture import render, view_of, window_of
from reid_jax.errors import ConfigError

KINDS = ("image", "video")


class Bodies:
    """Bodies of the synthetic set in `folder`, of kind image or video; ConfigError for another."""

    def __init__(self, folder):
        stamp = write.read_stamp(folder)
        if stamp is None or stamp["settings"].get("kind", "image") not in KINDS:
            raise ConfigError(
                f"{folder} is no synthetic set of kind image or video: its bodies are not known"
            )
        self.folder, self.settings = folder, stamp["settings"]
        kind = self.settings.get("kind", "image")
        jobs = (job for group in kinds.KINDS[kind].groups(self.settings) for job in group)
        self.jobs, self.moving = {job.path: job for job in jobs}, kind == "video"

    def silhouette(self, path):
        """f32[H,W]: how much of each pixel of the picture at `path` (below the folder) the body covers."""
        job = self.jobs[path]
        return (
            _in_frame(_track(job, self.settings), job.n) if self.moving else _in_picture(job, self.settings)
        )

    def silhouettes(self, paths, height, width):
        """f32[N,height,width] of pictures at these absolute paths, bilinear."""
        relative = (os.path.relpath(path, self.folder).replace(os.sep, "/") for path in paths)
        masks = (Image.fromarray(self.silhouette(path)) for path in relative)
        return np.stack([np.asarray(m.resize((width, height), Image.Resampling.BILINEAR)) for m in masks])

    def swapped(self, path, camera):
        """u8[H,W,3]: the picture's body, as its camera shows it, on the background of camera `camera`."""
        job = self.jobs[path]
        body = self.silhouette(path)[..., None]
        other = job._replace(cam=camera)
        if self.moving:
            track, place = _track(job, self.settings), _emptied(_track(other._replace(n=0), self.settings))
            shown, behind = (
                video.render_frame(track, job.n),
                video.render_frame(place, job.n % len(place.boxes)),
            )
        else:
            shown, behind = kinds.draw(job, self.settings)[0], _empty(other, self.settings)
        return (shown * body + behind * (1 - body) + 0.5).astype(np.uint8)


def _camera(job, settings):
    return camera_of(job.cam, *[settings[k] for k in ("seed", "height", "width", "strength")])


def _empty(job, settings):
    """The place that a picture shows, with nobody in it."""
    camera = _camera(job, settings)
    shot = draw_shot(kinds.stream(job, settings), camera, cropped=job.pid < 0)
    return render(None, camera, dataclasses.replace(shot, front=-1))


def _in_picture(job, settings):
    camera, person = _camera(job, settings), person_of(settings["seed"], job.pid, job.n)
    if person is None:
        return np.zeros((camera.height, camera.width), np.float32)
    shot = draw_shot(kinds.stream(job, settings), camera, cropped=job.pid < 0)
    pose = Pose(shot.phase, shot.stride, shot.lean, shot.turn, shot.head_turn, shot.nod)
    cloth = (camera.cloth, shot.grain[0], shot.grain[1])
    view = view_of(camera, shot, person.height)
    body = draw_figure(person, pose, view, camera.height, camera.width, cloth=cloth)[0][3].copy()
    return body * (1 - window_of(camera.fronts[shot.front], camera, shot)[3]) if shot.front >= 0 else body


@functools.lru_cache(64)
def _cached_track(frame, settings):
    return video.track(frame, dict(settings))


def _track(frame, settings):
    """The Track of a frame, whose own number does not matter."""
    plain = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
    return _cached_track(frame._replace(n=0), tuple(sorted(plain.items())))


def _emptied(track):
    return dataclasses.replace(track, empty=True, passers=(), front=None)


def _in_frame(track, k):
    return (
        np.zeros((track.camera.height, track.camera.width), np.float32)
        if track.empty
        else video.body(track, k)
    )
