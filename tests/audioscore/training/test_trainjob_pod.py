import re
from pathlib import Path

import pytest

from audioscore.training.trainjob_pod import PLACE, main


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in zip(PLACE, ("2", "0", "127.0.0.1", "29500"), strict=True):
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("place")
def test_a_pod_without_a_training_says_so(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--exchange", str(tmp_path), "--job", "hybrid-1"]) == 2
    assert capfd.readouterr().err == (
        f"error: {tmp_path}/hybrid-1/input is not there whole. What writes it did not finish; run it again.\n"
    )


@pytest.mark.usefixtures("place")
def test_an_exchange_that_cannot_be_read_is_one_sentence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "hybrid-1").write_text("a file where a folder should be")
    assert main(["--exchange", str(tmp_path), "--job", "hybrid-1"]) == 2
    assert len(capfd.readouterr().err.splitlines()) == 1


def test_outside_a_trainjob_there_is_nothing_to_do(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PET_NNODES", "2")
    for name in PLACE[1:]:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SystemExit) as stopped:
        main(["--exchange", "/x", "--job", "y"])
    assert stopped.value.code == 2
    expected = (
        r"PET_NODE_RANK, PET_MASTER_ADDR, PET_MASTER_PORT are not set\. A TrainJob whose runtime has an mlPolicy "
    )
    assert re.search(expected, capfd.readouterr().err)
