from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from audioscore.encoders.reference import OWN_WEIGHTS, EncoderReference, check_pin, is_folder
from audioscore.errors import ModelError

MUQ = EncoderReference("muq", "OpenMuQ/MuQ-large-msd-iter", "b83ebda", "ab" * 32, 6)


def test_the_key_changes_with_weights_and_layer_and_nothing_else() -> None:
    same = EncoderReference("muq", None, None, "ab" * 32, 6)
    others = [EncoderReference("muq", None, None, "ab" * 32, 5), EncoderReference("muq", None, None, "cd" * 32, 6)]
    assert MUQ.key == same.key == "muq-abababababababab-l6-e1"
    assert len({MUQ.key, *(other.key for other in others)}) == 3
    assert EncoderReference("campplus", None, None, "ab" * 32).key == "campplus-abababababababab-e1"


@pytest.mark.parametrize(
    ("identity", "licence"),
    [
        ("OpenMuQ/MuQ-large-msd-iter", "CC BY-NC 4.0"),
        ("iic/speech_campplus_sv_zh-cn_16k-common", "Apache-2.0"),
        (None, "unknown"),
        ("somebody/else", "unknown"),
    ],
)
def test_a_licence_is_known_or_said_to_be_unknown(identity: str | None, licence: str) -> None:
    assert EncoderReference("muq", identity, None, "ab" * 32, 6).licence == licence


def test_the_encoders_that_ship_have_a_known_licence() -> None:
    """A folder's weights are known by their hash alone."""
    for weights in OWN_WEIGHTS:
        assert EncoderReference("campplus", None, None, weights).licence == "Apache-2.0"


def test_json_holds_every_field_and_gives_the_same_reference_back() -> None:
    value = MUQ.to_json()
    assert set(value) == {"kind", "id", "revision", "sha256", "layer", "precision", "window"}
    assert EncoderReference(**value) == MUQ


def test_what_was_written_before_there_was_a_choice_of_precision_and_window_reads_as_the_usual() -> None:
    old: dict[str, Any] = {"kind": "muq", "id": MUQ.id, "revision": "b83ebda", "sha256": "ab" * 32, "layer": 6}
    assert EncoderReference(**old) == MUQ
    assert (MUQ.precision, MUQ.window) == ("fp32", 30.0)


def test_precision_and_window_are_part_of_the_key_where_they_are_not_the_usual() -> None:
    usual = "muq-abababababababab-l6-e1"
    assert replace(MUQ, precision="bf16").key == f"{usual}-bf16"
    assert replace(MUQ, precision="fp16", window=None).key == f"{usual}-fp16-whole"
    assert replace(MUQ, window=12.5).key == f"{usual}-w12.5"
    assert replace(MUQ, precision="fp32", window=30).key == usual


def test_a_pin_is_compared_whatever_its_case_and_another_is_refused() -> None:
    check_pin("somebody/muq", "ab" * 32, None)
    check_pin("somebody/muq", "ab" * 32, "AB" * 32)
    with pytest.raises(ModelError) as caught:
        check_pin("somebody/muq", "ab" * 32, "cd" * 32)
    assert str(caught.value) == (
        f"somebody/muq: SHA-256 {'ab' * 32}, but {'cd' * 32} is pinned. Correct the pin, or get the pinned weights."
    )


def test_a_folder_is_told_from_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_folder(str(tmp_path / "not-there-yet"))
    assert is_folder("~/encoders/muq")
    assert is_folder("../muq")
    assert not is_folder("iic/speech_campplus_sv_zh-cn_16k-common")
    (tmp_path / "encoders" / "muq").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert is_folder("encoders/muq")
