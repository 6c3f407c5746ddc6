"""`audioscore doctor`: check the installation."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import typer

from audioscore.cli.options import JsonOption
from audioscore.data.transfer.network import check_proxy, network_settings
from audioscore.errors import AudioscoreError

PACKAGES = (
    "kfp", "mlflow", "torch", "torchaudio", "transformers", "muq", "peft", "modelscope", "dvc", "great-expectations",
    "boto3", "av",
)  # fmt: skip
FREE_GIB = 2


@dataclass(frozen=True)
class DoctorCheck:
    """The result of one check; `ok` is False if commands would fail, and `remedy` is the fix."""

    check: str
    ok: bool
    found: str
    remedy: str = ""


def doctor(as_json: JsonOption = False) -> None:
    """Check this installation. Exit with 1 if a check fails."""
    checks = [result for check in CHECKS for result in _run(check)]
    if as_json:
        typer.echo(json.dumps([asdict(result) for result in checks], ensure_ascii=False, indent=2))
    else:
        for result in checks:
            typer.echo(f"{'ok   ' if result.ok else 'FAIL '} {result.check:<24} {result.found}")
            if result.remedy:
                typer.echo(f"      {'':<24} {result.remedy}")
    if not all(result.ok for result in checks):
        raise typer.Exit(1)


def _run(check: Callable[[], list[DoctorCheck]]) -> list[DoctorCheck]:
    """Run a check; an expected error is a failed check."""
    try:
        return check()
    except AudioscoreError as error:
        return [DoctorCheck(check.__name__.removeprefix("check_"), False, str(error))]


def check_python() -> list[DoctorCheck]:
    """Check the versions of Python and the packages from their metadata, without importing them."""
    found = ".".join(map(str, sys.version_info[:3]))
    checks = [DoctorCheck("python", sys.version_info >= (3, 11), found, "")]
    for name in PACKAGES:
        try:
            checks.append(DoctorCheck(name, True, version(name)))
        except PackageNotFoundError:
            checks.append(DoctorCheck(name, False, "not installed", "pip install -r requirements.txt"))
    return checks


def check_accelerator() -> list[DoctorCheck]:
    """Report the GPU that torch finds."""
    import torch

    if torch.cuda.is_available():
        return [DoctorCheck("accelerator", True, torch.cuda.get_device_name(0))]
    return [DoctorCheck("accelerator", True, f"no GPU; {os.cpu_count()} CPU cores are used")]


def check_home() -> list[DoctorCheck]:
    """Check that the home is writable and that its disk has free space."""
    from audioscore.home import home

    folder = home().folder
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    writable = existing.is_dir() and os.access(existing, os.W_OK)
    free = shutil.disk_usage(existing).free / 2**30
    return [
        DoctorCheck("home", writable, str(folder), "" if writable else "Set AUDIOSCORE_HOME to a writable folder."),
        DoctorCheck("disk", free > FREE_GIB, f"{free:.1f} GiB free", "" if free > FREE_GIB else "Free some space."),
    ]


def check_proxies() -> list[DoctorCheck]:
    """Report which proxy requests use; it is not contacted."""
    checks = []
    for scheme in ("http", "https"):
        address = f"{scheme}://huggingface.co"
        check_proxy(address)
        checks.append(DoctorCheck(f"proxy for {scheme}", True, network_settings(address) or "none"))
    return [*checks, DoctorCheck("no proxy for", True, os.environ.get("NO_PROXY") or "not set")]


def check_encoders() -> list[DoctorCheck]:
    """Check the encoders of the default configuration, and report whether the published ones are downloaded."""
    from audioscore.config import SMALL, load_config
    from audioscore.encoders.download import PUBLISHED, is_cached
    from audioscore.encoders.features import is_folder

    encoders = load_config(SMALL).encoders
    checks = []
    for name, source in (("encoder muq", encoders.muq.source), ("encoder campplus", encoders.campplus.source)):
        needed = "config.json" if name == "encoder muq" else "configuration.json"
        exists = not is_folder(source) or (Path(source) / needed).is_file()
        remedy = "Run `audioscore data pull` in the repository, or `audioscore encoders pull` for the published ones."
        checks.append(DoctorCheck(name, exists, source, "" if exists else remedy))
    for kind, source in PUBLISHED.items():
        cached = is_cached(kind, source)
        remedy = "" if cached else "Run `audioscore encoders pull` before you use it in a configuration."
        checks.append(DoctorCheck(f"published {kind}", True, source if cached else f"{source}, not cached", remedy))
    return checks


def check_registry() -> list[DoctorCheck]:
    """Report the champions."""
    from audioscore.home import DEMO_MODEL, MODEL, home_of_model
    from audioscore.tracking.connection import connect, database_exists, database_file
    from audioscore.tracking.registry import CHAMPION, version_by_alias

    checks = []
    for name in (MODEL, DEMO_MODEL):
        uri = home_of_model(name).tracking_uri
        local = database_file(uri) is not None and database_exists(uri)
        champion = version_by_alias(connect(uri), name, CHAMPION) if local else None
        checks.append(DoctorCheck(f"champion {name}", True, f"v{champion.version}" if champion else "none yet"))
    return checks


CHECKS = (check_python, check_accelerator, check_home, check_proxies, check_encoders, check_registry)
