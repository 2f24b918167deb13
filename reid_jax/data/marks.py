"""What a run was trained on, in few bytes, so that it is noticed when it goes on with something else."""

import base64
import zlib

import numpy as np

from reid_jax.data.records import extras

_FORMS = {"picture": "<u4", "identity": "<i4", "camera": "<i4"}  # of what is kept of a training row


def of(dataset):
    """Marks of the training rows as training sees them (hidden identities are -1), fit for JSON.

    {"pictures", "identities", "cameras": numbers of them, "rows": checksum of the relative path, identity and
    camera of every row in order, compressed, "labels": checksum of attributes and extra labels}. They do not
    change when the data set is moved.
    """
    roots = sorted(dataset.roots or (dataset.root,), key=len, reverse=True)
    columns = {
        "picture": [zlib.crc32(names(r, roots).encode(errors="surrogateescape")) for r in dataset.train],
        "identity": [r.pid for r in dataset.train],
        "camera": [r.camid for r in dataset.train],
    }
    packed = b"".join(np.array(columns[k], form).tobytes() for k, form in _FORMS.items())
    return {
        "pictures": len(dataset.train),
        "identities": dataset.num_train_pids,
        "cameras": dataset.num_cams,
        "rows": base64.b64encode(zlib.compress(packed)).decode(),
        "labels": labels(dataset),
    }


def names(record, roots):
    """Paths of a record's pictures relative to that of the roots which they are below, one a line."""
    root = next((r for r in roots if record.path.startswith(f"{r}/")), "")
    return "\n".join(path.removeprefix(root).lstrip("/") for path in record.frames or (record.path,))


def labels(dataset):
    """CRC-32 of the attributes and of the labels that all training records have."""
    tables = {**extras(dataset.train), "attributes": dataset.attributes}
    crc = 0
    for name, table in sorted(tables.items()):
        if table is not None:
            crc = zlib.crc32(np.ascontiguousarray(table).tobytes(), zlib.crc32(name.encode(), crc))
    return crc


def rows(marks):
    """{"picture", "identity", "camera": i64[N]} of marks."""
    packed, count = zlib.decompress(base64.b64decode(marks["rows"])), marks["pictures"]
    return {
        name: np.frombuffer(packed, form, count, 4 * count * i).astype(np.int64)
        for i, (name, form) in enumerate(_FORMS.items())
    }


def differences(old, new):
    """Lines that say how the training data of marks `new` differ from those of `old`; [] when they do not."""
    a, b = rows(old), rows(new)  # the text of the same rows depends on the version of zlib
    if all(np.array_equal(a[name], b[name]) for name in a) and old["labels"] == new["labels"]:
        return []
    common, i, j = np.intersect1d(a["picture"], b["picture"], return_indices=True)
    added, gone = (int((~np.isin(x["picture"], common)).sum()) for x in (b, a))
    lines = [f"pictures: {old['pictures']} there, {new['pictures']} now ({added} new, {gone} gone)"]
    for name, plural in (("identity", "identities"), ("camera", "cameras")):
        changed = a[name][i] != b[name][j]
        who = len(np.unique(a[name][i][changed]))
        text = f"{plural}: {old[plural]} there, {new[plural]} now"
        lines.append(text + f" ({who} differ, on {changed.sum()} pictures)" * bool(who))
    if not added and not gone and not np.array_equal(a["picture"], b["picture"]):
        lines.append("the pictures come in another order")
    if old["labels"] != new["labels"]:
        lines.append("attributes or other labels differ")
    return lines
