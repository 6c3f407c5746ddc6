"""`audioscore run`: resolve the configuration, prepare the home, run the pipeline, say what came out.

`python -m pipelines.submit` takes the same options.
"""

import argparse
import contextlib
import json
import os
import secrets
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from audioscore.config import DEMO, SMALL, Config, load_config, parse_config
from audioscore.data.labels import find_labels
from audioscore.data.versions.repository import pull_missing
from audioscore.data.versions.revision import code_revision
from audioscore.data.versions.storage import ACCEPTED, local_repository
from audioscore.encoders.extract import shards_of
from audioscore.errors import FAULT_EXIT_CODE, AudioscoreError, DataError, UsageError, describe_os_error
from audioscore.files import atomic_path, read_json, write_json
from audioscore.home import home, home_of_model
from pipelines.interrupt import Interrupted, Signalled, asked_to_end
from pipelines.local_run import output_of, run_locally
from pipelines.resume import CODE, code_digest, end_leftovers, find_unfinished, forget_other_code, only_one
from pipelines.steplog import steps_table
from pipelines.summary import print_summary

if TYPE_CHECKING:
    from pipelines.containers import Containers

REPOSITORY = Path(__file__).resolve().parents[1]
GATE_SAID_NO = 1
SIGNALLED = 128  # and the signal: as shells tell what ended a program
AFTER_INTERRUPT = {
    "local": "no step runs any more, and {command} goes on from here",
    "docker": "no container runs any more, and {command} goes on from here",
    "cluster": "what was started on the cluster goes on there",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, and return the exit code: 0 done, 1 a gate said no, 2 wrong usage or input."""
    options = _parser().parse_args(arguments)
    console = Console(stderr=True)
    try:
        with asked_to_end():
            result = run(options, console)
    except AudioscoreError as fault:
        console.print(f"[red]error:[/red] {escape(str(fault))}", highlight=False, soft_wrap=True)
        return fault.exit_code
    except OSError as fault:
        console.print(f"[red]error:[/red] {escape(describe_os_error(fault))}", highlight=False, soft_wrap=True)
        return AudioscoreError.exit_code
    except KeyboardInterrupt as fault:
        said = "no step was running"
        if options.on == "cluster" or isinstance(fault, Interrupted):
            command = f"`{_program()} demo --resume`" if options.demo else "the same command with --resume"
            said = AFTER_INTERRUPT[options.on or "local"].format(command=command)
        console.print(f"interrupted; {said}", markup=False, highlight=False, soft_wrap=True)
        return SIGNALLED + (fault.number if isinstance(fault, Signalled) else signal.SIGINT)
    except Exception:
        # Python's own code for this is 1, which here means that a gate said no.
        console.print_exception()
        return FAULT_EXIT_CODE
    if options.json:
        json.dump(result, sys.stdout, ensure_ascii=False, indent=2)
        sys.stdout.write("\n")
    if result.get("dry_run"):
        return 0
    if options.require_promotion and not result["decision"]["promoted"]:
        console.print(f"not promoted: {result['decision']['reason']}", markup=False, highlight=False, soft_wrap=True)
        return GATE_SAID_NO
    return 0


def _program() -> str:
    """`audioscore` as it can be typed here: `make demo` has no options to pass on."""
    path = Path(sys.executable).with_name("audioscore")
    if not path.is_file():
        return path.name
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="audioscore run", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", type=Path)
    parser.add_argument("--demo", action="store_true")
    parser.add_argument("--data")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--on", choices=["local", "docker", "cluster"])
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--require-promotion", action="store_true")
    parser.add_argument("--json", action="store_true")
    return parser


def run(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """One pipeline run; returns the document of `run --json`."""
    started = time.monotonic()
    overrides = list(options.overrides)
    if options.data is not None:
        overrides.append(f"data.uri={json.dumps(_data_uri(options.data), ensure_ascii=False)}")
    newest = None
    if options.resume and options.on != "cluster" and not (overrides or options.demo or options.config):
        newest = find_unfinished(home().runs)
        config = parse_config(read_json(newest / "config.json"))
    else:
        config = load_config(DEMO if options.demo else options.config or SMALL, overrides)
    if config.data.uri is None:
        raise UsageError("no data: pass --data FOLDER (or s3://…, or a git repository with @REV), or set data.uri.")
    if options.on == "cluster":
        from pipelines.cluster_run import check, run_on_cluster

        check(config)
        if options.dry_run:
            return _dry_run(config, console, quiet=options.json)
        return run_on_cluster(config, code_revision(REPOSITORY), _new_run(), console, quiet=options.json)
    folder = _folder(config, options, newest)
    options.on = _place(folder, options.on)
    _check_uri(config.data.uri)
    if options.on == "docker":
        _check_seen_in_containers(config.data.uri)
    if options.dry_run:
        return _dry_run(config, console, quiet=options.json)
    for source in _sources(config):
        if source.is_relative_to(REPOSITORY):  # only what ships with the repository can be pulled from its store
            pull_missing(source, console.print)
    return _run_here(config, options, folder, console, started)


def _folder(config: Config, options: argparse.Namespace, newest: Path | None) -> Path:
    """Of a run on this machine: a new one, or that of the run that is resumed."""
    runs = home_of_model(config.registry.model).runs
    if not options.resume:
        return runs / _new_run()
    return newest or find_unfinished(runs, _recorded(config))


def _recorded(config: Config) -> dict[str, Any]:
    return config.model_dump(mode="json", exclude_none=True)  # KFP has no null


def _place(folder: Path, asked: str | None) -> str:
    """Where the steps of a run run: where they began, if it is resumed.

    Raises UsageError where another place was asked for.
    """
    began = str(read_json(folder / CODE)["on"]) if (folder / CODE).is_file() else None
    if asked and began and asked != began:
        raise UsageError(
            f"run {folder.name} was started with --on {began}, not {asked}. Resume it there, or start anew."
        )
    return asked or began or "local"


def _run_here(
    config: Config, options: argparse.Namespace, folder: Path, console: Console, started: float
) -> dict[str, Any]:
    """A run on this machine, new or resumed."""
    from pipelines.containers import engine

    place = home_of_model(config.registry.model)
    with contextlib.ExitStack() as held:
        if options.on == "docker":
            held.enter_context(engine())
        code = _code(config, options.on, console)
        held.enter_context(only_one(folder))
        if options.resume:
            if ended := end_leftovers(folder):
                console.print(f"ended {ended} processes that the broken run had left", highlight=False)
            if (same := forget_other_code(folder, code)) is None:
                console.print("the code has changed since: every step runs again", highlight=False)
            code = same or code
        write_json(folder / "config.json", _recorded(config))
        write_json(folder / CODE, code)
        _initialise(place.tracking_uri, config.registry.model, place.artifacts)
        doing = "resuming run" if options.resume else "run"
        console.print(f"{doing} {folder.name} on {config.data.uri}", markup=False, highlight=False, soft_wrap=True)
        arguments = run_arguments(config, folder.name, code["code_rev"]) | {
            "feature_store": str(place.features),
            "tracking_uri": place.tracking_uri,
            "artifact_root": str(place.artifacts),
        }
        containers = None
        if options.on == "docker":
            arguments["image"] = config.containers.image
            containers = _containers(config)
        finished = run_locally(arguments, folder, console, containers)
        outcome = output_of(finished.root, "register_winner", "outcome")
        result = {**read_json(outcome / "result.json"), "report": str(folder / "report.html")}
        for page in ("model_card.md", "report.html"):
            with atomic_path(folder / page) as unfinished:
                shutil.copyfile(outcome / page, unfinished)
        write_json(folder / "result.json", result)  # the last: who finds it takes the run for finished
    if not options.json:
        console.print(steps_table(finished.steps), highlight=False)
        console.print(f"logs: {folder / 'logs'}", markup=False, highlight=False, soft_wrap=True)
        print_summary(result, config, place, time.monotonic() - started)
    return result


def run_arguments(config: Config, run_id: str, code_rev: str, *, on_cluster: bool = False) -> dict[str, Any]:
    """What the pipeline is called with, wherever it runs; where things are kept is added there.

    The settings leave out where a run runs: the same step elsewhere is the same step.
    """
    settings = config.model_dump(mode="json", exclude_none=True, exclude={"containers", "cluster"})
    return {
        "data_uri": config.data.uri,
        "run_id": run_id,
        "code_rev": code_rev,
        "settings": settings,
        "plans": list(config.training.plans),
        "shards": shards_of(config.cluster.shards if on_cluster else 1),
    }


def _new_run() -> str:
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def _code(config: Config, on: str, console: Console) -> dict[str, str]:
    """Which code the steps run, and where: for containers that of their image, whatever this checkout is."""
    own = {"code_rev": code_revision(REPOSITORY), "on": on, "image": config.containers.image}
    if on != "docker":
        return own | {"digest": code_digest(REPOSITORY)}
    from pipelines.containers import code_in

    found = code_in(config.containers.image)
    if found.revision != own["code_rev"]:
        console.print(
            f"the steps run the code of {found.image}, revision {found.revision}; this checkout is {own['code_rev']}. "
            "`make image` builds the image anew.",
            markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip
    return own | {"code_rev": found.revision, "image": found.image}


def _sources(config: Config) -> list[Path]:
    """What of a configuration may be a folder of this machine."""
    encoders = config.encoders
    return [Path(name) for name in (str(config.data.uri), encoders.muq.source, encoders.campplus.source)]


def _containers(config: Config) -> "Containers":
    """What the steps of a run see of this machine: the home, to write in, and what the configuration names."""
    from pipelines.containers import Containers

    training = config.training
    recorded = Path(f"{config.data.uri}.dvc")  # says which version of the data it is
    named = [
        *_sources(config),
        recorded,
        Path(training.init.removeprefix("warm:")),
        Path(training.adversary.source or ""),
    ]
    return Containers(
        config.containers, home().folder, tuple(path for path in named if path.is_absolute() and path.exists())
    )


def _initialise(tracking_uri: str, model: str, artifacts: Path) -> None:
    """MLflow's database, once, before any step could race for it."""
    from audioscore.tracking.connection import initialise

    initialise(tracking_uri, model, artifacts)


def _dry_run(config: Config, console: Console, *, quiet: bool) -> dict[str, Any]:
    """What would run, and with which settings."""
    if not quiet:
        Console().print_json(config.model_dump_json(exclude_none=True))
        summary = f"would run {len(config.training.plans)} plans on {config.data.uri}; nothing was run."
        console.print(summary, markup=False, highlight=False, soft_wrap=True)
    return {
        "dry_run": True,
        "config": config.model_dump(mode="json"),
        "home": str(home_of_model(config.registry.model).folder),
    }


def _check_uri(uri: str) -> None:
    """A folder that is not there, or holds no table, is said at once, not by a step after everything was set up."""
    recorded = Path(f"{uri}.dvc").is_file()  # not there yet, but DVC knows where it is
    if not uri.startswith(("s3://", "git+")) and "@" not in uri and not Path(uri).is_dir() and not recorded:
        raise DataError(f"{uri}: no such folder. Give {ACCEPTED}.")
    if Path(uri).is_dir() and not recorded:
        find_labels(Path(uri))


def _check_seen_in_containers(uri: str) -> None:
    """A repository of this machine is refused: git reads none of another user's, and DVC's store lies elsewhere."""
    if (repository := local_repository(uri)) is not None:
        raise DataError(
            f"{uri}: {repository} is a git repository of this machine, which steps in containers do not see. "
            "Give its data folder, s3://BUCKET/PREFIX or git+https://HOST/REPOSITORY@REV, or run with --on local."
        )


def _data_uri(value: str) -> str:
    """A folder given on the command line is relative to where the command was typed."""
    if "://" in value or value.startswith("git+") or (not Path(value).is_dir() and "@" in value):
        return value
    return os.path.abspath(Path(value).expanduser())


if __name__ == "__main__":
    sys.exit(main())
