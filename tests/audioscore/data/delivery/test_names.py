import pytest
from hypothesis import given
from hypothesis import strategies as st

from audioscore.data.delivery.plan import LONGEST, folded, recording_name

SHA = "5fd2" * 16


@pytest.mark.parametrize(
    ("delivered", "name"),
    [
        ("a.m4a", "audio/a.m4a"),
        ("录音/甜蜜 蜜.M4A", "audio/甜蜜_蜜.m4a"),
        ("C:\\takes\\b.wav", "audio/b.wav"),
        ("https://host/x/take%201.mp3?sig=1#t", "audio/take_1.mp3"),
        ("s3://bucket/a/b.flac", "audio/b.flac"),
        ('quo"te\nline.wav', "audio/quo_te_line.wav"),
        ("\N{PARTY POPPER}.wav", "audio/\N{PARTY POPPER}.wav"),
        ("../../.hidden.wav", "audio/hidden.wav"),
        ("https://host/get?id=7", "audio/get"),
        ("https://host/", f"audio/{SHA[:16]}"),
        ("e\u0301.wav", "audio/\u00e9.wav"),
    ],
)
def test_names_stay_readable_and_safe(delivered: str, name: str) -> None:
    assert recording_name(delivered, SHA, set()) == name


def test_a_used_name_gets_its_hash() -> None:
    assert recording_name("A.WAV", SHA, {folded("audio/a.wav")}) == "audio/A-5fd25fd2.wav"


@given(st.text(min_size=1, max_size=300))
def test_every_name_is_one_file_below_audio(delivered: str) -> None:
    name = recording_name(delivered, SHA, set())
    folder, _, base = name.partition("/")
    assert folder == "audio"
    assert base
    assert not {"/", "\0"} & set(base)
    assert not base.startswith((".", "-"))
    assert base == base.strip()
    assert len(base.encode()) <= LONGEST + 20
