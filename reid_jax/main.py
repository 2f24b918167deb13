"""Trains, resumes, evaluates and reports: `python -m reid_jax.main --config=configs/METHOD.py:market`.

Modes: "train" goes on from the newest checkpoint of --workdir, or starts; at the end it evaluates and
writes WORKDIR/report.html. "evaluate" tests the last (or --checkpoint) checkpoint of --workdir; the "best"
one was chosen by its figures on config.eval.split: on the test identities it looks better than it is.

Exit codes: 0 finished; 2 something the user has to change, running again is no use; 3 something that
--dry_run has found missing; 75 stopped on request (SIGTERM, SIGINT) and saved, the same command goes on;
anything else is a failure after which the same command may be tried again, and goes on from the newest
checkpoint.
"""

import contextlib
import logging
import os
import platform
import time

import jax
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from reid_jax import cli, hardware, places
from reid_jax.errors import STOPPED, ConfigError

log = logging.getLogger("reid_jax")
EXAMPLES = (
    "python -m reid_jax train --config=configs/METHOD.py:market --config.data.root=DIR --workdir=runs/a",
    "python -m reid_jax train --config=configs/METHOD.py:market --config.data.root=DIR --dry_run",
    "python -m reid_jax train --config=configs/METHOD.py:market --workdir=runs/a --mode=evaluate",
)
CONFIG = config_flags.DEFINE_config_file("config", None, "Config file and variant: configs/METHOD.py:VARIANT")
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder for checkpoints, metrics and the report (default: runs/CONFIG_VARIANT)."
)
MODE = flags.DEFINE_enum("mode", "train", ["train", "evaluate"], "What to do.")
CHECKPOINT = flags.DEFINE_string(
    "checkpoint", "latest", "Mode evaluate: latest | best | a step number of --workdir."
)
PROFILE = flags.DEFINE_string(
    "profile", None, "START:STOP: steps that jax.profiler traces into WORKDIR/profile (config.train.profile)."
)
DRY_RUN = flags.DEFINE_boolean(
    "dry_run", False, "Tell what would run and what is missing, and stop (exit code 3 where something is)."
)
flags.DEFINE_alias("dry-run", "dry_run")
DISTRIBUTED = flags.DEFINE_boolean(
    "distributed",
    None,
    "Join the other processes of this run, as Slurm, Open MPI, a TPU pod or Kubernetes tell them. Default: "
    "yes where --coordinator is given or srun or mpirun started several.",
)
COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0, where nothing tells the processes of each other."
)
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "With --coordinator: how many there are.")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "With --coordinator: which one this is, from 0.")
JOIN_TIMEOUT = flags.DEFINE_integer("join_timeout", 300, "Seconds to wait for all processes to join.")
LOST_TIMEOUT = flags.DEFINE_integer(
    "lost_timeout", 60, "Seconds after which a process that is not heard of is lost, which ends the others."
)


def main(argv):
    """Entry point after the flags are parsed."""
    if DRY_RUN.value:
        config, workdir = asked(argv)
        return dry_run(config, config_flags.get_config_filename(flags.FLAGS["config"]), workdir, MODE.value)
    config, workdir, devices = prepare(argv)
    from reid_jax.train import processes, signals
    from reid_jax.train import run as runs

    dataset, began, code = load(config, workdir), time.monotonic(), 0
    if MODE.value == "evaluate":
        evaluate(config, dataset, workdir, devices)
    else:
        log.info("%s", describe(dataset, config))
        processes.from_first(lambda: check_report(config, dataset))
        try:
            result = runs.train(config, dataset, workdir, devices)
            finish(config, dataset, workdir, devices, result, time.monotonic() - began)
        except signals.Stopped as stop:
            stage, step = stop.args
            text = "stopped on request at step %d of stage %r, saved; the same command goes on"
            log.info(text, step, stage)
            code = STOPPED
    processes.leave()
    return code


def asked(argv):
    """(config, workdir) of the flags."""
    absl_logging.set_verbosity(absl_logging.WARNING)  # orbax tells of every file it writes
    if len(argv) > 1:
        raise ConfigError(f"unexpected argument {argv[1]!r}; fields are set as --config.data.root=DIR")
    if CONFIG.value is None:
        from reid_jax import methods

        known = ", ".join(methods.names())
        raise ConfigError(f"--config is needed: configs/METHOD.py:synthetic, say; METHOD is one of {known}")
    workdir = places.in_utf8(places.written(WORKDIR.value or default_workdir(), "--workdir"), "--workdir")
    check_paths(CONFIG.value)
    return CONFIG.value, workdir


def dry_run(config, file, workdir, mode="train"):
    """--dry_run: tells what would be trained or tested and what is missing; returns the exit code."""
    from reid_jax import dry

    if mode == "evaluate":
        return dry.tell([f"test {workdir}"], [dry.of_run(workdir), *dry.of_sets(config)])
    would = dry.trainings({config.method: (file, config)}, [config.seed], lambda label, seed: workdir)
    return dry.tell(would, dry.of_config(config))


def prepare(argv):
    """(config, workdir, Devices), after all processes have joined and what can be known by now is checked."""
    config, workdir = asked(argv)
    cli.prepare_jax()
    join()
    from reid_jax.fields import plain
    from reid_jax.train import checkpoint, preflight, processes, stages
    from reid_jax.train.devices import Devices

    hardware.start()
    config.train.profile = PROFILE.value or config.train.profile
    settings = plain(config)
    processes.check_same_config(settings)
    devices = Devices()
    if MODE.value == "evaluate":
        checkpoint.check_config(workdir, settings)
    else:
        for stage_config in (stages.settings(config, name) for name in stages.to_train(config)):
            preflight.check_fields(stage_config)
            stages.check_batch(stage_config, devices)
        processes.from_first(lambda: checkpoint.claim_workdir(workdir, settings))
        processes.check_shared(os.path.join(workdir, "config.json"))
    return config, workdir, devices


def check_paths(config):
    """ConfigError for a field that names a file or folder on another machine, before anything is done."""
    for field in ("data.csv", "init.weights", "init.run", "report.baseline"):
        section, name = field.split(".")
        places.local(config[section][name], f"config.{field}")


def join():
    """Joins the other processes of this run, if there are to be any; they log warnings only."""
    from reid_jax.train import processes

    settings = COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value
    wanted = DISTRIBUTED.value
    if wanted is None:
        wanted = settings != (None, None, None) or processes.started_by_a_launcher()
    if not wanted:
        return
    processes.join(*settings, JOIN_TIMEOUT.value, LOST_TIMEOUT.value)
    if not processes.first():
        log.setLevel(logging.WARNING)
        absl_logging.set_verbosity(absl_logging.ERROR)


def load(config, workdir):
    """The data set, first on process 0, which may have to write it; the same one on all."""
    from reid_jax import methods
    from reid_jax.data import datasets
    from reid_jax.train import processes, stages

    labels = methods.find(config.method).LABELS
    rules = dict(seed=config.seed, labels=labels, also=config.eval.also)
    rules["cameras"] = stages.reads_cameras(config)
    dataset = processes.first_then_all(lambda: datasets.load(config.data, workdir, **rules))
    processes.check_same_data(dataset)
    return dataset


def check_report(config, dataset):
    """Errors for a run to compare with in the report that cannot be compared with."""
    if config.report.enabled and config.report.baseline:
        from reid_jax import report
        from reid_jax.fields import plain
        from reid_jax.train import evaluate

        if "" not in evaluate.tests_of(config, dataset):
            raise ConfigError(
                f"config.report.baseline is {config.report.baseline!r}, but this run has no test set to be "
                "compared on: leave it empty"
            )
        protocol = evaluate.choose_protocol(config, dataset.protocol)
        report.check_compared(config.report.baseline, plain(config), protocol)


def default_workdir():
    """configs/METHOD.py:market -> runs/METHOD_market."""
    path, _, variant = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    name = os.path.splitext(os.path.basename(path))[0]
    return os.path.join("runs", f"{name}_{variant}" if variant else name)


def finish(config, dataset, workdir, devices, result, wall_seconds):
    """Writes WORKDIR/summary.json and the report of a finished run."""
    from reid_jax.train import checkpoint, processes, stages

    if not processes.first():
        return
    summary = {
        "seconds": result["seconds"],
        "wall_seconds": wall_seconds,
        "steps": result["step"],
        "parameters": stages.parameters(result["method"]),
        "images_per_second": result["images_per_second"],
        "data_root": dataset.root,
        "camera_names": list(dataset.camera_names),
        "processes": jax.process_count(),
        "devices": hardware.described(devices.devices),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores",
        "versions": cli.versions(),
    }
    checkpoint.write_json(os.path.join(workdir, "summary.json"), summary)
    if config.report.enabled:
        write_report(config, dataset, workdir)
    log.info("checkpoints, metrics.jsonl and eval/ are in %s", workdir)


def write_report(config, dataset, workdir):
    """WORKDIR/report.html; a failure here does not lose the run."""
    from reid_jax import report

    path = report.build(
        workdir,
        data_root=dataset.root,
        queries=config.report.queries,
        compare_with=config.report.baseline,
    )
    log.info("report: %s", path)


def evaluate(config, dataset, workdir, devices):
    """Evaluates one checkpoint of workdir; prints the figures, writes WORKDIR/evaluate/.

    Of the last stage that has one, or of config.train.only.
    """
    from reid_jax.train import evaluate as evaluation
    from reid_jax.train import preflight, processes, restore, stages

    name, checkpoints = stages.last_begun(workdir, config.train.only)
    with contextlib.closing(checkpoints):
        step = checkpoints.choose(CHECKPOINT.value)
        meta = checkpoints.read_meta(step)  # the data that trained it may have changed since
        info = restore.info_of(meta, workdir, devices.axis_name)
        stage_config, method = stages.build(config, name, info)
        preflight.check_fields(stage_config)
        dataset = preflight.tested([stage_config], dataset, method.study is not None)
        state, _ = checkpoints.restore(stages.state_shapes(method), step)
        last, best = checkpoints.steps()[-1], checkpoints.best()
    state = devices.replicate(state)
    evaluator = evaluation.Evaluator(stage_config, dataset, method, devices)
    if not evaluator.tests:
        raise ConfigError(f"{dataset.name} has nobody to test on: name another set with config.eval.also")
    results = evaluator(state)
    study = evaluation.study(stage_config, dataset, method, devices)
    measured = study(state) if study else None
    if not processes.first():
        return
    which = "last" if step == last else "best" if step == best else str(step)
    left_out = evaluator.left_out
    written = evaluation.save_final(
        stage_config, workdir, step, results, left_out, folder="evaluate", checkpoint=which
    )
    for (test, net), figures in written.items():
        print(evaluation.line(" ".join(filter(None, (f"step {step}", net, test))), figures))
        for text in evaluation.details(figures):
            print(text)
    if measured:
        keep_study(os.path.join(workdir, "evaluate"), step, *measured)
    log.info("figures and features: %s", os.path.join(workdir, "evaluate"))


def keep_study(folder, step, figures, arrays):
    """Prints the figures of a study; writes them to FOLDER/study.json, beside its arrays and grids."""
    from reid_jax.train import checkpoint, pictures

    for name, value in figures.items():
        print(f"{name} {value:.4g}")
    pictures.save_study(folder, step, arrays)
    checkpoint.write_json(os.path.join(folder, "study.json"), figures)


def describe(dataset, config):
    """One line about a data set, as the method of the config sees it."""
    from reid_jax import methods
    from reid_jax.train import stages

    unit = "tracklets" if dataset.kind == "video" else "images"
    blind = methods.find(config.method).LABELS == "none"
    people = "identities hidden" if blind else f"{dataset.num_train_pids} identities"
    unseen = blind and not stages.reads_cameras(config)
    cameras = "cameras hidden" if unseen else f"{dataset.num_cams} cameras"
    return (
        f"{dataset.name} ({dataset.root}): train {len(dataset.train)} {unit}, {people}, {cameras}; "
        f"query {len(dataset.query)}, gallery {len(dataset.gallery)}"
    )


def parse_flags(argv):
    """absl's parser with errors that name the flag or field, and a help that ends with examples."""
    if {"--help", "-help", "-h"} & set(argv[1:]):
        app.usage(shorthelp=True, writeto_stdout=True, detailed_error=cli.examples(EXAMPLES), exitcode=0)
    return cli.parse_absl(argv, flags.FLAGS)


def run(argv=None):
    """Parses flags, runs main, turns errors a user can act on into one message and exit code 2."""
    cli.show_log()
    cli.silence_aftermath()
    try:
        app.run(main, argv=argv, flags_parser=parse_flags)
    except (Exception, KeyboardInterrupt) as error:
        from reid_jax.train import processes

        processes.fail(cli.report_error(error))


if __name__ == "__main__":
    run()
