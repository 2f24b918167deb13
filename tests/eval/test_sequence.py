"""Figures of sets learnt one after another, by hand."""

import json

from reid_jax.eval import sequence

TRAINED = {"a": ["a"], "b": ["b"], "c": ["c"]}


def figures(**means):
    return {name: {"mAP": m, "rank1": m + 1} for name, m in means.items()}


TABLE = {
    "a": figures(a=60, b=10, c=8, x=5),
    "b": figures(a=40, b=50, c=9, x=6),
    "c": figures(a=30, b=55, c=70, x=9),
}


def test_averages_by_hand():
    first, last = (sequence.averages(TRAINED, TABLE, stage) for stage in ("a", "c"))
    assert first == {
        **{"seen/mAP": 60, "unseen/mAP": 5, "forgetting/mAP": 0},
        **{"seen/rank1": 61, "unseen/rank1": 6, "forgetting/rank1": 0},
    }
    assert last["seen/mAP"] == (30 + 55 + 70) / 3 and last["unseen/rank1"] == 10
    assert last["forgetting/mAP"] == (30 - 5) / 2  # a lost 30, b won 5
    assert sequence.forgotten(TRAINED, TABLE, "b", "mAP") == {"a": 20}
    assert sequence.seen(TRAINED, "b") == ["a", "b"] and sequence.unseen(TRAINED, TABLE["a"]) == ["x"]
    joint = sequence.averages({"all": ["a", "b"]}, {"all": TABLE["c"]}, "all")
    assert (joint["seen/mAP"], joint["unseen/mAP"], joint["forgetting/mAP"]) == (42.5, 39.5, 0)


def test_files_of_a_run(tmp_path):
    """The first set's figures stand at the top of a file; a stage that is not finished is left out."""
    for stage in ("a", "b"):
        (tmp_path / "eval" / stage).mkdir(parents=True)
    final = {"net": "n", "nets": {"n": TABLE["a"]["a"], "m": {}}}
    final["sets"] = {s: {"nets": {"n": f}} for s, f in TABLE["a"].items() if s != "a"}
    (tmp_path / "eval" / "a" / "final.json").write_text(json.dumps(final))
    (tmp_path / "eval" / "b" / "final.json").write_text("[")
    assert sequence.read(tmp_path, ["a", "b", "c"], "a") == {"a": TABLE["a"]}
