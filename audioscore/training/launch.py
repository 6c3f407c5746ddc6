"""Where a training runs: in this process, in several of this machine under torchrun, or on a cluster's machines."""

import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from audioscore.config import Plan
from audioscore.errors import AudioscoreError
from audioscore.scoring.trained_plan import TrainedPlan, read_trained

if TYPE_CHECKING:
    from audioscore.config import Config

PROGRAM = "audioscore.training"


class ProcessesFailed(AudioscoreError):
    """A process of a training failed, and has said why on standard error."""


def launch_plan(
    plan: Plan,
    index_folder: Path,
    features_folder: Path,
    target: Path,
    config: "Config",
    *,
    data_digest: str,
    code_revision: str,
    device: str = "auto",
    resume: bool = False,
) -> TrainedPlan:
    """`train_plan`, by `training.launcher`.

    Raises what `train_plan` raises; where torchrun's processes fail, ProcessesFailed: they have said why; on a cluster
    what `train_on_cluster` raises, which always goes on where its job stands, with `resume` or without.
    """
    if config.training.started_by == "trainjob":
        from audioscore.training.trainjob.job import train_on_cluster
        from audioscore.training.trainjob.pod import Asked

        asked = Asked(plan, index_folder, features_folder, config, data_digest, code_revision, device)
        return train_on_cluster(asked, target)
    if config.training.started_by == "inproc":
        from audioscore.training.train import train_plan

        return train_plan(
            plan, index_folder, features_folder, target, config.training,
            data_digest=data_digest, code_revision=code_revision, device=device, resume=resume,
        )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        resolved = Path(folder) / "config.json"
        resolved.write_text(json.dumps(config.model_dump(mode="json", exclude_none=True)), encoding="utf-8")
        options = [
            "--config", str(resolved), "--plan", plan, "--index", str(index_folder), "--features", str(features_folder),
            "--out", str(target), "--single", "--data-digest", data_digest, "--code-revision", code_revision,
            "--device", device, *["--resume"] * resume,
        ]  # fmt: skip
        train_together(options, config.training.processes)
    return read_trained(target)


def train_together(options: Sequence[str], processes: int) -> None:
    """Run the trainer with these options in several processes of this machine, and wait for them.

    Raises ProcessesFailed, with the exit code of the first that failed; what it said is on standard error.
    """
    # By a program in between: torchrun takes over the signals of its process.
    command = [sys.executable, "-m", PROGRAM, "--processes", str(processes), *options]
    if code := subprocess.run(command).returncode:
        failed = ProcessesFailed(f"training by {processes} processes failed; what went wrong is said above.")
        failed.exit_code = code if code > 0 else 128 - code  # as shells count a signal
        raise failed


def torchrun(options: Sequence[str], processes: int, place: Sequence[str] = ("--standalone",)) -> int:
    """Be torchrun: start the processes, end all where one fails. The exit code of the first that failed, or 0.

    As `torchrun -m audioscore.training` does, but of a failure nothing is said beside what the process said itself.
    `place` are torchrun's own options for where its other machines are; PET_* in the environment say the rest.
    """
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # Unless told otherwise, torchrun gives each process one thread, and says so at length.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    command = [*place, "--nproc-per-node", str(processes), "-m", PROGRAM, *options]
    try:
        run.run(run.parse_args(command))
    except ChildFailedError as fault:
        rank, failure = fault.get_first_failure()
        if failure.exitcode < 0:
            sys.stderr.write(f"error: process {rank} of {processes} was ended by signal {-failure.exitcode}.\n")
            return AudioscoreError.exit_code
        return int(failure.exitcode)
    except SignalException as stopped:
        return 128 + int(stopped.sigval)
    return 0
