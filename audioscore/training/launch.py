"""Where a training runs: in this process, in several processes of this machine, or on the machines of a cluster.

A process that is started here gets a `TrainingRequest` as a JSON file, whose path is in the environment variable
AUDIOSCORE_TRAINING_REQUEST.
"""

import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from audioscore.config import Config, Plan, parse_config
from audioscore.errors import AudioscoreError, describe_os_error
from audioscore.scoring.trained_plan import TrainedPlan, read_trained

PROGRAM = "audioscore.training"
REQUEST_FILE = "AUDIOSCORE_TRAINING_REQUEST"


class ProcessesFailed(AudioscoreError):
    """A training process failed; it has printed the reason on standard error."""


@dataclass(frozen=True)
class TrainingRequest:
    """What to train, on which data, and where to write it: the same for every process of a training.

    Args:
        out: a folder for each plan is written below it; with `single`, the one plan is written to it.
        data: a sorted data folder, whose features are extracted into `store`; or
        index, features: the folders that the sort and extraction steps of a pipeline wrote.
        data_digest: the version of the data, with `index`; "unknown" if None. With `data` it is computed.
        mlflow: experiment to log learning curves to.
        processes: number of processes to start with torchrun; None trains in the process that reads the request.
    """

    config: Config
    plans: tuple[Plan, ...]
    out: Path
    code_revision: str
    data: Path | None = None
    store: str | Path | None = None
    index: Path | None = None
    features: Path | None = None
    single: bool = False
    data_digest: str | None = None
    device: str = "auto"
    resume: bool = False
    mlflow: str | None = None
    processes: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the values as JSON; `from_json` restores them."""
        values = {name: str(value) if isinstance(value, Path) else value for name, value in vars(self).items()}
        return {**values, "config": self.config.model_dump(mode="json", exclude_none=True)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "TrainingRequest":
        """Restore a request. Raises UsageError if its configuration is not valid."""
        paths = {name: Path(values[name]) for name in ("out", "data", "index", "features") if values[name] is not None}
        config = parse_config(values["config"], "training request")
        return cls(**{**values, **paths, "plans": tuple(values["plans"]), "config": config})


def print_error(error: AudioscoreError | OSError) -> int:
    """Print an error of this process on standard error; return the exit code."""
    if isinstance(error, OSError):
        sys.stderr.write(f"error: {describe_os_error(error)}\n")
        return AudioscoreError.exit_code
    sys.stderr.write(f"error: {error}\n")
    return error.exit_code


def launch_plan(
    plan: Plan,
    index_folder: Path,
    features_folder: Path,
    target: Path,
    config: Config,
    *,
    data_digest: str,
    code_revision: str,
    device: str = "auto",
    resume: bool = False,
) -> TrainedPlan:
    """Train a plan with the launcher of the configuration, `training.launcher`; used by a pipeline's training step.

    On a cluster an existing job is always continued, with `resume` or without.

    Raises: what `train_plan` raises; ProcessesFailed if torchrun's processes fail; what `train_on_cluster` raises.
    """
    request = TrainingRequest(
        config, (plan,), target, code_revision, index=index_folder, features=features_folder, single=True,
        data_digest=data_digest, device=device, resume=resume,
    )  # fmt: skip
    if config.training.resolved_launcher == "trainjob":
        from audioscore.training.trainjob.job import train_on_cluster

        return train_on_cluster(request)
    if config.training.resolved_launcher == "inproc":
        from audioscore.training.train import train_plans

        train_plans(request)
    else:
        train_together(request, config.training.processes)
    return read_trained(target)


def train_together(request: TrainingRequest, processes: int) -> None:
    """Train in several processes of this machine, and wait for them.

    Raises: ProcessesFailed, with the exit code of the first process that failed; it has printed the reason.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = _write_request(replace(request, processes=processes), Path(folder))
        # torchrun replaces the signal handlers of its process, so it runs in a process of its own.
        done = subprocess.run([sys.executable, "-m", PROGRAM], env={**os.environ, REQUEST_FILE: str(file)})
    if code := done.returncode:
        failed = ProcessesFailed(f"training with {processes} processes failed; the reason is printed above.")
        failed.exit_code = code if code > 0 else 128 - code  # the code that shells give to a signal
        raise failed


def _write_request(request: TrainingRequest, folder: Path) -> Path:
    file = folder / "request.json"
    file.write_text(json.dumps(request.to_json()), encoding="utf-8")
    return file


def read_request() -> TrainingRequest | None:
    """Return the request that this process was started with; None if a user started it."""
    file = os.environ.get(REQUEST_FILE)
    return None if file is None else TrainingRequest.from_json(json.loads(Path(file).read_text(encoding="utf-8")))


def torchrun(request: TrainingRequest, processes: int, rendezvous: Sequence[str] = ("--standalone",)) -> int:
    """Run torchrun in this process: start the training processes, and stop all of them if one fails.

    Unlike the program torchrun it prints no report about a failed process, which has printed the reason itself.

    Args:
        rendezvous: torchrun's options about other machines; the environment variables PET_* complete them.
    Returns: the exit code of the first process that failed, or 0.
    """
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # By default torchrun gives each process one thread, and prints a warning about it.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder:
        os.environ[REQUEST_FILE] = str(_write_request(replace(request, processes=None), Path(folder)))
        try:
            run.run(run.parse_args([*rendezvous, "--nproc-per-node", str(processes), "-m", PROGRAM]))
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            if failure.exitcode < 0:
                sys.stderr.write(f"error: process {rank} of {processes} was ended by signal {-failure.exitcode}.\n")
                return AudioscoreError.exit_code
            return int(failure.exitcode)
        except SignalException as stopped:
            return 128 + int(stopped.sigval)
    return 0
