"""What a loaded data set is: records of train, query and gallery."""

import dataclasses
import hashlib
import os


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """One image, or one tracklet: absolute path, identity and zero-based camera."""

    path: str  # of the image; of a tracklet its first frame's
    pid: int
    camid: int
    frames: tuple[str, ...] = ()  # a tracklet's frames in order, absolute paths; () for an image

    def __len__(self):
        """Number of frames, 1 for an image."""
        return len(self.frames) or 1


@dataclasses.dataclass(frozen=True)
class Dataset:
    """The splits of a data set.

    train: pids 0..P-1 in sorted order of the original ids. query, gallery: pids that never collide with a
    distractor's, which is 0 (gallery only). camids are 0..C-1 everywhere and index camera_names, cameras of
    train first. val_query, val_gallery: identities held out of train (data.val_ids), empty otherwise.
    """

    name: str
    root: str
    train: tuple[Record, ...]
    query: tuple[Record, ...]
    gallery: tuple[Record, ...]
    camera_names: tuple[str, ...]
    val_query: tuple[Record, ...] = ()
    val_gallery: tuple[Record, ...] = ()
    kind: str = "image"  # image | video: what a record is
    protocol: str = "market"  # market | single-shot | single-gallery: how it is evaluated by custom
    drawn: dict = dataclasses.field(default_factory=dict)  # a split made from random draws, as written down

    @property
    def num_train_pids(self):
        """P, the number of training identities."""
        return 1 + max(r.pid for r in self.train)

    @property
    def num_cams(self):
        """C, the number of training cameras."""
        return 1 + max(r.camid for r in self.train)

    def fingerprint(self):
        """Text that differs when the records do, wherever the root lies."""
        found = hashlib.sha256()
        for split in ("train", "query", "gallery", "val_query", "val_gallery"):
            for r in getattr(self, split):
                found.update(repr((os.path.relpath(r.path, self.root), r.pid, r.camid, len(r))).encode())
            found.update(split.encode())
        return found.hexdigest()
