from pathlib import Path

import pytest

from audioscore.demo.corpus import main


def test_it_writes_a_corpus(tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    given = ["--out", str(out), "--singers", "2", "--clips-per-singer", "1", "--seed", "1", "--workers", "1"]
    assert main(given) == 0
    assert len((out / "labels.csv").read_text(encoding="utf-8").splitlines()) == 3
    assert len(list((out / "audio").iterdir())) == 2


def test_a_wrong_share_exits_with_2(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert main(["--out", str(tmp_path / "x"), "--timbre-share", "2"]) == 2
    assert "2.0" in caplog.text
    assert not (tmp_path / "x").exists()
