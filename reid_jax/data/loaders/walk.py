"""The pictures that a person sees in a folder, and what is left out of them.

What is hidden, copies that systems and file servers put beside pictures, and links that lead nowhere are left
out. Whoever wants to know opens `noting` around the reading.
"""

import contextlib
import contextvars
import os
import unicodedata
from typing import NamedTuple

from reid_jax.errors import DataError

# Suffixes of pictures that Pillow opens, and of others that people take for pictures.
IMAGES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".gif"),
    *(".avif", ".avifs", ".jp2", ".j2k", ".jpx", ".jpf", ".jpc", ".j2c", ".ppm", ".pgm", ".pbm", ".pnm"),
    *(".pfm", ".tga", ".qoi", ".pcx", ".sgi", ".mpo", ".psd", ".fits"),
)
FOREIGN = (
    *(".heic", ".heif", ".hif", ".jxl", ".jxr", ".svg", ".exr", ".hdr", ".eps", ".raw", ".dng", ".cr2"),
    *(".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf"),
)
SYSTEM = (  # folders that people do not see, or did not make
    *("@eadir", "__macosx", "#recycle", "@recycle", "#snapshot", "$recycle.bin", "lost+found"),
    "system volume information",
)
HIDDEN = "hidden"
COPIES = "in folders of thumbnails or of the system"
BROKEN = "links that lead nowhere"
AGAIN = "links to what is read already"
UNKNOWN = "of formats that cannot be read"
NO_FILE = "no files"
ASIDE = "beside the folders that are read"
OTHER = "no pictures"
PICTURES = (HIDDEN, COPIES, BROKEN, AGAIN, UNKNOWN, NO_FILE, ASIDE)
_ENOUGH = 10_000  # pictures that are counted in a folder that is left out

_noted = contextvars.ContextVar("left_out", default=None)


@contextlib.contextmanager
def noting():
    """{reason: {path: number of pictures}}, filled by listings inside the block."""
    left = {}
    token = _noted.set(left)
    try:
        yield left
    finally:
        _noted.reset(token)


def note(reason, path, count=1):
    """Writes down that something is left out, for `noting`."""
    left = _noted.get()
    if left is not None and count:
        left.setdefault(reason, {})[path] = count


def told(left, reasons, root, shown=2):
    """'16 hidden (.thumbnails, ...), 2 links that lead nowhere (a.jpg)' of what was noted; "" for nothing."""
    parts = []
    for reason in (r for r in reasons if left.get(r)):
        names = [os.path.relpath(p, root) for p in left[reason]]
        more = ", ..." if len(names) > shown else ""
        parts.append(f"{sum(left[reason].values())} {reason} ({', '.join(names[:shown])}{more})")
    return ", ".join(parts)


class Entry(NamedTuple):
    """What stands in a folder for a person who opens it."""

    name: str
    folder: bool
    file: bool
    link: bool


def entries(folder):
    """[Entry] sorted by name, without what is hidden and the like; DataError when it cannot be read."""
    with scanned(folder) as directory:
        ordered = sorted(directory, key=lambda e: e.name)
    return [entry for e in ordered if (entry := seen(e))]


def scanned(folder):
    """os.scandir with a DataError that names the folder."""
    try:
        return os.scandir(folder)
    except OSError as e:
        raise DataError(f"cannot read the folder {folder}: {e.strerror}") from e


def seen(item):
    """Entry of an os.DirEntry, None when it is left out."""
    entry = Entry(item.name, asked(item.is_dir), asked(item.is_file), item.is_symlink())
    if entry.name.startswith("."):
        note(HIDDEN, item.path, count_below(item.path) if entry.folder else looks_like_one(entry.name))
    elif entry.folder and entry.name.lower() in SYSTEM:
        note(COPIES, item.path, count_below(item.path))
    elif entry.link and not os.path.exists(item.path):
        note(BROKEN, item.path)
    else:
        return entry
    return None


def asked(question):
    """What an os.DirEntry answers; False for links in a loop."""
    try:
        return question()
    except OSError:
        return False


def looks_like_one(name):
    """Whether a person would take a file for a picture by its name."""
    return name.lower().endswith((*IMAGES, *FOREIGN))


def count_below(folder):
    """Number of pictures below a folder, _ENOUGH at most or little more; 0 when nobody wants to know."""
    count = 0
    if _noted.get() is not None:
        for _, _, names in os.walk(folder):
            count += sum(map(looks_like_one, names))
            if count >= _ENOUGH:
                break
    return count


def is_picture(folder, entry):
    """Whether an entry of a folder is a picture to be read; what is none is noted."""
    path = os.path.join(folder, entry.name)
    if entry.folder:
        return False
    if not entry.name.lower().endswith(IMAGES):
        note(UNKNOWN if looks_like_one(entry.name) else OTHER, path)
        return False
    if not entry.file:
        note(NO_FILE, path)
    return entry.file


# ---- folders in folders ---------------------------------------------------------------------------------
def pictures(root):
    """[(path, real path)] of all pictures below a folder, in its order: files first, then sub-folders.

    Links to folders are followed, unless they lead back to a folder that they lie in, or, inside of a folder
    that was reached by a link, to one that was read already. Real path: "" where no link was passed.
    """
    places, read = [], set()
    waiting = [(root, os.path.realpath(root), False)]
    while waiting:
        folder, real, linked = waiting.pop()
        read.add(real)
        inside = entries(folder)
        for entry in inside:
            if is_picture(folder, entry):
                path = os.path.join(folder, entry.name)
                places.append((path, real_path(path, real, entry, linked)))
        folders = (followed(folder, real, linked, e, read) for e in reversed(inside) if e.folder)
        waiting += [f for f in folders if f]
    return places


def real_path(path, folder, entry, linked):
    """Where a picture really lies; "" where no link was passed."""
    if entry.link:
        return os.path.realpath(path)
    return os.path.join(folder, entry.name) if linked else ""


def followed(folder, real, linked, entry, read):
    """(path, real path, whether a link was passed) of a sub-folder, None when it is not to be read."""
    path = os.path.join(folder, entry.name)
    if not entry.link:
        return path, os.path.join(real, entry.name), linked
    target = os.path.realpath(path)
    loop = f"{real}{os.sep}".startswith(f"{target.rstrip(os.sep)}{os.sep}")
    if loop or (linked and target in read):
        note(AGAIN, path)
        return None
    return path, target, True


def once(root, places, label_of):
    """Paths of `pictures(root)` without links to pictures that are there under the same label, or with none.

    label_of: path -> what a picture is labelled with, None for nothing.
    """
    if not any(real for _, real in places):
        return [path for path, _ in places]
    top, paths = os.path.realpath(root), []
    direct = [(os.path.join(top, os.path.relpath(p, root)), label_of(p)) for p, real in places if not real]
    known, files = set(direct), {file for file, _ in direct}
    for path, real in places:
        label = label_of(path) if real else None
        if real and ((real, label) in known or (label is None and real in files)):
            note(AGAIN, path)
            continue
        if real:
            known.add((real, label))
            files.add(real)
        paths.append(path)
    return paths


# ---- listed pictures ------------------------------------------------------------------------------------
def names_in(folder):
    """Set of all names in a folder, hidden ones too, but for links that lead nowhere; empty without it.

    DataError when it cannot be read.
    """
    if not os.path.isdir(folder):
        return set()
    with scanned(folder) as directory:
        return {e.name for e in directory if not e.is_symlink() or os.path.exists(e.path)}


def spelling(root, paths):
    """{path: how the file system spells it} of paths below root that are not there as they are written.

    Names may differ in small and large letters and in the form of Unicode (a zip of macOS has another); those
    that fit several files, or none, are left out.
    """
    listings, spelled = {}, {}
    for path in paths:
        place = root
        for part in os.path.relpath(path, root).split(os.sep):
            if place not in listings:
                listings[place] = {}
                for name in names_in(place):
                    listings[place].setdefault(plain(name), []).append(name)
            same = listings[place].get(plain(part), [])
            same = [part] if part in same else same
            place = os.path.join(place, same[0]) if len(same) == 1 else ""
            if not place:
                break
        if place:
            spelled[path] = place
    return spelled


def plain(name):
    """A name as two are compared that a person takes for the same."""
    return unicodedata.normalize("NFC", name).casefold()
