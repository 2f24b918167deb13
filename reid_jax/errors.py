"""Errors a user can act on: each message names the file, field or flag and the way out."""

USER_ERROR, MISSING, STOPPED = 2, 3, 75  # exit codes, see reid_jax.main
NOT_FINITE = (  # where features are not
    "training may have diverged (are its losses still small?), weights or features that were read may be "
    "damaged, or this version of jax may compute config.model.dtype=bfloat16 wrongly here (try float32)"
)


class ReidError(Exception):
    """Base class; the command line prints the message without a traceback and exits with 2."""


class ConfigError(ReidError):
    """A config field, variant or flag has a value that cannot be used."""


class DataError(ReidError):
    """A data set is missing, empty, wrongly laid out or holds a broken file."""


class PictureError(DataError):
    """A picture is missing, empty, cut short or no picture.

    index: its place among those that were given, where there are several; why: what is wrong with it.
    """

    def __init__(self, message, index=None, why=""):
        super().__init__(message)
        self.index, self.why = index, why


class CheckpointError(ReidError):
    """A checkpoint cannot be written, read, or belongs to another config."""


class TrainingError(ReidError):
    """Training cannot go on (a loss that is not finite, say)."""


class ProcessError(ReidError):
    """A process cannot join the others of its run; the exit code is 1: starting again may help."""


class WeightsError(ReidError):
    """A weight file cannot be read or does not fit the model."""
