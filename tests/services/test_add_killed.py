import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from audioscore.data.audio import encode

CLIPS, KILLS = 100, 24


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def delivery(tmp_path: Path) -> Iterator[Path]:
    """A table of 100 recordings: every second one as a link, the others as files beside it."""
    folder = tmp_path / "delivery"
    rng = np.random.default_rng(3)
    time_axis = np.arange(16_000) / 16_000
    handler = partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        rows = ["audio_file,score,singer_id,source"]
        for number in range(CLIPS):
            pitch = np.interp(time_axis, np.linspace(0, 1, 4), rng.uniform(120, 420, 4))
            phase = 2 * np.pi * np.cumsum(pitch) / 16_000
            wave = sum(np.sin(k * phase) / k for k in range(1, 9)) + rng.normal(0, 0.1, 16_000)
            encode((0.1 * wave).astype(np.float32), 16_000, folder / f"clip {number}.wav", codec="pcm_s16le")
            link = f"http://127.0.0.1:{server.server_address[1]}/clip%20{number}.wav"
            rows.append(f"{link if number % 2 else f'clip {number}.wav'},{50 + number / 2},s{number % 20},ktv")
        (folder / "labels.csv").write_text("\n".join(rows))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder / "labels.csv"
        server.shutdown()


def repository(folder: Path) -> Path:
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q"], cwd=folder, check=True)
    return folder


def state(root: Path) -> dict[str, bytes]:
    """Content of every file of a repository except those of git and DVC."""
    found = {path.relative_to(root).as_posix(): path for path in root.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if not name.startswith((".git/", ".dvc/"))}


@pytest.mark.services
def test_after_random_kills_the_result_is_the_same(delivery: Path, tmp_path: Path) -> None:
    undisturbed, killed = repository(tmp_path / "undisturbed"), repository(tmp_path / "killed")
    program = Path(__file__).with_name("add_and_be_killed.py")
    command = [sys.executable, str(program), str(undisturbed), str(killed), str(delivery), str(KILLS), "7"]
    subprocess.run(command, check=True, env={**os.environ, "DVC_NO_ANALYTICS": "1"})
    expected, found = state(undisturbed), state(killed)
    assert sorted(found) == sorted(expected)
    assert {name for name in expected if found[name] != expected[name]} == set()
    assert len([name for name in found if name.startswith("songs/audio/")]) == CLIPS
    # The version in DVC is complete: a checkout restores every file.
    subprocess.run(["rm", "-r", str(killed / "songs")], check=True)
    subprocess.run([sys.executable, "-m", "dvc", "checkout", "-q"], cwd=killed, check=True)
    assert state(killed) == expected
