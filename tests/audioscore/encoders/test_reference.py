from pathlib import Path

import pytest

from audioscore.encoders.reference import OWN_WEIGHTS, EncoderReference, is_folder

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
    assert set(value) == {"kind", "id", "revision", "sha256", "layer"}
    assert EncoderReference(**value) == MUQ


def test_a_folder_is_told_from_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_folder(str(tmp_path / "not-there-yet"))
    assert is_folder("~/encoders/muq")
    assert is_folder("../muq")
    assert not is_folder("iic/speech_campplus_sv_zh-cn_16k-common")
    (tmp_path / "encoders" / "muq").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert is_folder("encoders/muq")
