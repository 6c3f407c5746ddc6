from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from audioscore.encoders.features import OWN_WEIGHTS, EncoderReference, check_pin, is_folder
from audioscore.errors import ModelError

MUQ = EncoderReference("muq", "OpenMuQ/MuQ-large-msd-iter", "b83ebda", "ab" * 32, 6)


def test_the_key_depends_on_weights_layer_precision_and_window() -> None:
    same = EncoderReference("muq", None, None, "ab" * 32, 6)
    others = [EncoderReference("muq", None, None, "ab" * 32, 5), EncoderReference("muq", None, None, "cd" * 32, 6)]
    assert MUQ.key == same.key == "muq-abababababababab-l6-e1"
    assert len({MUQ.key, *(other.key for other in others)}) == 3
    assert EncoderReference("campplus", None, None, "ab" * 32).key == "campplus-abababababababab-e1"
    usual = "muq-abababababababab-l6-e1"
    assert replace(MUQ, precision="bf16").key == f"{usual}-bf16"
    assert replace(MUQ, precision="fp16", window=None).key == f"{usual}-fp16-whole"
    assert replace(MUQ, window=12.5).key == f"{usual}-w12.5"
    assert replace(MUQ, precision="fp32", window=30).key == usual


@pytest.mark.parametrize(
    ("identity", "weights", "licence"),
    [
        ("OpenMuQ/MuQ-large-msd-iter", "ab" * 32, "CC BY-NC 4.0"),
        ("iic/speech_campplus_sv_zh-cn_16k-common", "ab" * 32, "Apache-2.0"),
        (None, "ab" * 32, "unknown"),
        ("somebody/else", "ab" * 32, "unknown"),
        *((None, weights, "Apache-2.0") for weights in OWN_WEIGHTS),
    ],
)
def test_the_licence_follows_from_id_or_weights(identity: str | None, weights: str, licence: str) -> None:
    assert EncoderReference("muq", identity, None, weights, 6).licence == licence


def test_current_and_older_json_are_read() -> None:
    value = MUQ.to_json()
    assert set(value) == {"kind", "id", "revision", "sha256", "layer", "precision", "window"}
    assert EncoderReference(**value) == MUQ
    old: dict[str, Any] = {"kind": "muq", "id": MUQ.id, "revision": "b83ebda", "sha256": "ab" * 32, "layer": 6}
    assert EncoderReference(**old) == replace(MUQ, precision="fp32", window=30.0)


def test_a_pin_is_compared_in_any_case() -> None:
    check_pin("somebody/muq", "ab" * 32, None)
    check_pin("somebody/muq", "ab" * 32, "AB" * 32)
    with pytest.raises(ModelError, match=rf"^somebody/muq: .*{'ab' * 32}.*{'cd' * 32}"):
        check_pin("somebody/muq", "ab" * 32, "cd" * 32)


def test_a_folder_is_distinguished_from_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "encoders" / "muq").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for source in (str(tmp_path / "not-there-yet"), "~/encoders/muq", "../muq", "encoders/muq"):
        assert is_folder(source)
    assert not is_folder("iic/speech_campplus_sv_zh-cn_16k-common")
