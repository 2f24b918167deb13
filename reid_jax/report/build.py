"""Puts the report of a run together: read the workdir, fill the template, write WORKDIR/report.html."""

import contextlib
import datetime
import functools
import logging
import os
import tempfile
from pathlib import Path

import jinja2

import reid_jax
from reid_jax import places
from reid_jax.data import tfds_sets
from reid_jax.errors import ConfigError, DataError
from reid_jax.eval import store
from reid_jax.report import kept, lights, look, rankings, sections, strips, study, training
from reid_jax.report import run as runs

log = logging.getLogger(__name__)
SIMILARITIES = {"cosine": "cosine similarity", "euclidean": "negative distance"}  # by config.eval.distance


def build(workdir, *, data_root=None, queries=12, compare_with=""):
    """Writes WORKDIR/report.html and returns its path (str).

    workdir: folder of a finished run. data_root: folder that the stored picture paths are relative to;
    taken from the run when None. queries: number of retrieval strips. compare_with: workdir of another
    finished run, tested on the same images. Parts whose files are missing are replaced by a short line.
    Raises DataError when one of the workdirs holds no finished run or they do not fit together, ConfigError
    for a negative `queries`.
    """
    if queries < 0:
        raise ConfigError(f"config.report.queries is {queries}; it must be 0 or more")
    if data_root and not str(data_root).startswith(tfds_sets.PREFIX):
        data_root = places.local(data_root, "--data_root")
    run = runs.read(workdir)
    compared = read_compared(compare_with, run) if compare_with else None
    page = render(context(run, compared, data_root, queries))
    path = run.workdir / "report.html"
    write(path, page)
    return str(path)


def read_compared(workdir, run):
    """Run of a workdir to compare with; DataError when it was not tested on the images of `run`."""
    compared = runs.read(workdir, keep_features=False)
    check_alike(workdir, compared.config, compared.final, run.config, run.protocol)
    if run.last and compared.last and (strips.same_rows(compared.last, run.last) < 0).any():
        raise DataError(f"{workdir} was tested on other query images than {run.workdir}; give another run")
    return compared


def check_alike(workdir, theirs, final, mine, protocol):
    """DataError when the run in workdir was not tested as one of config `mine` and this protocol is.

    theirs, final: its config and its eval/final.json.
    """
    tested_by = final.get("protocol", "market")
    if not final.get("nets"):
        raise DataError(f"{workdir} has no test set of its own: there is nothing to compare with")
    if tested_by != protocol:
        raise DataError(
            f"{workdir} was tested by the protocol {tested_by}, this run by {protocol}; give a run that was "
            "tested by the same"
        )
    drawn = str(mine.get("data", {}).get("name", "")).startswith("synthetic")
    for name in ("data.name", "eval.split", *(["data.synthetic"] if drawn else [])):
        section, field = name.split(".")
        here, there = (config.get(section, {}).get(field) for config in (mine, theirs))
        if here != there:
            raise DataError(
                f"{workdir} cannot be compared with: config.{name} is {there!r} there and {here!r} here; "
                "give a run that was tested on the same images"
            )


def check_compared(workdir, config, protocol):
    """Before training: the errors that `read_compared` would raise after it, as far as they can be known.

    config: a nested dict, protocol: by which the run will be tested. A run that is not finished is warned of.
    """
    workdir = places.local(workdir, "config.report.baseline")
    theirs = runs.read_config(workdir)
    if not os.path.exists(os.path.join(workdir, "eval", "final.json")):
        log.warning("config.report.baseline=%s is not finished; the report needs it finished", workdir)
        return
    check_alike(workdir, theirs, runs.read_final(workdir), config, protocol)


def context(run, compared, data_root, queries):
    """Everything the template shows."""
    levels = sections.chance(run)
    names = [str(n) for n in run.summary.get("camera_names", [])]
    eval_charts, eval_nets = training.evaluations(run, levels)
    label_charts, label_phases = training.labels(run)
    cmc, cmc_labels = rankings.cmc(run, compared)
    distance = run.config.get("eval", {}).get("distance", "cosine")
    return {
        "run": run,
        "data_set": sections.data_set(run),
        "compared": compared.name if compared else None,
        "verdict": sections.verdict(run, compared),
        "tiles": sections.tiles(run, compared, levels),
        "differences": sections.differences(run, compared),
        "drawn": sections.drawn(run, compared),
        "facts": sections.facts(run),
        "choice": sections.choice_of_checkpoint(run),
        "versions": sections.versions(run),
        "curves": training.curves(run),
        "evaluations": eval_charts,
        "eval_nets": eval_nets,
        "label_charts": label_charts,
        "label_phases": label_phases,
        "rated": any({"ari", "precision"} & line.keys() for line in run.labels),
        "cmc": cmc,
        "cmc_labels": cmc_labels,
        "figure_names": [title for title, _ in sections.FIGURES.values()],
        "networks": sections.networks(run, compared),
        "sets": sections.other_sets(run),
        "kept": kept.build(run),
        "lights": lights.build(run, names, data_root),
        "table1": sections.table1(run, compared),
        "strips": retrieval(run, compared, data_root, queries),
        "pairs": rankings.pairs(run, compared),
        "similarity": SIMILARITIES.get(distance, "similarity"),
        "tsne": rankings.tsne(run.last.features, names) if run.last else None,
        "camera_tsne": camera_tsne(run, names),
        "study": study.build(run),
        "looks": look.build(os.path.join(run.workdir, "eval", "look.npz"), run.titles["look"]),
        "cameras": rankings.cameras(run.last, distance, names) if run.last and not run.single else None,
        "settings": sections.settings(run.config, run.titles["defaults"]),
    }


def camera_tsne(run, names):
    """t-SNE of the camera network's features, None when the run kept none."""
    path = os.path.join(run.workdir, "eval", "camera.npz")
    if not os.path.exists(path):
        return None
    try:
        return rankings.tsne(store.load(path), names)
    except DataError as e:
        run.notes["eval/camera.npz"] = str(e)
        return None


def retrieval(run, compared, data_root, queries):
    """The retrieval strips and what is said around them, None without stored features."""
    if run.last is None:
        return None
    before, before_name = run.first, "first evaluation"
    if compared and compared.last:
        before, before_name = compared.last, compared.name
    frames = strips.read_frames(os.path.join(run.workdir, "eval", "frames.npz"))
    shown = queries, run.data_root(data_root), frames, run.pixels
    items, thumbs, counts = strips.build(run.last, before, *shown)
    return {
        "strips": items,
        "uris": thumbs.uris,
        "missing": thumbs.missing,
        "counts": counts,
        "before": before_name if before else None,
        "tracklets": bool(frames),
    }


@functools.cache
def templates():
    """Compiled once; what comes from files is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("reid_jax", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["camera"] = sections.camera
    return environment


def render(values, template="template.html.j2"):
    """A page; everything that comes from files is escaped."""
    always = {"today": datetime.date.today().isoformat(), "version": reid_jax.__version__}
    return templates().get_template(template).render(always | values)


def write(path, page):
    """Writes the file so that a reader sees the old one or the whole new one."""
    data, temporary = page.encode("utf-8", errors="backslashreplace"), None
    try:
        with tempfile.NamedTemporaryFile(dir=Path(path).parent, prefix=".report-", delete=False) as f:
            temporary = f.name
            f.write(data)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as e:
        raise DataError(f"cannot write {path}: {e.strerror or e}; free space or allow it") from e
    finally:
        if temporary is not None:
            with contextlib.suppress(FileNotFoundError):
                os.remove(temporary)
