"""Run the pipeline on this machine, every step in its own process, in this Python environment or in a container."""

import contextlib
import os
import shutil
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from audioscore.config import Config
from audioscore.data.versions.revision import code_revision
from audioscore.files import atomic_path, read_json, write_json
from audioscore.home import home, home_of_model
from pipelines import scorer_pipeline
from pipelines.container_engine import code_in, engine
from pipelines.containers import Containers, docker_runner, remove_containers, use_image
from pipelines.interrupt import Interrupted, interruptible
from pipelines.platform import LOCAL, OFFLINE
from pipelines.request import REPOSITORY, SubmitRequest, pipeline_parameters
from pipelines.resume import (
    CACHE,
    CODE,
    OWNER,
    STEPS,
    code_digest,
    discard_moved,
    discard_other_code,
    end_processes,
    fixed_folders,
    lock_run,
)
from pipelines.steplog import Step, StepFailed, StepLog, step_error, steps_table
from pipelines.summary import print_summary


def run_on_machine(
    config: Config, request: SubmitRequest, on: str, folder: Path, console: Console, started: float
) -> dict[str, Any]:
    """Run the pipeline, or continue a run, and return the document of `run --json`.

    Args:
        on: "local" or "docker".
        folder: the run's folder; result.json is written last and marks the run as finished.
        started: `time.monotonic()` at the start of the command.
    """
    workspace = home_of_model(config.registry.model)
    with contextlib.ExitStack() as held:
        if on == "docker":
            held.enter_context(engine())
        code = _code(config, on, console)
        held.enter_context(lock_run(folder))
        if request.resume:
            if ended := end_processes(folder):
                console.print(f"ended {ended} processes that the earlier attempt left running", highlight=False)
            if (same := discard_other_code(folder, code)) is None:
                console.print("the code has changed since: every step runs again", highlight=False)
            elif discard_moved(folder):
                console.print("the run's folder was moved since: every step runs again", highlight=False)
            code = same or code
        write_json(folder / "config.json", recorded_settings(config))
        write_json(folder / CODE, code)
        _initialise(workspace.tracking_uri, config.registry.model, workspace.artifacts)
        action = "resuming run" if request.resume else "run"
        console.print(f"{action} {folder.name} on {config.data.uri}", markup=False, highlight=False, soft_wrap=True)
        parameters = pipeline_parameters(config, folder.name, code["code_rev"]) | {
            "feature_store": str(workspace.features),
            "tracking_uri": workspace.tracking_uri,
            "artifact_root": str(workspace.artifacts),
        }
        containers = None
        if on == "docker":
            parameters["image"] = config.containers.image
            containers = _containers(config)
        finished = run_steps(parameters, folder, console, containers)
        outcome = output_of(finished.root, "register_winner", "outcome")
        result = {**read_json(outcome / "result.json"), "report": str(folder / "report.html")}
        for page in ("model_card.md", "report.html"):
            with atomic_path(folder / page) as unfinished:
                shutil.copyfile(outcome / page, unfinished)
        write_json(folder / "result.json", result)
    if not request.as_json:
        console.print(steps_table(finished.steps), highlight=False)
        console.print(f"logs: {folder / 'logs'}", markup=False, highlight=False, soft_wrap=True)
        print_summary(result, config, workspace, time.monotonic() - started)
    return result


def recorded_settings(config: Config) -> dict[str, Any]:
    """A configuration as a run's folder records it, without null values."""
    return config.model_dump(mode="json", exclude_none=True)


def local_sources(config: Config) -> list[Path]:
    """The settings that may name folders of this machine: data and encoders."""
    encoders = config.encoders
    return [Path(name) for name in (str(config.data.uri), encoders.muq.source, encoders.campplus.source)]


def _code(config: Config, on: str, console: Console) -> dict[str, str]:
    """Which code the steps run, and where; steps in containers run the code of their image, not of this checkout."""
    code = {"code_rev": code_revision(REPOSITORY), "on": on, "image": config.containers.image}
    if on != "docker":
        return code | {"digest": code_digest(REPOSITORY)}
    found = code_in(config.containers.image)
    if found.revision != code["code_rev"]:
        console.print(
            f"the steps run the code of {found.image}, revision {found.revision}; this checkout is {code['code_rev']}. "
            "`make image` rebuilds the image.",
            markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip
    return code | {"code_rev": found.revision, "image": found.image}


def _containers(config: Config) -> Containers:
    """Mount the home and every file or folder of this machine that the configuration names."""
    training = config.training
    named = [
        *local_sources(config),
        Path(f"{config.data.uri}.dvc"),  # records the version of the data
        Path(training.init.removeprefix("warm:")),
        Path(training.adversary.source or ""),
    ]
    return Containers(
        config.containers, home().folder, tuple(path for path in named if path.is_absolute() and path.exists())
    )


def _initialise(tracking_uri: str, model: str, artifacts: Path) -> None:
    """Create MLflow's database before the steps start, which could otherwise create it at the same time."""
    from audioscore.tracking.connection import initialise

    initialise(tracking_uri, model, artifacts)


@dataclass(frozen=True)
class LocalRun:
    """A finished run: its steps, and the folder of their outputs."""

    steps: list[Step]
    root: Path


def run_steps(
    parameters: dict[str, Any], folder: Path, console: Console, containers: Containers | None = None
) -> LocalRun:
    """Run the pipeline by KFP's local runner; logs go to `folder`/logs, step outputs to `folder`/steps.

    Steps that an earlier call with the same parameters and folder finished are not run again.

    Args:
        containers: needs an `engine` that the caller holds.

    Raises:
        AudioscoreError: the error that a step raised for the user (GateRefused, DataError, …).
        UsageError: the image or the memory of a container is the cause.
        StepFailed: any other failure; it names the step's log.
        Interrupted: a signal arrived; no step is running any more.
    """
    from kfp import local

    def end() -> None:
        end_processes(folder)
        if containers is not None:
            remove_containers(str(folder))

    root = folder / STEPS
    root.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as held:
        held.enter_context(_environment({**OFFLINE, OWNER: str(folder)}))
        if containers is not None:
            remove_containers(str(folder))
            held.enter_context(use_image(containers.section.image))
        held.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # KFP's notices about its local runner
        local.init(
            local.SubprocessRunner(use_venv=False) if containers is None else docker_runner(containers, str(folder)),
            pipeline_root=str(root), raise_on_error=True, enable_caching=True, cache_root=str(folder / CACHE),
        )  # fmt: skip
        pipeline = scorer_pipeline.build(LOCAL)
        interruption = held.enter_context(interruptible(end))
        log = held.enter_context(StepLog(folder / "logs", console, lambda: interruption.happened))
        held.enter_context(fixed_folders(log.reused))
        try:
            with contextlib.redirect_stdout(log):
                pipeline(**parameters)
        except (Exception, KeyboardInterrupt) as error:
            if interruption.number is not None:  # the interrupted step failed because of it
                raise Interrupted(interruption.number) from error
            if isinstance(error, RuntimeError):
                raise step_error(log.steps, error, containers.section if containers else None) from error
            raise
    return LocalRun(log.steps, root)


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set the variables that the user has not set, and restore the environment afterwards."""
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
    """Path of an output of a step that ran once: ROOT/PIPELINE/STEP/NAME, as KFP arranges outputs.

    Raises:
        StepFailed: there is no such output, or there are several.
    """
    found = sorted(root.glob(f"*/{step.replace('_', '-')}/{name}"))
    if len(found) != 1:
        raise StepFailed(f"step {step}: left {len(found)} outputs named {name} under {root}, not 1. Report this.")
    return found[0]
