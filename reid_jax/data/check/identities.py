"""The labels of a copy: counts, names, identities on both sides, who can be trained and tested on."""

from reid_jax.data import testable
from reid_jax.data.check.problems import Problem


def wrong_counts(layout, counts):
    """Published counts that were not found."""
    wrong = [
        f"{counts.get(k, 0)} {k} instead of {n}" for k, n in layout.counts.items() if counts.get(k, 0) != n
    ]
    return [Problem("count", "counts differ from the published ones", wrong)] if wrong else []


def wrong_names(strange):
    """Entries that do not follow the layout."""
    text = f"{len(strange)} entries do not follow the layout's names"
    return [Problem("name", text, list(strange))] if strange else []


def overlap(layout, splits):
    """Identities in train and in test."""
    test = {r.pid for s, records in splits.items() if s != "train" for r in records}
    train = {r.pid for r in splits["train"] if r.pid >= 0} - ({0} if layout.distractors else set())
    both = sorted(train & test)
    text = f"{len(both)} identities are in train and in test"
    return [Problem("overlap", text, [f"id {pid}" for pid in both])] if both else []


def unmatched(splits, protocol):
    """A test set in which no query has a match."""
    query, gallery = splits["query"], splits["gallery"]
    flag = f"--config.eval.protocol={testable.ALL_PAIRS} (here --protocol={testable.ALL_PAIRS})"
    text = testable.impossible(query, gallery, protocol, flag) if query or gallery else ""
    return [Problem("match", text, [])] if text else []


def people(splits, protocol):
    """Notes on who can be trained and tested on."""
    train, query, gallery = (splits[s] for s in ("train", "query", "gallery"))
    notes, unknown = [], sum(r.pid < 0 for r in train)
    if unknown:
        notes.append(
            f"nobody is known on {unknown} of {len(train)} training pictures: methods that make their own "
            "labels train on them, the others leave them out"
        )
    if train and len({r.camid for r in train}) == 1:
        notes.append("all training pictures come from one camera; methods that compare cameras learn nothing")
    if not train:
        notes.append("there is nothing to train on; it can be tested on (config.eval.also)")
    if not query and not gallery:
        text = "there is nobody to test on: a run has no figures (config.eval.also names other sets)"
        return [*notes, text]
    counts = testable.matches(query, gallery, protocol)
    lonely = int((counts == 0).sum())
    if 0 < lonely < len(query):
        notes.append(f"{lonely} of {len(query)} queries have no match in the gallery and do not count")
    return notes
