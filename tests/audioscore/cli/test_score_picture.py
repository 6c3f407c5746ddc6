from pathlib import Path

import pytest

from audioscore.cli.score import timeline_figure, write_picture
from audioscore.errors import UsageError
from audioscore.scoring.results import ClipScore, Moment

MOMENTS = tuple(Moment(2.5 * step, 2.5 * step + 10, 70.0 + step) for step in range(9))
ROW = ClipScore("in/歌$1.wav", 75.0, (70.0, 80.0), 0.1, 30.0, None, MOMENTS)


def test_a_second_picture_of_one_name_is_numbered(tmp_path: Path) -> None:
    first, second = write_picture(ROW, tmp_path / "new"), write_picture(ROW, tmp_path / "new")
    assert [first.name, second.name] == ["歌$1.wav.timeline.png", "歌$1.wav.timeline-2.png"]
    assert first.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_every_moment_is_drawn_at_its_middle() -> None:
    axes = timeline_figure(ROW).axes[0]
    line = axes.lines[-1]
    assert list(line.get_xdata()) == [5 + 2.5 * step for step in range(9)]
    assert list(line.get_ydata()) == [70.0 + step for step in range(9)]
    assert axes.get_ylim() == (67.0, 83.0)


def test_a_file_instead_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match=r"--pictures .*file"):
        write_picture(ROW, tmp_path / "file")
