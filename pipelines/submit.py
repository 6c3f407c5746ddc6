"""`audioscore run` and `audioscore demo`: resolve the configuration, check it, run the pipeline, report the result."""

import json
import os
import secrets
import signal
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from audioscore.config import DEMO, SMALL, Config, load_config, parse_config
from audioscore.data.gate.output import validation_settings
from audioscore.data.labels import find_labels, singer_pattern
from audioscore.data.versions.repository import pull_missing
from audioscore.data.versions.revision import code_revision
from audioscore.data.versions.storage import DATA_URI_FORMS, local_repository
from audioscore.errors import (
    INTERNAL_ERROR_EXIT_CODE,
    AudioscoreError,
    DataError,
    GateRefused,
    UsageError,
)
from audioscore.files import read_json
from audioscore.home import home, home_of_model
from audioscore.tracking.connection import describe_error
from pipelines.cluster_run import check_cluster_config, run_on_cluster
from pipelines.interrupt import Interrupted, Signalled, raise_on_sigterm
from pipelines.local_run import local_sources, recorded_settings, run_on_machine
from pipelines.request import REPOSITORY, SubmitRequest
from pipelines.resume import CODE, find_unfinished
from pipelines.summary import program

SIGNAL_BASE = 128  # a shell's exit code for a program that a signal ended is 128 + the signal


def main(request: SubmitRequest) -> int:
    """Run the pipeline and return the exit code: 0 done, 1 a gate refused, 2 wrong usage or input."""
    console = Console(stderr=True)
    try:
        with raise_on_sigterm():
            result = run(request, console)
    except KeyboardInterrupt as error:
        console.print(_after_interrupt(request, error), markup=False, highlight=False, soft_wrap=True)
        return SIGNAL_BASE + (error.number if isinstance(error, Signalled) else signal.SIGINT)
    except Exception as error:
        if reason := describe_error(error):
            console.print(f"[red]error:[/red] {escape(reason)}", highlight=False, soft_wrap=True)
            return getattr(error, "exit_code", AudioscoreError.exit_code)
        # Python's exit code for an uncaught exception is 1, which here means that a gate refused.
        console.print_exception()
        return INTERNAL_ERROR_EXIT_CODE
    if request.as_json:
        json.dump(result, sys.stdout, ensure_ascii=False, indent=2)
        sys.stdout.write("\n")
    if result.get("dry_run"):
        return 0
    if request.require_promotion and not result["decision"]["promoted"]:
        console.print(f"not promoted: {result['decision']['reason']}", markup=False, highlight=False, soft_wrap=True)
        return GateRefused.exit_code
    return 0


def _after_interrupt(request: SubmitRequest, error: KeyboardInterrupt) -> str:
    """What an interrupt leaves, and how to continue."""
    if request.on == "cluster":
        return "interrupted; a run that was started on the cluster continues there"
    if not isinstance(error, Interrupted):
        return "interrupted; no step was running"
    command = f"`{program()} demo --resume`" if request.demo else "the same command with --resume"
    return f"interrupted; all steps and containers have ended. Continue the run by {command}."


def run(request: SubmitRequest, console: Console) -> dict[str, Any]:
    """Run the pipeline where the request demands it, and return the document of `run --json`."""
    started = time.monotonic()
    overrides = list(request.overrides)
    if request.data is not None:
        overrides.append(f"data.uri={json.dumps(_data_uri(request.data), ensure_ascii=False)}")
    newest = None
    if request.resume and request.on != "cluster" and not (overrides or request.demo or request.config):
        newest = find_unfinished(home().runs)
        config = parse_config(read_json(newest / "config.json"))
    else:
        chosen = Path(request.config) if request.config else SMALL
        config = load_config(DEMO if request.demo else chosen, overrides)
    if config.data.uri is None:
        raise UsageError("data: none given. Pass --data FOLDER (or s3://…, or a git URL with @REV), or set data.uri.")
    validation_settings(config)
    singer_pattern(config.data.singer_from)
    if request.on == "cluster":
        check_cluster_config(config)
        if request.dry_run:
            return _dry_run(config, request, console)
        return run_on_cluster(config, _new_run_id(), code_revision(REPOSITORY), console)
    folder = _run_folder(config, request, newest)
    on = _resolve_on(folder, request.on)
    _check_data(config.data.uri, on)
    if request.dry_run:
        return _dry_run(config, request, console)
    for source in local_sources(config):
        if source.is_relative_to(REPOSITORY):  # only data of this repository can be pulled from its DVC remote
            pull_missing(source, console.print)
    _check_paths(config)
    return run_on_machine(config, request, on, folder, console, started)


def _run_folder(config: Config, request: SubmitRequest, newest: Path | None) -> Path:
    """The folder of a new run, or of the run to resume."""
    runs = home_of_model(config.registry.model).runs
    if not request.resume:
        return runs / _new_run_id()
    return newest or find_unfinished(runs, recorded_settings(config))


def _new_run_id() -> str:
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def _resolve_on(folder: Path, requested: str | None) -> str:
    """Where the steps run: as requested; by default where a resumed run was started, else in local processes.

    Raises:
        UsageError: the run was started elsewhere.
    """
    before = str(read_json(folder / CODE)["on"]) if (folder / CODE).is_file() else None
    if requested and before and requested != before:
        raise UsageError(
            f"run {folder.name}: started with --on {before}, not {requested}. Resume it with --on {before}, or run "
            "without --resume."
        )
    return requested or before or "local"


def _check_data(uri: str, on: str) -> None:
    """Check before any step starts that the data exist, and that steps in containers can read them.

    Raises:
        DataError: the folder or its labels table is missing, or a git repository of this machine with --on docker.
    """
    recorded = Path(f"{uri}.dvc").is_file()  # a missing folder that DVC can pull
    if not uri.startswith(("s3://", "git+")) and "@" not in uri and not Path(uri).is_dir() and not recorded:
        raise DataError(f"{uri}: no such folder. Give {DATA_URI_FORMS}.")
    if Path(uri).is_dir() and not recorded:
        find_labels(Path(uri))
    # Inside a container git refuses a repository of another user, and DVC's remote may be a folder outside.
    if on == "docker" and (repository := local_repository(uri)) is not None:
        raise DataError(
            f"{uri}: {repository} is a git repository of this machine, which steps in containers cannot read. "
            "Give its data folder, s3://BUCKET/PREFIX or git+https://HOST/REPOSITORY@REV, or run with --on local."
        )


def _check_paths(config: Config) -> None:
    """Check before any step starts that the home can hold a registry, and that folders of models exist.

    Raises:
        UsageError: the path of the home is too long, or a folder is missing.
    """
    _ = home_of_model(config.registry.model).tracking_uri
    training, adversary = config.training, config.training.adversary
    named = {f"encoders.{kind}.source": getattr(config.encoders, kind).source for kind in ("muq", "campplus")}
    named = {key: source for key, source in named.items() if Path(source).expanduser().is_absolute()}  # else hub ids
    if training.init != "scratch":
        named["training.init"] = training.init.removeprefix("warm:")
    if adversary.weight > 0 and adversary.source:
        named["training.adversary.source"] = adversary.source
    for key, source in named.items():
        if not Path(source).expanduser().exists():
            raise UsageError(f"{key}: {source} does not exist. Correct the setting.")


def _data_uri(value: str) -> str:
    """Make a local folder absolute; it is relative to the working folder."""
    if "://" in value or value.startswith("git+") or (not Path(value).is_dir() and "@" in value):
        return value
    return os.path.abspath(Path(value).expanduser())


def _dry_run(config: Config, request: SubmitRequest, console: Console) -> dict[str, Any]:
    """Print and return the resolved configuration."""
    if not request.as_json:
        Console().print_json(config.model_dump_json(exclude_none=True))
        summary = f"dry run: {len(config.training.plans)} plans on {config.data.uri}; no step was run."
        console.print(summary, markup=False, highlight=False, soft_wrap=True)
    return {
        "dry_run": True,
        "config": config.model_dump(mode="json"),
        "home": str(home_of_model(config.registry.model).folder),
    }


if __name__ == "__main__":
    sys.stderr.write("error: pipelines.submit: not a command. Run `audioscore run`.\n")
    sys.exit(UsageError.exit_code)
