import errno
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.io import wavfile

from audioscore.data import file_checks
from audioscore.data.audio import Recording, Wave, encode
from audioscore.data.audio_checks import RULES, AudioLimits, AudioMeasurements, measure_recording
from audioscore.data.file_checks import CheckedRecording, audio_path, check_recording, check_recordings
from audioscore.data.measurement_cache import MeasurementCache
from audioscore.errors import AudioError
from audioscore.files import sha256_of

RATE = 24_000
MINUTES = 20


def test_names_on_disk_in_gbk_and_half_an_emoji(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode("歌.wav".encode("gbk"))
    encode(voice(), RATE, path, codec="pcm_s16le")
    assert audio_path(tmp_path, "歌.wav") == path
    mixed = tmp_path / os.fsdecode("录音".encode("gbk")) / "曲.wav"
    mixed.parent.mkdir()
    mixed.touch()
    assert audio_path(tmp_path, "录音/曲.wav") == audio_path(tmp_path, str(tmp_path / "录音/曲.wav")) == mixed
    assert check_recording("歌.wav", tmp_path, AudioLimits()).error is None
    assert "ud83c.wav" in (check_recording("\ud83c.wav", tmp_path, AudioLimits()).error or "")


def tone(seconds: float = 2.0, amplitude: float = 0.5) -> Wave:
    return (amplitude * np.sin(2 * np.pi * 200 * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


def silence(seconds: float) -> Wave:
    return np.zeros(round(seconds * RATE), dtype=np.float32)


def rules(found: CheckedRecording) -> list[str]:
    assert found.error is None
    return [one.rule for one in found.findings]


def voice(seconds: float = 3.0, rate: int = RATE, pitch: float = 220.0) -> Wave:
    """A voice with vibrato and harmonics up to the end of the band, and a little breath noise."""
    t = np.arange(round(seconds * rate)) / rate
    phase = 2 * np.pi * (pitch * t + 0.6 * np.sin(2 * np.pi * 5.5 * t))
    tones = sum(np.sin(k * phase) / k for k in range(1, int(0.45 * rate / pitch)))
    breath = np.random.default_rng(3).normal(0, 0.02, len(t))
    return np.asarray(0.2 * tones + 0.2 * breath, dtype=np.float32)


def low_voice(seconds: float = 2.0, rate: int = RATE) -> Wave:
    """A voice with vibrato and harmonics below 3.6 kHz, which every rate from 8 kHz can represent."""
    time = np.arange(round(seconds * rate)) / rate
    phase = 2 * np.pi * (220 * time + 0.6 * np.sin(2 * np.pi * 5.5 * time))
    return np.asarray(0.1 * sum(np.sin(k * phase) / k for k in range(1, 16)), dtype=np.float32)


def measured(path: Path) -> CheckedRecording:
    return check_recording(path.name, path.parent, AudioLimits())


def accepted(path: Path) -> AudioMeasurements:
    """The measurements of a recording without errors."""
    found = measured(path)
    assert found.error is None
    assert [one.rule for one in found.findings if RULES[one.rule] == "error"] == []
    assert found.measurements is not None
    return found.measurements


@pytest.mark.parametrize(("suffix", "codec"), [("wav", "pcm_s16le"), ("m4a", "aac"), ("mp3", "libmp3lame")])
def test_clipping_is_detected_after_lossy_codecs(tmp_path: Path, suffix: str, codec: str) -> None:
    path = tmp_path / f"a.{suffix}"
    encode(tone(3, amplitude=20), RATE, path, codec=codec, bit_rate=128_000)
    assert "clipped" in rules(check_recording(path.name, tmp_path, AudioLimits()))
    encode(tone(3, amplitude=0.8), RATE, path, codec=codec, bit_rate=128_000)
    assert "clipped" not in rules(check_recording(path.name, tmp_path, AudioLimits()))


def test_a_result_has_hash_and_size_but_no_path(tmp_path: Path) -> None:
    wavfile.write(tmp_path / "a.wav", RATE, tone())
    found = check_recording("a.wav", tmp_path, AudioLimits())
    assert found.sha256 == sha256_of(tmp_path / "a.wav")
    assert found.bytes == (tmp_path / "a.wav").stat().st_size
    assert found.measurements == measure_recording(Recording(tone(), RATE))
    assert check_recording(str(tmp_path / "a.wav"), tmp_path / "elsewhere", AudioLimits()) == found
    for name in ("b.wav", "s3://bucket/a.wav"):
        missing = check_recording(name, tmp_path, AudioLimits())
        assert (missing.measurements, missing.sha256) == (None, None)
        assert str(tmp_path) not in (missing.error or str(tmp_path))
    assert check_recordings([], tmp_path, AudioLimits(), 2) == []


def test_a_clean_voice_has_no_findings_and_silence_only_those_of_level(tmp_path: Path) -> None:
    wavfile.write(tmp_path / "a.wav", RATE, voice())
    wavfile.write(tmp_path / "silent.wav", RATE, silence(2))
    clean, silent = (check_recording(name, tmp_path, AudioLimits()) for name in ("a.wav", "silent.wav"))
    assert (rules(clean), rules(silent), silent.fingerprint) == ([], ["silent", "nearly_silent"], b"")
    assert clean.fingerprint


@pytest.mark.parametrize("pairs", [1, 2, 3])
def test_inverted_channels_are_reported_before_the_resulting_silence(tmp_path: Path, pairs: int) -> None:
    wavfile.write(tmp_path / "a.wav", RATE, np.stack([voice(), -voice()] * pairs, axis=1))
    found = check_recording("a.wav", tmp_path, AudioLimits())
    assert rules(found) == ["phase_cancelled", "silent", "nearly_silent"]
    assert "-120.0 dB" in found.findings[0].reason
    wavfile.write(tmp_path / "b.wav", RATE, np.stack([voice(), voice(pitch=300)], axis=1))
    assert rules(check_recording("b.wav", tmp_path, AudioLimits())) == []


def test_a_path_outside_the_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "below"
    (folder / "audio").mkdir(parents=True)
    wavfile.write(tmp_path / "a.wav", RATE, tone())
    (folder / "linked.wav").symlink_to(tmp_path / "a.wav")
    (folder / "up").symlink_to(tmp_path)
    for name in ("../a.wav", "audio/../../a.wav", "../none.wav", "linked.wav", "up/a.wav", "../below-too/a.wav"):
        assert check_recording(name, folder, AudioLimits()).error is not None
        with pytest.raises(AudioError, match=r"^" + name.replace(".", r"\.")):
            audio_path(folder, name)
    wavfile.write(folder / "inside.wav", RATE, tone())
    (folder / "audio" / "alias.wav").symlink_to("../inside.wav")
    (tmp_path / "data").symlink_to(folder)
    for name in ("inside.wav", "audio/../inside.wav", "audio/alias.wav", str(tmp_path / "a.wav")):
        assert check_recording(name, folder, AudioLimits()).error is None
        assert check_recording(name, tmp_path / "data", AudioLimits()).error is None


def test_special_files_have_specific_errors(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "a.wav").symlink_to("b.wav")
    (tmp_path / "b.wav").symlink_to("a.wav")
    words = {"pipe.wav": "pipe", "/dev/zero": "device", "a.wav": "link", "": "folder", "x\0.wav": "no such"}
    found = {name: check_recording(name, tmp_path, AudioLimits()).error or "" for name in words}
    assert [name for name, word in words.items() if word not in found[name]] == []


def test_a_file_that_changes_while_it_is_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wavfile.write(tmp_path / "a.wav", RATE, tone())
    real = file_checks.decode

    def growing(path: Path) -> Recording:
        recording = real(path)
        path.write_bytes(path.read_bytes() + b"more")
        return recording

    monkeypatch.setattr(file_checks, "decode", growing)
    changed = check_recording("a.wav", tmp_path, AudioLimits())
    assert changed.error is not None
    assert (changed.measurements, changed.sha256) == (None, None)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder, codecs = tmp_path_factory.mktemp("written"), [".wav", ".mp3", ".m4a", ".flac"]
    for suffix, codec in zip(codecs, ("pcm_s16le", "libmp3lame", "aac", "flac"), strict=True):
        encode(voice(1.2), RATE, folder / f"a{suffix}", codec=codec)
    return {suffix: (folder / f"a{suffix}").read_bytes() for suffix in codecs}


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([".wav", ".mp3", ".m4a", ".flac"]),
    st.binary(min_size=1, max_size=400),
    st.booleans(),
    st.floats(0, 1),
)
def test_random_content_never_raises(
    written: dict[str, bytes], suffix: str, junk: bytes, within: bool, position: float
) -> None:
    """Random bytes, alone or replacing a part of an audio file, including its header."""
    at = int(position**4 * len(written[suffix]))  # most often near the header
    content = written[suffix][:at] + junk + written[suffix][at + len(junk) :] if within else junk
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / f"a{suffix}").write_bytes(content)
        found = check_recording(f"a{suffix}", Path(folder), AudioLimits())
        assert (found.error is None) == (found.measurements is not None)
        assert folder not in (found.error or "")


def test_cached_recordings_are_not_decoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, cache = tmp_path / "data", tmp_path / "home" / "probes.db"
    folder.mkdir()
    wavfile.write(folder / "a.wav", RATE, voice())
    (folder / "b.wav").write_bytes(b"text" * 30)
    names = ["a.wav", "b.wav", "missing.wav"]
    first = check_recordings(names, folder, AudioLimits(), 1, cache=cache)
    (folder / "a.wav").rename(folder / "c.wav")

    def fail(path: Path) -> Recording:
        raise AudioError(f"{path}: DECODED") from OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(file_checks, "decode", fail)
        assert check_recordings(["c.wav", "b.wav", "missing.wav"], folder, AudioLimits(), 1, cache=cache) == first
        # Limits are applied to stored measurements, and are not stored with them.
        short, _, _ = check_recordings(["c.wav", *names[1:]], folder, AudioLimits(max_seconds=2), 1, cache=cache)
        assert rules(short) == ["too_long"]
        patched.setattr(file_checks, "MEASUREMENT_VERSION", "another")
        assert check_recording("c.wav", folder, AudioLimits()).error == "DECODED"
        assert check_recordings(["c.wav"], folder, AudioLimits(), 1, cache=cache)[0].error == "DECODED"
        # Other bytes under the same name are decoded; a failing disk is not stored.
        patched.undo()
        patched.setattr(file_checks, "decode", fail)
        wavfile.write(folder / "c.wav", RATE, voice(1.5))
        assert check_recordings(["c.wav"], folder, AudioLimits(), 1, cache=cache)[0].error == "DECODED"
    (again,) = check_recordings(["c.wav"], folder, AudioLimits(), 1, cache=cache)
    assert rules(again) == []
    assert again.measurements is not None
    assert again.measurements.seconds == pytest.approx(1.5)


@pytest.mark.parametrize("workers", [1, 2])
def test_results_are_in_order_with_progress(tmp_path: Path, workers: int) -> None:
    names = [f"{number}.wav" for number in range(30)]
    for number, name in enumerate(names):
        if number != 7:
            wavfile.write(tmp_path / name, RATE, tone(1 + number / 100))
    progress: list[tuple[int, int]] = []
    cache = tmp_path / "probes.db"
    found = check_recordings(
        names, tmp_path, AudioLimits(), workers, lambda done, all_: progress.append((done, all_)), cache
    )
    assert progress == [(done, 30) for done in range(1, 31)]
    assert [number for number, one in enumerate(found) if one.error] == [7]
    assert [one.measurements.seconds if one.measurements else None for one in found] == [
        None if number == 7 else pytest.approx(1 + number / 100, abs=1e-4) for number in range(30)
    ]
    with MeasurementCache(cache, file_checks.MEASUREMENT_VERSION, reads_only=True) as cached:
        assert [number for number, one in enumerate(found) if not cached.get(f"{one.sha256}.wav")] == [7]


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 32_000, 44_100, 48_000, 88_200, 96_000])
@pytest.mark.parametrize(("suffix", "codec"), [("wav", "pcm_s16le"), ("flac", "flac")])
def test_every_rate_gives_the_same_measurements(tmp_path: Path, rate: int, suffix: str, codec: str) -> None:
    encode(low_voice(rate=rate), rate, tmp_path / f"a.{suffix}", codec=codec)
    found = accepted(tmp_path / f"a.{suffix}")
    assert found.rate == rate
    assert found.seconds == pytest.approx(2.0, abs=1e-3)
    # Parseval: harmonics of 0.1 / k.
    level = 10 * np.log10(sum((0.1 / k) ** 2 / 2 for k in range(1, 16)))
    assert found.level_db == pytest.approx(level, abs=0.05)


MEASURE_LONG = """
import resource, sys
from pathlib import Path
from audioscore.data.audio_checks import AudioLimits
from audioscore.data.file_checks import check_recording
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = check_recording(sys.argv[1], Path(sys.argv[2]), AudioLimits())
assert found.measurements is not None, found.error
print(found.measurements.seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def test_twenty_minutes_are_measured_in_bounded_memory(tmp_path: Path) -> None:
    samples = (32_767 * low_voice(seconds=60.0, rate=16_000)).astype(np.int16)
    wavfile.write(tmp_path / "long.wav", 16_000, np.tile(samples, MINUTES))
    command = [sys.executable, "-c", MEASURE_LONG, "long.wav", str(tmp_path)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    seconds, megabytes = map(float, printed)
    assert seconds == MINUTES * 60
    assert megabytes < 5 * MINUTES * 60 * 16_000 * 4 / 2**20  # five times the wave


def test_more_than_an_hour_is_refused_without_decoding(tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    wavfile.write(path, 8_000, np.zeros(0, dtype=np.int16))
    content, size = bytearray(path.read_bytes()), 3_601 * 16_000
    content[4:8], content[-4:] = (len(content) - 8 + size).to_bytes(4, "little"), size.to_bytes(4, "little")
    path.write_bytes(content)
    os.truncate(path, len(content) + size)  # sparse: it uses no disk space
    error = measured(path).error or ""
    assert [figure in error for figure in ("3601 s", "3600 s")] == [True, True]


@pytest.mark.parametrize("name", ["with space.wav", "quo\"te's.wav", "line\nend.wav", "录音.wav", "\N{MICROPHONE}.wav"])
def test_every_name_can_be_decoded(tmp_path: Path, name: str) -> None:
    encode(low_voice(), RATE, tmp_path / name, codec="pcm_s16le")
    accepted(tmp_path / name)


def test_a_file_without_read_permission_is_refused() -> None:
    # Root can read every file, so the test changes the user, who needs access to the folder.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "locked.wav"
        encode(low_voice(), RATE, path, codec="pcm_s16le")
        accepted(path)  # imports modules before the change of user
        Path(folder).chmod(0o755)
        path.chmod(0)
        root = os.geteuid() == 0
        try:
            if root:
                os.seteuid(65_534)
            error = measured(path).error
        finally:
            if root:
                os.seteuid(0)
    assert os.strerror(errno.EACCES) in (error or "")


def test_a_disk_error_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode(low_voice(), RATE, tmp_path / "a.wav", codec="pcm_s16le")

    def fail(path: Path) -> str:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr(file_checks, "sha256_of", fail)
    found = measured(tmp_path / "a.wav")
    assert "Input/output error" in (found.error or "")
    assert found.sha256 is None


STARTS = """
import multiprocessing, time
from audioscore.data.file_checks import start_workers
pool = start_workers(2)
pool.submit(abs, -1).result()
pool.submit(time.sleep, 600)
pool.submit(abs, -1).result()
print(*[process.pid for process in multiprocessing.active_children()], flush=True)
time.sleep(600)
"""


def test_idle_and_busy_workers_end_when_their_parent_is_killed() -> None:
    process = subprocess.Popen([sys.executable, "-c", STARTS], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    workers = [psutil.Process(int(number)) for number in process.stdout.readline().split()]
    process.kill()
    process.wait()
    process.stdout.close()
    try:
        assert len(workers) == 2
        assert psutil.wait_procs(workers, timeout=30)[1] == []
    finally:
        for worker in workers:
            if worker.is_running():
                worker.kill()
