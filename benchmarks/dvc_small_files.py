"""Measure versioning of many small files: DVC, our commit, and push and pull with a folder and S3.

`python benchmarks/dvc_small_files.py [FILES] [KILOBYTES] [s3://BUCKET/PREFIX]`: FILES (10,000) files of KILOBYTES (30)
of random bytes, in a temporary folder. The S3 remote uses the AWS variables (AWS_ENDPOINT_URL, ...). Each step runs in
a separate process; seconds include its start, and peak memory is its maximum resident set size.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

DVC = Path(sys.executable).with_name("dvc")
OURS = "from pathlib import Path; from audioscore.data.versions.{module} import {name}; print({call})"


def main(files: int, kilobytes: int, bucket: str | None) -> None:
    """Print one row for each step."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "repository"
        os.environ |= {"DVC_SITE_CACHE_DIR": str(Path(scratch) / "site"), "DVC_NO_ANALYTICS": "1"}
        fill(root / "data" / "audio", 0, files, kilobytes)
        run(root, str(DVC), "init", "--no-scm", "-q")
        run(root, str(DVC), "remote", "add", "-q", "-d", "store", str(Path(scratch) / "store"))
        if bucket:
            run(root, str(DVC), "remote", "add", "-q", "s3", bucket)
        print(f"{files} files of {kilobytes} KB\n{'step':<44}{'seconds':>9}{'peak MB':>9}")
        steps(root, files, kilobytes, bucket)
        print(f"disk: data {size(root / 'data')} MB, cache {size(root / '.dvc' / 'cache')} MB")


def steps(root: Path, files: int, kilobytes: int, bucket: str | None) -> None:
    """Run all steps on a data folder."""
    dvc, commit = [str(DVC)], ours("repository", "commit", "commit(Path('data'))")
    report("folder_digest", root, ours("revision", "folder_digest", "folder_digest(Path('data'))"))
    report("dvc add, first", root, [*dvc, "add", "-q", "data"])
    report("dvc add, unchanged", root, [*dvc, "add", "-q", "data"])
    report("dvc status", root, [*dvc, "status", "-q"])
    (root / "data.dvc").unlink()
    shutil.rmtree(root / ".dvc" / "cache")
    shutil.rmtree(os.environ["DVC_SITE_CACHE_DIR"])
    report("commit, first", root, commit)
    report("commit, unchanged", root, commit)
    fill(root / "data" / "audio", files, 100, kilobytes)
    report("commit, 100 files added", root, commit)
    for remote in ["store", *(["s3"] if bucket else [])]:
        push = ours("repository", "push", f"push([Path('data')], '{remote}')")
        report(f"push to {remote}, first", root, push)
        report(f"push to {remote}, unchanged", root, push)
        shutil.rmtree(root / ".dvc" / "cache")
        shutil.rmtree(root / "data")
        report(f"pull from {remote}", root, ours("repository", "pull", f"pull([Path('data.dvc')], '{remote}')"))


def ours(module: str, name: str, call: str) -> list[str]:
    """Build a command that calls one of our functions."""
    return [sys.executable, "-c", OURS.format(module=module, name=name, call=call)]


def fill(folder: Path, first: int, count: int, kilobytes: int) -> None:
    """Write `count` files of random bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        (folder / f"clip{number:06d}.wav").write_bytes(os.urandom(1000 * kilobytes))


def run(root: Path, *command: str) -> None:
    """Run a command without measuring it."""
    subprocess.run(command, cwd=root, check=True, capture_output=True)


def report(step: str, root: Path, command: list[str], write: Callable[[str], None] = print) -> None:
    """Run a step and write its seconds and peak memory."""
    started = time.monotonic()
    with subprocess.Popen(command, cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        errors = process.stderr.read() if process.stderr else b""
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{step}: {errors.decode(errors='replace')[-2000:]}")
    write(f"{step:<44}{time.monotonic() - started:>9.1f}{usage.ru_maxrss / 1000:>9.0f}")


def size(folder: Path) -> int:
    """Return the size of a folder in megabytes."""
    return round(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6)


if __name__ == "__main__":
    main(
        int(sys.argv[1]) if len(sys.argv) > 1 else 10_000,
        int(sys.argv[2]) if len(sys.argv) > 2 else 30,
        sys.argv[3] if len(sys.argv) > 3 else None,
    )
