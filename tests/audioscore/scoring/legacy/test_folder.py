import pickle
from pathlib import Path

import pytest
import torch

from audioscore.errors import ModelError, UsageError
from audioscore.scoring.legacy.folder import (
    LegacyAdapter,
    LegacyWeights,
    join_adapters,
    join_full,
    read_files,
    split_muq,
    write_folder,
)

Q = "model.conformer.layers.0.self_attn.linear_q"
BASE = {f"{Q}.weight": torch.ones(3, 3), f"{Q}.bias": torch.ones(3), "model.linear.weight": torch.ones(2, 3)}
SHAPES = {name: tuple(value.shape) for name, value in BASE.items()}
ADAPTERS = {Q: LegacyAdapter(torch.full((2, 3), 2.0), torch.full((3, 2), 3.0), 0.375)}
WEIGHTS = LegacyWeights({"fc.bias": torch.zeros(5)}, ADAPTERS, None)


def test_names_of_both_variants() -> None:
    assert sorted(join_adapters(ADAPTERS)) == [
        f"{Q}.audio_lora.lora_A", f"{Q}.audio_lora.lora_B", f"{Q}.audio_lora.scaling"
    ]  # fmt: skip
    assert sorted(join_full(BASE, ADAPTERS)) == [
        f"{Q}.base_layer.bias", f"{Q}.base_layer.weight", f"{Q}.lora_A.audio_lora.weight",
        f"{Q}.lora_B.audio_lora.weight", "model.linear.weight"
    ]  # fmt: skip


@pytest.mark.parametrize("full", [True, False])
def test_split_undoes_join(full: bool) -> None:
    stored = join_full(BASE, ADAPTERS) if full else join_adapters(ADAPTERS)
    adapters, base = split_muq(stored, SHAPES, "muq_lora.pt", rank=2, alpha=0.75)
    assert adapters.keys() == {Q}
    assert torch.equal(adapters[Q].a, ADAPTERS[Q].a)
    assert torch.equal(adapters[Q].b, ADAPTERS[Q].b)
    assert adapters[Q].scaling == 0.375
    assert (base is not None) is full
    assert base is None or all(torch.equal(base[name], BASE[name]) for name in BASE)


def test_an_adapter_with_inconsistent_ranks_is_refused() -> None:
    stored = join_adapters({Q: LegacyAdapter(torch.zeros(2, 3), torch.zeros(3, 4), 1.0)})
    with pytest.raises(ModelError, match=r"\b1 .*shape .*lora_B \[3, 4\].*\[3, 2\]"):
        split_muq(stored, SHAPES, "muq_lora.pt", rank=2, alpha=1.0)


def test_files_missing_or_of_another_type_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    with pytest.raises(ModelError, match=r"model: type\.txt .*weights\.pt .*muq_lora\.pt missing"):
        read_files(folder)
    write_folder(WEIGHTS, folder, base=None)
    (folder / "type.txt").write_text("SongEvalGenerator_audio")
    with pytest.raises(ModelError, match=r"type\.txt: .*'SongEvalGenerator_audio'.* SongEvalGenerator_audio_lora"):
        read_files(folder)
    (folder / "muq_lora.pt").unlink()
    with pytest.raises(ModelError, match=r"model: muq_lora\.pt missing\."):
        read_files(folder)


class Opener:
    """A pickle that opens a file when it is loaded."""

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, ("ran.txt", "w")


@pytest.mark.parametrize("kind", ["code", "noise", "half", "nothing"])
def test_damaged_files_and_pickled_code_are_refused(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "model"
    write_folder(WEIGHTS, folder, base=None)
    file = folder / "weights.pt"
    content = {
        "code": pickle.dumps(Opener(), protocol=2), "noise": b"\x00" * 50, "half": file.read_bytes()[:300],
        "nothing": b""
    }  # fmt: skip
    file.write_bytes(content[kind])
    with pytest.raises(ModelError, match=r"weights\.pt: .*\(.+\)"):
        read_files(folder)
    assert not (tmp_path / "ran.txt").exists()


@pytest.mark.parametrize("content", [[torch.zeros(1)], {"fc.bias": 3}])
def test_anything_but_named_tensors_is_refused(tmp_path: Path, content: object) -> None:
    write_folder(WEIGHTS, tmp_path / "model", base=None)
    torch.save(content, tmp_path / "model" / "weights.pt")
    with pytest.raises(ModelError, match=r"weights\.pt: "):
        read_files(tmp_path / "model")


def test_saving_replaces_only_a_model(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    write_folder(WEIGHTS, folder, base=None)
    write_folder(WEIGHTS, folder, base=BASE)
    assert sorted(path.name for path in folder.iterdir()) == ["muq_lora.pt", "type.txt", "weights.pt"]
    assert f"{Q}.base_layer.weight" in read_files(folder)[1]
    (folder / "notes.md").write_text("mine")
    with pytest.raises(UsageError, match=r"model: .*notes\.md"):
        write_folder(WEIGHTS, folder, base=None)
    assert (folder / "notes.md").read_text() == "mine"
