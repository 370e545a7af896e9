"""An experiment without torch that workers import by name: short epochs, each noted in `log` and
checkpointed."""

import json
import os
import time
from pathlib import Path

from gfo_lab.experiments.job import Experiment, register

from gfo.core.files import write_atomically

EPOCHS = 4
log = ""  # the folder of notes; a test says which
epoch_s = 0.004


def configs(dataset, method, profile):
    return [{"log": log, "epoch_s": epoch_s}]


def run(job):
    at = job.checkpoint
    done = json.loads(at.read_text()) if at.exists() else []
    while len(done) < EPOCHS:
        note = Path(job.config["log"]) / f"s{job.seed}_e{len(done)}_{time.time_ns()}"
        note.write_text(str(os.getpid()))
        time.sleep(job.config["epoch_s"])
        done = [*done, job.seed * 10 + len(done)]
        text = json.dumps(done)
        write_atomically(at, lambda temporary, text=text: temporary.write_text(text))
    return {"accuracy": 0.5, "trace": done, "pid": os.getpid()}


TINY = register(
    Experiment(
        name="tiny",
        about="counts to four",
        datasets=("mnist", "digits"),
        methods=("random",),
        configs=configs,
        run=run,
    )
)
