from pathlib import Path

import pytest

from audioscore.training.trainjob.pod import PLACE, main


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in zip(PLACE, ("2", "0", "127.0.0.1", "29500"), strict=True):
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("in_the_way", [False, True])
def test_an_exchange_without_a_training(tmp_path: Path, capfd: pytest.CaptureFixture[str], in_the_way: bool) -> None:
    if in_the_way:
        (tmp_path / "hybrid-1").write_text("a file where a folder should be")
    assert main(["--exchange", str(tmp_path), "--job", "hybrid-1"]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert f"{tmp_path}/hybrid-1/input" in line


def test_outside_a_trainjob(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PET_NNODES", "2")
    for name in PLACE[1:]:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SystemExit) as stopped:
        main(["--exchange", "/x", "--job", "y"])
    assert stopped.value.code == 2
    assert "PET_NODE_RANK, PET_MASTER_ADDR, PET_MASTER_PORT" in capfd.readouterr().err
