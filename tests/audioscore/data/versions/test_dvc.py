"""Recordings that are links into DVC's cache, with every type of link that DVC makes."""

import hashlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from audioscore.data.audio import encode
from audioscore.data.audio_checks import AudioLimits
from audioscore.data.file_checks import audio_path, check_recordings
from audioscore.data.transfer.locate import locate
from audioscore.data.versions import dvc
from audioscore.data.versions.dvc import is_dvc_link
from audioscore.data.versions.repository import commit
from audioscore.errors import AudioError
from audioscore.files import link_or_copy, write_text

NAME = "audio/a.wav"
DVC = Path(sys.executable).with_name("dvc")


@pytest.fixture(autouse=True)
def _own_caches() -> None:
    dvc._cache_of.cache_clear()


@pytest.fixture(params=["symlink", "hardlink", "copy", "symlink to an external cache"])
def tracked(request: pytest.FixtureRequest, data: Path, tmp_path: Path, run: Callable[..., str]) -> tuple[Path, Path]:
    """A data folder after a real `dvc add` with this `cache.type`, and the cache."""
    kind, external, _ = request.param.partition(" to ")
    cache = tmp_path / "shared cache" if external else data.parent / ".dvc/cache"
    run(data.parent, DVC, "config", "cache.type", kind)
    if external:
        run(data.parent, DVC, "config", "cache.dir", cache)
    encode((np.sin(np.arange(24_000) / 20) / 4).astype(np.float32), 24_000, data / NAME, codec="pcm_s16le")
    (data / "labels.csv").write_text("audio_file,score\naudio/a.wav,80\n", encoding="utf-8")
    run(data.parent, DVC, "add", "-q", "data")
    assert (data / NAME).is_symlink() == (kind == "symlink")
    return data, cache


def test_recordings_are_read_and_the_cache_stays_as_it_is(tracked: tuple[Path, Path]) -> None:
    folder, cache = tracked
    (checked,) = check_recordings([NAME], folder, AudioLimits())
    assert checked.error is None
    assert checked.sha256 == hashlib.sha256((folder / NAME).read_bytes()).hexdigest()
    assert locate(NAME, folder).path == folder / NAME
    link_or_copy(folder / "labels.csv", folder.parent / "kept.csv")
    write_text(folder / "labels.csv", "audio_file,score\naudio/a.wav,90\n")
    os.replace(folder.parent / "kept.csv", folder / "copy.csv")
    assert commit(folder).files == 3
    objects = [path for path in (cache / "files/md5").rglob("*") if path.is_file() and path.suffix != ".dir"]
    assert len(objects) == 3
    for path in objects:
        assert hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() == path.parent.name + path.name


def test_a_linked_data_folder_is_the_same(tracked: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(tracked[0])
    assert audio_path(tmp_path / "alias", NAME) == tmp_path / "alias" / NAME


def test_links_to_other_files_are_refused(data: Path, tmp_path: Path) -> None:
    cache = data.parent / ".dvc/cache"
    for target in (tmp_path / "secret.wav", data.parent / ".dvc/config", tmp_path / "other/.dvc/cache/x", cache / "x"):
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
        (data / "audio").mkdir(parents=True, exist_ok=True)
        link = data / NAME
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        assert is_dvc_link(link, data) == (target == cache / "x")
    link.unlink()
    (data / "cache").symlink_to(cache)
    with pytest.raises(AudioError, match=r"^cache/x"):  # the name of a file in the cache is no link
        audio_path(data, "cache/x")


def test_without_a_repository_no_link_leads_out(tmp_path: Path) -> None:
    (tmp_path / "songs").mkdir()
    (tmp_path / "x.wav").touch()
    (tmp_path / "songs/a.wav").symlink_to(tmp_path / "x.wav")
    with pytest.raises(AudioError, match=r"^a\.wav"):
        audio_path(tmp_path / "songs", "a.wav")
