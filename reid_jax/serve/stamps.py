"""Stamps of a gallery's rows: when they were written, the checksum of an entry, an audit row's hash."""

import hashlib
import json
import time
import zlib


def now():
    """Microseconds since 1970, UTC."""
    return time.time_ns() // 1000


def checksum(key, person, camera, moment, tracklet, vector):
    """CRC-32 of what readers load of an entry; vector: its bytes."""
    return zlib.crc32(vector, zlib.crc32(f"{key}|{person!r}|{camera!r}|{moment}|{tracklet!r}".encode()))


def chained(last, row):
    """Hash of an audit row (time, actor, action, detail) behind the hash `last`."""
    return hashlib.sha256(json.dumps([last, *row]).encode()).hexdigest()
