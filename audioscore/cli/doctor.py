"""`audioscore doctor`: what is here, what is missing, and what to do about it."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import typer

from audioscore.errors import AudioscoreError

PACKAGES = (
    "kfp", "mlflow", "torch", "torchaudio", "transformers", "muq", "peft", "modelscope", "dvc", "great-expectations",
    "boto3", "av",
)  # fmt: skip
FREE_GIB = 2


@dataclass(frozen=True)
class Finding:
    """One check: `ok` is False where something would fail, and `remedy` says how to mend it."""

    check: str
    ok: bool
    found: str
    remedy: str = ""


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")] = False,
) -> None:
    """Check this installation. Exit code 1 where something would fail."""
    findings = [finding for check in CHECKS for finding in _guarded(check)]
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], ensure_ascii=False, indent=2))
    else:
        for finding in findings:
            typer.echo(f"{'ok   ' if finding.ok else 'FAIL '} {finding.check:<24} {finding.found}")
            if finding.remedy:
                typer.echo(f"      {'':<24} {finding.remedy}")
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


def _guarded(check: Callable[[], list[Finding]]) -> list[Finding]:
    try:
        return check()
    except AudioscoreError as fault:
        return [Finding(check.__name__.removeprefix("check_"), False, str(fault))]


def check_python() -> list[Finding]:
    """Python and the packages, by their installed versions; nothing heavy is imported."""
    found = ".".join(map(str, sys.version_info[:3]))
    findings = [Finding("python", sys.version_info >= (3, 11), found, "")]
    for name in PACKAGES:
        try:
            findings.append(Finding(name, True, version(name)))
        except PackageNotFoundError:
            findings.append(Finding(name, False, "not installed", "pip install -r requirements.txt"))
    return findings


def check_accelerator() -> list[Finding]:
    """Whether torch sees a GPU."""
    import torch

    if torch.cuda.is_available():
        return [Finding("accelerator", True, torch.cuda.get_device_name(0))]
    return [Finding("accelerator", True, f"none; {os.cpu_count()} CPU cores are used")]


def check_home() -> list[Finding]:
    """Whether state can be written, and how much room there is."""
    from audioscore.home import home

    folder = home().folder
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    writable = existing.is_dir() and os.access(existing, os.W_OK)
    free = shutil.disk_usage(existing).free / 2**30
    return [
        Finding("home", writable, str(folder), "" if writable else "Set AUDIOSCORE_HOME to a folder you may write to."),
        Finding("disk", free > FREE_GIB, f"{free:.1f} GiB free", "" if free > FREE_GIB else "Free some space."),
    ]


def check_encoders() -> list[Finding]:
    """Whether the default configuration's encoders are there, and whether the published ones are."""
    from audioscore.config import SMALL, load_config
    from audioscore.encoders.download import PUBLISHED, is_cached
    from audioscore.encoders.features import is_folder

    encoders = load_config(SMALL).encoders
    findings = []
    for name, source in (("encoder muq", encoders.muq.source), ("encoder campplus", encoders.campplus.source)):
        needed = "config.json" if name == "encoder muq" else "configuration.json"
        here = not is_folder(source) or (Path(source) / needed).is_file()
        remedy = "Run `audioscore data pull` in the repository; `audioscore encoders pull` fetches the published ones."
        findings.append(Finding(name, here, source, "" if here else remedy))
    for kind, source in PUBLISHED.items():
        here = is_cached(kind, source)
        remedy = "" if here else "Run `audioscore encoders pull` before a configuration names it."
        findings.append(Finding(f"published {kind}", True, source if here else f"{source}, not in the cache", remedy))
    return findings


def check_registry() -> list[Finding]:
    """Which champions there are."""
    from audioscore.home import DEMO_MODEL, home_of_model
    from audioscore.tracking.connection import connect, database_file
    from audioscore.tracking.registry import CHAMPION, version_by_alias

    findings = []
    for name in ("audioscore", DEMO_MODEL):
        uri = home_of_model(name).tracking_uri
        database = database_file(uri)
        champion = version_by_alias(connect(uri), name, CHAMPION) if database and database.is_file() else None
        found = f"v{champion.version}" if champion else "none yet"
        findings.append(Finding(f"champion {name}", True, found))
    return findings


CHECKS = (check_python, check_accelerator, check_home, check_encoders, check_registry)
