"""Data sets built once into array_record files and read through tfds.data_source, without TensorFlow.

A built set holds the files' own bytes, so it gives the same pictures as the folder it was made from. Its
records carry references instead of paths, `tfds:FOLDER//ORIGINAL/PATH.jpg`: text that any process resolves,
FOLDER being where the set lies now. Labels and paths stand in the set's metadata too, so that loading it
reads no picture.
"""

import functools
import os
import re
import threading

import numpy as np

from reid_jax import places
from reid_jax.data.loaders.common import Options
from reid_jax.data.records import Dataset, Record
from reid_jax.errors import DataError

PREFIX = "tfds:"
SPLITS = ("train", "query", "gallery")
VERSION = "1.0.0"
_lock = threading.Lock()  # of open_set
_last = threading.local()  # the example read last: the frames of a clip follow each other


# ---- building -------------------------------------------------------------------------------------------
def build(dataset, folder, options=None, progress=True):
    """Writes a Dataset; returns the built set's own folder, FOLDER/reid/NAME/1.0.0.

    options: the loaders.common.Options that the Dataset was loaded with; they are written down, and others
    than the usual ones become part of NAME. Pictures are stored as they are, tracklets as sequences. Errors:
    DataError when something is there already, when a picture is missing or when the folder cannot be written.
    """
    import tensorflow_datasets as tfds

    (tfds.enable_progress_bar if progress else tfds.disable_progress_bar)()
    options = options or Options()
    config = tfds.core.BuilderConfig(
        name=config_name(dataset.name, options),
        version=VERSION,
        description=f"{dataset.name}, {dataset.kind}",
    )
    try:
        builder = _builder(tfds)(
            dataset=dataset, options=options, data_dir=folder, config=config, file_format="array_record"
        )
        target = str(builder.data_path)
        if builder.data_path.exists():
            raise DataError(f"{target} is there already: remove it, or build into another --output")
        builder.download_and_prepare()
    except OSError as e:
        raise DataError(f"cannot build {dataset.name} in {folder}: {e}") from e
    return target


def form(options):
    """The options that a built set must have in common with the config that reads it."""
    return {"variant": options.variant, "split": options.split, "split_seed": options.seed}


def config_name(name, options):
    """NAME, NAME_500k, NAME_split3, NAME_split3_seed1, ..."""
    parts = [name, options.variant]
    parts += [f"split{options.split}"] if options.split or options.seed else []
    parts += [f"seed{options.seed}"] if options.seed else []
    return re.sub(r"[^A-Za-z0-9_.-]", "_", "_".join(p for p in parts if p))


@functools.cache
def _builder(tfds):
    """The builder's class; made late, as importing tensorflow_datasets takes a second."""

    class Reid(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """Person re-identification set made from a loaded Dataset."""

        VERSION = tfds.core.Version(VERSION)
        code_path = None  # nothing is downloaded, so there is no file of checksums to look for

        def __init__(self, *, dataset, options, **kwargs):
            self._dataset, self._options = dataset, options
            super().__init__(**kwargs)

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                description="Person re-identification: pictures or tracklets, identities and cameras.",
                features=features(tfds, self._dataset.kind == "video"),
                metadata=tfds.core.MetadataDict(index(self._dataset, self._options)),
                disable_shuffling=True,  # row i of a split is example i
            )

        def _split_generators(self, dl_manager):
            del dl_manager
            return {split: self._generate_examples(split) for split in SPLITS}

        def _generate_examples(self, split):
            root = self._dataset.root
            for row, record in enumerate(getattr(self._dataset, split)):
                yield row, example(record, split, root, self._dataset.kind == "video")

    return Reid


def features(tfds, video):
    """Features of an example."""
    f = tfds.features
    labels = {"pid": f.Scalar(np.int64), "camid": f.Scalar(np.int32), "split": f.Text(), "path": f.Text()}
    if video:
        return f.FeaturesDict(
            {**labels, "frames": f.Sequence(f.Image()), "frame_paths": f.Sequence(f.Text())}
        )
    return f.FeaturesDict({**labels, "image": f.Image()})


def example(record, split, root, video):
    """An example: the labels as in the Dataset, the files' bytes as they are."""
    path = os.fsencode(relative(record.path, root))
    labels = {"pid": record.pid, "camid": record.camid, "split": split, "path": path}
    if not video:
        return {**labels, "image": file_bytes(record.path)}
    paths = [os.fsencode(relative(p, root)) for p in record.frames]
    return {**labels, "frames": [file_bytes(p) for p in record.frames], "frame_paths": paths}


def file_bytes(path):
    """A file's contents; DataError when it cannot be read or is empty."""
    try:
        with open(path, "rb") as f:
            data = f.read()
    except OSError as e:
        raise DataError(f"cannot read {path}: {e.strerror}") from e
    if not data:
        raise DataError(f"{path} is empty: copy it again or remove it")
    return data


def relative(path, root):
    """The path below root, with forward slashes."""
    return os.path.relpath(path, root).replace(os.sep, "/")


def index(dataset, options):
    """What stands in the metadata: everything about the Dataset but its pictures."""
    about = {f: getattr(dataset, f) for f in ("name", "kind", "protocol", "drawn")}
    splits, video = {}, dataset.kind == "video"
    for split in SPLITS:
        records = getattr(dataset, split)
        splits[split] = {
            "pid": [int(r.pid) for r in records],
            "camid": [int(r.camid) for r in records],
            "path": [relative(r.path, dataset.root) for r in records],
            "frames": [[relative(p, dataset.root) for p in r.frames] for r in records] if video else [],
        }
    about |= {"camera_names": list(dataset.camera_names), "options": form(options)}
    return {**about, "splits": splits}


# ---- reading --------------------------------------------------------------------------------------------
def load(root, name="", options=None):
    """The Dataset of a built set.

    root: its own folder, or a parent that holds one built set (of data set `name`). options: the
    loaders.common.Options that it must have been built with, None for any. Labels are those of the folder
    that it was built from; paths are references, and Dataset.root one to the set itself. Errors: DataError
    when there is no such set or another one.
    """
    built = open_set(find(root, name))
    about = built.about
    if name and about["name"] != name:
        raise DataError(
            f"{built.folder} holds {about['name']}: set config.data.name={about['name']}, or .root "
            f"to a built {name}"
        )
    if options is not None and about["options"] != form(options):
        raise DataError(
            f"{built.folder} was built with {about['options']}, but config.data.variant, .split and "
            f".split_seed ask for {form(options)}: set them alike, or build that form too"
        )
    fields = {k: about[k] for k in ("name", "kind", "protocol", "drawn")}
    records = {split: built.records(split) for split in SPLITS}
    fields |= {"camera_names": tuple(about["camera_names"]), "domain_names": (about["name"],)}
    return Dataset(root=PREFIX + built.folder, **records, **fields)


def find(root, name=""):
    """The folder of the built set: root, or the only one below it (root/reid/NAME/1.0.0 and the like)."""
    from etils import epath

    try:
        path = epath.Path(root if "://" in root else places.local(root, "config.data.root"))
        if (path / "features.json").exists():
            return os.path.abspath(path) if "://" not in root else str(path)
        inside = sorted(
            str(f.parent) for depth in ("*", "*/*", "*/*/*") for f in path.glob(f"{depth}/features.json")
        )
    except Exception as e:  # epath raises what the remote file system's package raises
        raise DataError(f"config.data.root: cannot read {root} ({type(e).__name__}: {e})") from e
    named = [f for f in inside if name and name in f.removeprefix(str(path)).replace("\\", "/").split("/")]
    chosen = named or inside
    if not chosen:
        raise DataError(
            f"config.data.root: {root} holds no built set; write one with: python -m reid_jax.data build "
            f"{name or 'NAME'} --root FOLDER --output {root}"
        )
    if len(chosen) > 1:
        raise DataError(f"config.data.root: {root} holds several built sets; name one: {', '.join(chosen)}")
    return os.path.abspath(chosen[0]) if "://" not in root else chosen[0]


def contents(reference):
    """Bytes of the picture that a reference names."""
    folder, _, path = reference.removeprefix(PREFIX).rpartition("//")
    return open_set(folder).read(path)


def open_set(folder):
    """The BuiltSet of a folder, opened once a process."""
    with _lock:
        return _open(folder)


@functools.lru_cache(maxsize=16)
def _open(folder):
    return BuiltSet(folder)


class BuiltSet:
    """A built set that is open for random access; safe to use from several threads.

    about: what `index` wrote. Raises DataError when the folder is no built set of this library.
    """

    def __init__(self, folder):
        import tensorflow_datasets as tfds

        self.folder = folder
        try:
            builder = tfds.builder_from_directory(folder)
            self.about = builder.info.metadata or {}
            if "splits" not in self.about:
                raise DataError(f"{folder} was not written by python -m reid_jax.data build")
            raw = tfds.decode.DeserializeMethod.RAW_BYTES
            self._sources = {s: builder.as_data_source(split=s, deserialize_method=raw) for s in SPLITS}
        except DataError:
            raise
        except Exception as e:  # array_record raises bare RuntimeErrors, TFDS many kinds of its own
            raise DataError(f"{folder} cannot be read as a built set: {e}") from e
        self._paths, self._at = self._positions()

    def records(self, split):
        """Records of a split, with references for paths."""
        labels = self.about["splits"][split]
        start = f"{PREFIX}{self.folder}//"
        frames = labels["frames"] or [()] * len(labels["path"])
        return tuple(
            Record(start + path, pid, camid, tuple(start + f for f in inside))
            for path, pid, camid, inside in zip(
                labels["path"], labels["pid"], labels["camid"], frames, strict=True
            )
        )

    def _positions(self):
        """(sorted relative paths as bytes, i32[n,3] of split, row and frame): a million take 50 MiB."""
        paths, at = [], []
        for s, split in enumerate(SPLITS):
            labels = self.about["splits"][split]
            groups = labels["frames"] or [[p] for p in labels["path"]]
            paths += [os.fsencode(p) for group in groups for p in group]
            counts = np.array([len(group) for group in groups])
            row = np.repeat(np.arange(len(counts)), counts)
            frame = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
            at.append(np.stack([np.full(len(row), s), row, frame], 1, dtype=np.int32))
        names = np.array(paths)
        order = np.argsort(names, kind="stable")
        return names[order], np.concatenate(at)[order]

    def read(self, path):
        """Bytes of the picture with this original path; the same picture in two splits is stored twice."""
        name = os.fsencode(path)
        place = int(self._paths.searchsorted(name))
        if place == len(self._paths) or self._paths[place] != name:
            raise FileNotFoundError(path)
        split, row, frame = self._at[place].tolist()
        example = self._example(SPLITS[split], row)
        names = ("frame_paths", "frames") if "frames" in example else ("path", "image")
        stored, data = (example[n].bytes_list.value[frame] for n in names)
        if stored != name:
            raise DataError(
                f"{self.folder} is damaged: example {row} of {SPLITS[split]} is not {path}; build again"
            )
        return data

    def _example(self, split, row):
        """{name: feature} of an example; TFDS' own decoding takes six times as long."""
        from tensorflow_datasets.proto import tf_example_pb2

        key = self.folder, split, row
        if getattr(_last, "key", None) != key:
            try:
                parsed = tf_example_pb2.Example.FromString(self._sources[split][row])
            except Exception as e:
                raise DataError(
                    f"{self.folder}: cannot read example {row} of {split}: {e}; build again"
                ) from e
            _last.key, _last.features = key, parsed.features.feature
        return _last.features
