"""What a loaded data set is: records of train, query and gallery."""

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """One image: absolute path, identity and zero-based camera."""

    path: str
    pid: int
    camid: int


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

    @property
    def num_train_pids(self):
        """P, the number of training identities."""
        return 1 + max(r.pid for r in self.train)

    @property
    def num_cams(self):
        """C, the number of training cameras."""
        return 1 + max(r.camid for r in self.train)
