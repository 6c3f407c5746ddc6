import os
import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audioscore.data.spelling import NamesOnDisk, Spellings, clean_id, file_key, id_key, path_on_disk, text_name
from audioscore.errors import DataError


def wide(text: str) -> str:
    return "".join(chr(ord(letter) + 0xFEE0) for letter in text)


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        *((f"张{mark}三{mark}", "张三") for mark in "\u200b\u200c\u200d\u2060\ufeff\xad\u200e\u202b\ufe0f\x00\x7f"),
        ("张\U000e0100三\U000e0041", "张三"),
        ("Li\xa0 \u3000Si\u2003", "Li Si"),
        (unicodedata.normalize("NFD", "Zoë"), "Zoë"),
        ("e\u200b\u0301", "é"),
        (wide("S01"), "S01"),
        ("007", "007"),
        ("2038.0", "2038"),
        ("2038.000", "2038"),
        (wide("2038.0"), "2038"),
        ("2,038,001", "2038001"),
        ("2038.5", "2038.5"),
        ("v2.0", "v2.0"),
        ("12,34", "12,34"),
        ("'007", "007"),
        ('="007"', "007"),
        ("'Til", "'Til"),
        ("440106199001011234", "440106199001011234"),
        ("2.0388712E7", "20388712"),
        ("2.5e+1", "25"),
        ("5E3", "5E3"),
        ("1e5", "1e5"),
        ("", ""),
        ("\u200b \ufeff", ""),
    ],
)
def test_normal_forms(text: str, clean: str) -> None:
    assert clean_id(text) == clean
    assert clean_id(clean) == clean


@pytest.mark.parametrize(
    "text",
    ["4.40106E+17", "4,40106E+17", wide("4.40106E+17"), "4.40106e+17", "4.40106199001011E17", "4E+17", " 1E+5\u200b"],
)
def test_lost_digits_are_refused(text: str) -> None:
    with pytest.raises(DataError, match=re.escape(clean_text(text))):
        clean_id(text)
    assert id_key(text)


def clean_text(text: str) -> str:
    return unicodedata.normalize("NFKC", text).strip(" \u200b")


@pytest.mark.parametrize("text", ["#N/A", "#REF!", "#NAME?", "########", wide("#N/A")])
def test_errors_of_a_spreadsheet_are_refused(text: str) -> None:
    with pytest.raises(DataError, match="#"):
        clean_id(text)


@pytest.mark.parametrize(
    "spellings",
    [
        ("A01", "a01", " \uff21\uff10\uff11 ", "A01\u200b"),
        ("7", "007", "7.0", "'007"),
        ("0", "000", "0.0"),
        ("王 明", "王明", "王\u3000明"),
        ("S-1", "S\u20111", "s\u22121"),
        ("O'Brien", "O\u2019Brien"),
        ("迈克尔·杰克逊", "迈克尔\u2022杰克逊", "迈克尔\u30fb杰克逊"),
        ("\u212a1", "K1", "k1"),
        ("STRASSE", "straße"),
    ],
)
def test_keys_are_equal_for_all_spellings(spellings: tuple[str, ...]) -> None:
    assert len({id_key(text) for text in spellings}) == 1


@pytest.mark.parametrize("text", ["????", "\uff1f\uff1f", "张\ufffd", "? ??"])
def test_lost_characters_are_refused(text: str) -> None:
    with pytest.raises(DataError, match=r"\?|\ufffd"):
        clean_id(text)


@pytest.mark.parametrize("text", ["?", "Who?", "? - ?"])
def test_question_marks_in_names_stay(text: str) -> None:
    assert clean_id(text) == text


def test_placeholders_are_blank_and_noted() -> None:
    ids = Spellings("singer_id")
    assert [ids(text) for text in ("NULL", "-", "", " ", "S1", "None", "无")] == ["", "", "", "", "S1", "", ""]
    [note] = ids.notes()
    assert [word for word in ("'NULL'", "'-'", "'None'", "S1") if word in note] == ["'NULL'", "'-'", "'None'"]
    assert Spellings("singer_id").notes() == []


def test_keys_differ_for_different_ids() -> None:
    texts = [
        "7",
        "70",
        "A7",
        "A07",
        "7.5",
        "-7",
        "Li Si",
        "LiSi",
        "张三",
        "张四",
        "440106199001011234",
        "440106199001011238",
    ]
    assert len({id_key(text) for text in texts}) == len(texts)


@given(st.text(max_size=12))
def test_a_key_is_the_key_of_the_normal_form(text: str) -> None:
    assert id_key(id_key(text)) == id_key(text)
    try:
        clean = clean_id(text)
    except DataError:
        return
    assert id_key(clean) == id_key(text)


def test_the_first_spelling_stands_for_all_and_a_note_lists_them() -> None:
    ids = Spellings("singer_id")
    texts = ["007", "7", "张三\u200b", "张三", "B", "", "\u200b"]
    assert [ids(text) for text in texts] == ["007", "007", "张三", "张三", "B", "", ""]
    [note] = ids.notes()
    words = ["singer_id", "2 of 3", "'007' = '7'", r"'张三\u200b' = '张三'"]
    assert [word for word in words if word not in note] == []
    with pytest.raises(DataError, match=r"singer_id .*4\.4E\+17"):
        ids("4.4E+17")


def test_long_notes_are_short() -> None:
    ids = Spellings("song_id")
    for number in range(10_000):
        assert ids(f"x{number}" * 50) == ids(f"X{number}" * 50)
    assert [len(note) < 1_000 for note in ids.notes()] == [True]


@pytest.mark.parametrize(
    ("texts", "count"),
    [
        (["440106199001011000", "440106199001012000"], 1),
        (["440106199001011000", "440106199001012001"], 0),
        (["440106199001011000"], 0),
        (["100000000000000", "200000000000000"], 0),
    ],
)
def test_rounded_ids_have_a_note(texts: list[str], count: int) -> None:
    ids = Spellings("singer_id")
    assert [ids(text) for text in texts] == texts
    assert len(ids.notes()) == count


def test_names_of_one_file_have_one_key() -> None:
    assert file_key("./audio/Zoe\u0308.m4a") == file_key("audio//Zo\u00eb.m4a") != file_key("audio/zo\u00eb.m4a")
    assert file_key("s3://a/b//c") != file_key("s3://a/b/c")


@pytest.mark.parametrize(
    "name",
    [
        "audio/Zo\u00eb 1.m4a",
        "./audio/Zo\u00eb 1.m4a",
        "audio\\Zo\u00eb 1.m4a",
        "AUDIO/zo\u00eb 1.M4A",
        "audio/Zo\u00eb\xa01.m4a",
        "audio/Zo\u00eb  1.m4a",
        "audio/Zo\u00eb 1\u200b.m4a",
        wide("audio") + "/" + wide("Zo") + "\u00eb 1.m4a",
    ],
)
def test_the_only_file_that_a_name_can_mean_is_found(tmp_path: Path, name: str) -> None:
    on_disk = "audio/Zoe\u0308 1.m4a"
    (tmp_path / "audio").mkdir()
    (tmp_path / on_disk).touch()
    assert NamesOnDisk(tmp_path).find(name) == on_disk


@pytest.mark.parametrize("folder", ["utf-8", "gbk"])
@pytest.mark.parametrize("file", ["utf-8", "gbk"])
def test_names_in_gbk_are_found(tmp_path: Path, folder: str, file: str) -> None:
    on_disk = os.fsdecode("录音/".encode(folder) + "歌a.wav".encode(file))
    (tmp_path / on_disk).parent.mkdir()
    (tmp_path / on_disk).touch()
    names = NamesOnDisk(tmp_path)
    for name in ("录音/歌a.wav", "./录音//歌A.WAV", "录音\\歌\uff41.wav", on_disk):
        assert path_on_disk(tmp_path, names.find(name)) == tmp_path / on_disk
        assert file_key(names.find(name)) == "录音/歌a.wav"
    assert path_on_disk(tmp_path, "录音/歌a.wav") == tmp_path / on_disk
    other = os.fsdecode("录音/".encode(folder) + "歌A.wav".encode())
    (tmp_path / other).touch()
    assert NamesOnDisk(tmp_path).find("录音/歌a.wav") == "录音/歌a.wav"


def test_names_that_are_no_text_and_mean_no_other_file_stay(tmp_path: Path) -> None:
    gbk = os.fsdecode("歌.wav".encode("gbk"))
    (tmp_path / gbk).touch()
    assert text_name(tmp_path, gbk) == "歌.wav"
    (tmp_path / "歌.wav").touch()
    for name in (gbk, os.fsdecode(b"a/\xff.wav"), "\ud83c.wav"):
        assert text_name(tmp_path, name) == NamesOnDisk(tmp_path).find(name) == name


def test_other_names_do_not_change(tmp_path: Path) -> None:
    for name in ("a.m4a", "B.m4a", "b.m4a"):
        (tmp_path / name).touch()
    names = NamesOnDisk(tmp_path)
    absent = [
        "c.m4a",
        "x/a.m4a",
        "a.m4a/b",
        "../a.m4a",
        f"{tmp_path}/A.m4a",
        "s3://b/A.m4a",
        "\0",
        "b.M4A",
        "z" * 5000,
        "",
    ]
    for name in ["a.m4a", "B.m4a", "b.m4a", *absent]:
        assert names.find(name) == name
