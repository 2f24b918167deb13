"""--dry-run where all is there, and what it says where not; tests/test_papers.py tries all commands."""

import json

import pytest

from reid_jax import cli, dry
from reid_jax import main as training
from reid_jax.commands import compare, cross, embed
from reid_jax.data import __main__ as data
from reid_jax.data import synthetic
from reid_jax.errors import MISSING, ConfigError
from reid_jax.fields import plain

SMOKE = "--config=configs/baseline.py:smoke"


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    """A folder with a small set in Market-1501's layout, a weight file, and a run that is begun."""
    root = tmp_path_factory.mktemp("there")
    sizes = dict(train_ids=3, test_ids=2, cameras=2, images=2, height=32, width=16, distractors=0, junk=0)
    synthetic.generate(str(root), **sizes, progress=False)
    (root / "resnet50.pth").write_bytes(b"weights")
    (root / "run").mkdir()
    config = plain(cli.config_of_flags([SMOKE]))
    (root / "run" / "config.json").write_text(json.dumps(config))
    return root


def flags(root, *more):
    """Flags of a training that has all it needs."""
    fields = ("data.name=market1501", f"data.root={root}", f"init.weights={root}/resnet50.pth", *more)
    return [SMOKE, *(f"--config.{field}" for field in fields)]


def test_everything_is_there(there, tmp_path, capsys):
    config = cli.config_of_flags(flags(there, f"eval.also=again=market1501:{there}"))
    workdir = tmp_path / "w"
    assert training.dry_run(config, "configs/baseline.py:smoke", str(workdir)) == 0
    said = capsys.readouterr().out
    assert "would train 1 row x 1 seed = 1 run, 0 of them finished" in said
    assert "12 steps; batches of 2 x 4" in said and f"into {workdir}" in said
    assert "3 identities, 12 in train, 4 queries" in said and "1 split, 4 queries" in said
    assert said.endswith("everything is there\n") and not workdir.exists()


def test_what_is_missing_is_told_together(there, tmp_path, capsys):
    more = (
        "init.weights=nowhere.pth",
        "model.backbone=resnet50",
        f"data.points={there}/none",
        "eval.also=viper:/x",
    )
    assert training.dry_run(cli.config_of_flags(flags(there, *more)), "a", str(tmp_path / "w")) == MISSING
    said = capsys.readouterr().out
    assert "nowhere.pth is not there; ImageNet's for resnet50 are torchvision's resnet50-0676ba61.pth" in said
    assert "missing: config.data.points, test on viper:/x, weights" in said
    assert "Terms: " in said and "data list viper" in said


def test_runs_that_are_needed(there, tmp_path, capsys):
    run, targets = str(there / "run"), ["--targets", f"market1501:{there}"]
    output = ["--workdir", str(tmp_path / "w"), "--dry-run"]
    assert cross.main([run, *targets, *output]) == MISSING  # begun, not finished
    assert f"run {run}: MISSING: {run} is not finished" in capsys.readouterr().out
    assert embed.main([run, f"market1501:{there}", "--output", str(tmp_path / "x.npz"), "--dry-run"]) == 0
    assert "begun, baseline on synthetic" in capsys.readouterr().out
    (there / "run" / "summary.json").write_text("{}")
    assert cross.main([run, *targets, *output]) == 0
    assert "4 query" in capsys.readouterr().out and not any(tmp_path.iterdir())


def test_finished_runs_are_counted(there, tmp_path, capsys):
    done = tmp_path / "w" / "A" / "seed-1"
    done.mkdir(parents=True)
    (done / "summary.json").write_text("{}")
    command = ["--workdir", str(tmp_path / "w"), "--seeds", "0,1", "A=configs/cap.py:smoke", "--dry-run"]
    assert compare.main(command) == 0
    said = capsys.readouterr().out
    assert "1 row x 2 seeds = 2 runs, 1 of them finished" in said and "2 rounds" in said


def test_sheets_and_mistakes(there, capsys):
    sheet = ["sheet", "--root", str(there), "--out", "sheet.png", "--dry-run", "--name"]
    assert data.main([*sheet, "market1501"]) == 0 and data.main([*sheet, "msmt17"]) == MISSING
    assert "signed release agreement" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="must be one of 'market1501'"):  # a mistake is not a missing set
        dry.of_set("markt", str(there))
