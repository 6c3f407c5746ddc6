"""Decoding compared with the program `ffmpeg` and libsndfile: a sample in CI, everything by `make test-long`."""

import random
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from tests.reference import recordings
from tests.reference.recordings import Case

PARTS = 24
SAMPLE = 12  # combinations of FFmpeg's muxers and encoders that CI tries, each with four changed copies
RATES, CHANNELS = (8_000, 16_000, 22_050, 44_100, 48_000, 96_000), (1, 2, 6)


@pytest.fixture(scope="module")
def _ffmpeg() -> None:
    if shutil.which("ffmpeg") is None:
        pytest.skip("ffmpeg is not installed: see .ci/packages")


def combinations() -> list[tuple[str, str, int, int]]:
    """Every muxer with every encoder, each with a random rate and layout, in random order, always the same."""
    generator = random.Random(17)
    found = [(*pair, generator.choice(RATES), generator.choice(CHANNELS)) for pair in recordings.pairs()]
    generator.shuffle(found)
    return found


def check(cases: Iterable[Case], record: Callable[[str, object], None]) -> None:
    problems, files = [], 0
    for case in cases:
        files += 1
        if problem := recordings.find_problem(case):
            problems.append(f"{case.path.name} ({case.kind}): {problem}")
        case.path.unlink()
    record("files compared", files)
    assert not problems, "\n".join(problems)
    assert files


@pytest.mark.services
@pytest.mark.parametrize("part", [recordings.with_wide_samples, recordings.with_wrong_sizes])
def test_pcm_containers(
    tmp_path: Path, record_property: Callable[[str, object], None], part: Callable[[Path], Iterable[Case]]
) -> None:
    check(part(tmp_path), record_property)


@pytest.mark.services
@pytest.mark.usefixtures("_ffmpeg")
def test_a_sample_of_the_formats_of_ffmpeg(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    check(recordings.written_by_ffmpeg(tmp_path, combinations(), most=SAMPLE), record_property)


@pytest.mark.long
def test_every_format_of_libsndfile(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    check(recordings.written_by_libsndfile(tmp_path), record_property)


@pytest.mark.long
@pytest.mark.usefixtures("_ffmpeg")
@pytest.mark.parametrize("part", range(PARTS))
def test_every_format_of_ffmpeg(tmp_path: Path, record_property: Callable[[str, object], None], part: int) -> None:
    check(recordings.written_by_ffmpeg(tmp_path, combinations()[part::PARTS]), record_property)
