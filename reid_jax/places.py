"""Paths as people write them: ~ is the home folder, file:// a local file, other addresses are refused."""

import os
import re

from reid_jax.errors import ConfigError

_ADDRESS = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+):/")  # two letters at least: C:/ is a drive
COPY = "write to a local folder and copy it (gsutil rsync, aws s3 sync), or mount the bucket (gcsfuse, s3fs)"


def local(path, name, way_out="copy what is there to a local folder, or mount it (gcsfuse, s3fs)"):
    """A path of this machine's file system: str, with the home folder for ~ or ~USER.

    name: the flag or field, for the ConfigError that an address (gs://, s3://, https://) or the ~ of an
    unknown user gives; way_out: what to do instead of an address.
    """
    path = os.fspath(path)
    if "\0" in path:
        raise ConfigError(f"{name} is {path!r}, which is no path: it has a null byte in it")
    if path.lower().startswith("file:/"):
        path = re.sub(r"^file:(//(localhost)?(?=/))?", "", path, flags=re.IGNORECASE)
    if address := _ADDRESS.match(path):
        raise ConfigError(
            f"{name} is {path}: files are read and written locally only, not by {address['scheme']}:; "
            f"{way_out}"
        )
    if not path.startswith("~"):
        return path
    expanded = os.path.expanduser(path)
    if expanded.startswith("~") and not os.path.lexists(path):
        user = re.split(r"[/\\]", path)[0]
        raise ConfigError(f"{name} is {path}, and there is no user {user[1:]}; a folder {user} is ./{path}")
    return expanded


def written(path, name):
    """`local` for what is written to."""
    return local(path, name, COPY)


def in_utf8(path, name):
    """The path; ConfigError when its absolute form is not UTF-8, which the writer of checkpoints needs."""
    try:
        os.path.abspath(path).encode()
    except UnicodeEncodeError as e:
        raise ConfigError(
            f"{name} is {path}, or lies in a folder of such a name, which is not UTF-8 and cannot be written "
            "to; choose another folder"
        ) from e
    return path


def argument(name, function=local):
    """The type of a command's argument that is a path, for argparse."""
    return lambda text: function(text, name)
