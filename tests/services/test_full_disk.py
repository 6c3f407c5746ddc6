"""A full disk: a small file system that is filled to different sizes."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from audioscore.cli import app
from audioscore.data.audio import encode
from audioscore.data.labels import read_labels

pytestmark = pytest.mark.services

CLIPS, RATE = 12, 16_000
CAPACITY = 6 << 20  # bytes of the small file system

Add = Callable[[Path, Path], tuple[int, str]]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of CAPACITY bytes; mounting needs root."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={CAPACITY}", "tmpfs", str(folder)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def deliver(folder: Path, first: int) -> Path:
    """A table of CLIPS recordings of 1.2 s and 38 kB each."""
    folder.mkdir()
    rows = ["audio_file,score,singer_id"]
    time = np.arange(round(1.2 * RATE)) / RATE
    for number in range(first, first + CLIPS):
        pitch = np.interp(time, np.linspace(0, 1.2, 5), np.random.default_rng(number).uniform(120, 420, 5))
        phase = 2 * np.pi * np.cumsum(pitch) / RATE
        wave = 0.1 * sum(np.sin(k * phase) / k for k in range(1, 15))
        encode(np.asarray(wave, dtype=np.float32), RATE, folder / f"t{number}.wav", codec="pcm_s16le")
        rows.append(f"t{number}.wav,{50 + number},s{number}")
    (folder / "labels.csv").write_text("\n".join(rows))
    return folder / "labels.csv"


def repository(folder: Path) -> Path:
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q"], cwd=folder, check=True)
    return folder


@pytest.fixture
def add(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Add:
    """`audioscore data add LABELS --data songs` in a folder: exit code and standard error."""
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")

    def call(labels: Path, where: Path) -> tuple[int, str]:
        monkeypatch.chdir(where)
        monkeypatch.setattr(sys, "argv", ["audioscore", "data", "add", str(labels), "--data", "songs"])
        with pytest.raises(SystemExit) as end:
            app.main()
        monkeypatch.chdir("/")  # otherwise the disk could not be unmounted
        return int(end.value.code or 0), capsys.readouterr().err

    return call


def state(root: Path) -> dict[str, bytes]:
    """Content of every file except those of git and DVC; folders by name."""
    found = {path.relative_to(root).as_posix(): path for path in root.rglob("*")}
    ours = {name: path for name, path in found.items() if not name.startswith((".git/", ".dvc/", "filler"))}
    return {name: path.read_bytes() if path.is_file() else b"" for name, path in ours.items()}


def leave(disk: Path, free: int) -> None:
    """Fill the disk so that `free` bytes are left."""
    (disk / "filler").unlink(missing_ok=True)
    available = shutil.disk_usage(disk).free
    with (disk / "filler").open("wb") as handle:
        handle.write(bytes(available - free))


def test_the_disk_is_full_at_every_stage(add: Add, disk: Path, tmp_path: Path) -> None:
    first, second = deliver(tmp_path / "first", 0), deliver(tmp_path / "second", CLIPS)
    undisturbed = repository(tmp_path / "undisturbed")
    repository(disk)
    for where in (undisturbed, disk):
        assert add(first, where)[0] == 0
    before, whole = state(disk), CLIPS * 38_444
    for free in (0, whole // 2, whole + 20_000, 3 * whole // 2):
        leave(disk, free)
        code, err = add(second, disk)
        assert code == 2, (free, err)
        assert "Traceback" not in err
        lines = [line for line in err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1
        assert "No space left on device" in lines[0] or "disk" in lines[0], lines
        if free < whole:  # the recordings do not fit: the folder is unchanged
            assert state(disk) == before
        rows = len(read_labels(disk / "songs" / "labels.csv").clips)
        assert rows in (CLIPS, 2 * CLIPS)
    (disk / "filler").unlink()
    assert add(second, disk)[0] == 0
    assert add(second, undisturbed)[0] == 0
    assert state(disk) == state(undisturbed)
    assert not (disk / ".songs.incoming").exists()
    # The version in DVC's cache is complete.
    shutil.rmtree(disk / "songs")
    subprocess.run([sys.executable, "-m", "dvc", "checkout", "-q"], cwd=disk, check=True)
    assert state(disk) == state(undisturbed)
