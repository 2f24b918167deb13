"""A whole run: every stage of the method, one after the other."""

import logging

from reid_jax.data import pipeline
from reid_jax.train import loop, processes, rounds, stages

log = logging.getLogger(__name__)


def train(config, dataset, workdir, runner):
    """Trains every stage; returns {"method", "state", "step", "seconds"} of the last.

    config: ConfigDict or nested namespace; dataset: data.records.Dataset; runner: train.parallel.Runner. A
    run that was interrupted goes on from its newest checkpoint, stages that are done are passed over. Raises
    loop.Stopped after a SIGTERM or SIGINT.
    """
    names, result = stages.to_train(config), None
    with loop.StopSignal() as stop:
        for name in names:
            own, method, when = stages.build(config, dataset, name, runner.axis_name)
            stages.check_batch(own, runner)
            pipeline.check_kind(dataset, own.data)
            kind = rounds.RoundStage if method.phases else loop.Stage
            job = loop.Job(name, stages.of_config(config), config, own, method, when)
            stage = kind(job, dataset, workdir, runner, stop)
            if name != names[-1] and processes.from_first(stage.done):
                stage.checkpoints.close()
                log.info("stage %s is done", name)
                continue
            result = stage.run()
    return result
