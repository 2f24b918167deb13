"""Features under Ray Data, or whatever else hands over batches as dicts of arrays.

    pictures = ray.data.read_binary_files("pictures/", include_paths=True)
    actors = ray.data.ActorPoolStrategy(size=4)
    features = pictures.map_batches(
        Embed, fn_constructor_args=("runs/mine",), batch_size=64, num_gpus=1, compute=actors
    )
    features.write_parquet("features/")

Ray itself is not imported: each of its actors makes one Embed, and so one model.
"""

import numpy as np

import reid_jax
from reid_jax.errors import ConfigError, DataError


class Embed:
    """Batches {column: array [N,...]} -> the same with features f32[N,D], rows of unit length.

    source: what reid_jax.load takes; options: its others. column: the pictures, bytes of files, paths,
    u8[N,h,w,3], or an object array that mixes what an Embedder takes; left out of the result unless keep.
    output: the column of the features. on_broken: "nan" makes NaN rows of pictures that cannot be read and
    adds "broken", str[N]: why, or ""; "stop" raises PictureError.
    """

    def __init__(
        self,
        source,
        column="bytes",
        *,
        output="feature",
        keep=False,
        on_broken="nan",
        channels="rgb",
        **options,
    ):
        self.column, self.output, self.keep = column, output, keep
        self.given = {"on_broken": on_broken, "channels": channels}
        self.embedder = reid_jax.load(source, **options)

    def __call__(self, batch):
        """dict of a dict; ConfigError without the column, DataError for columns of other lengths."""
        if self.column not in batch:
            raise ConfigError(f"a batch has no column {self.column!r}; it has {', '.join(batch) or 'none'}")
        pictures = batch[self.column]
        pictures = pictures if getattr(pictures, "ndim", 1) == 4 else list(pictures)
        features = self.embedder(pictures, **self.given)
        columns = {name: values for name, values in batch.items() if self.keep or name != self.column}
        if wrong := [name for name, values in columns.items() if len(values) != len(features)]:
            raise DataError(
                f"a batch has {len(features)} pictures and {len(batch[wrong[0]])} of {wrong[0]!r}"
            )
        columns[self.output] = features
        if self.given["on_broken"] == "nan":
            why = self.embedder.broken
            columns["broken"] = np.array([why.get(i, "") for i in range(len(features))], object)
        return columns
