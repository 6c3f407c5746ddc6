"""Run the pipeline on this machine, every step a process of its own, in this Python environment or in a container."""

import contextlib
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from audioscore import errors
from audioscore.errors import AudioscoreError, UsageError
from pipelines.causes import outside_cause
from pipelines.platform import LOCAL
from pipelines.steplog import Step, StepLog

if TYPE_CHECKING:
    from audioscore.platforms import ContainersSection
    from pipelines.containers import Containers

OFFLINE = {
    # Nothing in a step phones home, and no progress bar writes a line an update into a log.
    "DVC_NO_ANALYTICS": "1",
    "GX_ANALYTICS_ENABLED": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
}


@dataclass(frozen=True)
class LocalRun:
    """What a run left behind: the steps, and the outputs of each by name."""

    steps: list[Step]
    root: Path


class StepFailed(AudioscoreError):
    """A step stopped for a reason that is not the user's: a fault in the program."""

    exit_code = errors.FAULT_EXIT_CODE


def run_locally(
    arguments: dict[str, Any], folder: Path, console: Console, containers: "Containers | None" = None
) -> LocalRun:
    """Run the pipeline with these arguments; logs go to `folder`/logs, step outputs to `folder`/steps.

    `containers` need an `engine` that the caller holds. What an earlier call with the same arguments and folder has
    finished is taken over. Raises the error that a step raised for the user (GateRefused, DataError, …), or StepFailed
    naming the step's log; UsageError for what its image or its memory is to blame; Interrupted once no step runs any
    more.
    """
    from kfp import local

    from pipelines.containers import end_leftovers, runner, waited_for
    from pipelines.interrupt import Interrupted, interruptible
    from pipelines.resume import CACHE, OWNER, STEPS, repeatable
    from pipelines.resume import end_leftovers as end_processes
    from pipelines.scorer_pipeline import build

    def end() -> None:
        end_processes(folder)
        if containers is not None:
            end_leftovers(str(folder))

    root = folder / STEPS
    root.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as held:
        held.enter_context(_environment({**OFFLINE, OWNER: str(folder)}))
        if containers is not None:
            end_leftovers(str(folder))
            held.enter_context(waited_for(containers.section.image))
        held.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # KFP's own notices about its local runner
        local.init(
            local.SubprocessRunner(use_venv=False) if containers is None else runner(containers, str(folder)),
            pipeline_root=str(root), raise_on_error=True, enable_caching=True, cache_root=str(folder / CACHE),
        )  # fmt: skip
        pipeline = build(LOCAL)
        interruption = held.enter_context(interruptible(end))
        log = held.enter_context(StepLog(folder / "logs", console, lambda: interruption.happened))
        held.enter_context(repeatable(log.reused))
        try:
            with contextlib.redirect_stdout(log):
                pipeline(**arguments)
        except (Exception, KeyboardInterrupt) as fault:
            if interruption.number is not None:  # the step that it ended failed of it
                raise Interrupted(interruption.number) from fault
            if isinstance(fault, RuntimeError):
                raise _failure(log.steps, fault, containers.section if containers else None) from fault
            raise
    return LocalRun(log.steps, root)


def _failure(steps: list[Step], fault: RuntimeError, section: "ContainersSection | None" = None) -> AudioscoreError:
    """What is told of a failed run; `section` is of the containers that its steps ran in."""
    step = steps[-1] if steps else None
    if step is None:
        return StepFailed(f"the pipeline could not start: {fault}")
    if step.fault is not None:
        kind: type[AudioscoreError] = getattr(errors, step.fault[0], AudioscoreError)
        return kind(step.fault[1])
    if section is not None and (why := outside_cause(step.log, section)) is not None:
        return UsageError(f"step {step.name} {why} Its log is {step.log}.")
    return StepFailed(f"step {step.name} failed unexpectedly; its log is {step.log}. Please report it.")


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set variables for the steps, where the user has not set them, and put the old state back."""
    before = dict(os.environ)
    for name, value in values.items():
        os.environ.setdefault(name, value)
    try:
        yield
    finally:
        for name in values:
            if name not in before:
                os.environ.pop(name, None)


def output_of(root: Path, step: str, name: str) -> Path:
    """Path of one output of a step that ran once.

    KFP lays outputs out as ROOT/<pipeline>-<time>/<step>/<output>.
    """
    found = sorted(root.glob(f"*/{step.replace('_', '-')}/{name}"))
    if len(found) != 1:
        raise StepFailed(f"step {step} left {len(found)} outputs named {name} under {root}; expected 1.")
    return found[0]
