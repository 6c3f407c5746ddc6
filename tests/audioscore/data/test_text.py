import pytest

from audioscore.data.text import decode_text
from audioscore.errors import DataError

CHINESE = "录音,分数,演唱者,歌曲名称\na1.m4a,85,张伟,月亮代表我的心\na2.m4a,90,欧阳娜娜,后来\n"
RARE = "录音,分数,演唱者\na1.m4a,85,亓官喆\na2.m4a,90,仉䶮\na3.m4a,70,王玥\n"
TRADITIONAL = "錄音,分數,演唱者\na1.m4a,85,鄧麗君\na2.m4a,90,張學友\na3.m4a,70,蔡依林\n"
JAPANESE = "録音,点数,歌手\na1.m4a,85,宇多田ヒカル\na2.m4a,90,中島みゆき\na3.m4a,70,椎名林檎\n"
KOREAN = "파일,점수,가수\na1.m4a,85,김철수\na2.m4a,90,이영희\na3.m4a,70,소녀시대\n"
WESTERN = "audio_file,score,singer_id\na1.m4a,85,Zoë\na2.m4a,90,Müller\na3.m4a,70,Núñez\n"
RUSSIAN = "файл,оценка,певец\na1.m4a,85,Пугачёва\na2.m4a,90,Высоцкий\na3.m4a,70,Земфира\n"


@pytest.mark.parametrize("text", [CHINESE, RARE, TRADITIONAL, JAPANESE, KOREAN, WESTERN, RUSSIAN, "a,b\n1,2\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_unicode_is_read_with_and_without_mark(text: str, encoding: str) -> None:
    assert decode_text(text.encode(encoding), "t.csv") == text


@pytest.mark.parametrize(
    "text", [CHINESE, RARE, TRADITIONAL, "歌 曲.wav\n", "audio_file,score\na.m4a,85分\n", "file,singer\na.m4a,刘德华\n"]
)
def test_whole_gb18030_texts_are_read(text: str) -> None:
    assert decode_text(text.encode("gb18030"), "t.csv") == text


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (TRADITIONAL, "big5"),
        (JAPANESE, "cp932"),
        (JAPANESE, "euc_jp"),
        (JAPANESE, "iso2022_jp"),
        (KOREAN, "euc_kr"),
        (KOREAN.replace("파일,점수,가수", "audio_file,score,singer"), "euc_kr"),
        (WESTERN, "cp1252"),
        (WESTERN, "mac_roman"),
        (RUSSIAN, "koi8_r"),
        (RUSSIAN, "cp1251"),
        ("file,singer\na.m4a,김철수\n", "euc_kr"),
        ("file,singer\na.m4a,Юля\nb.m4a,Катя\n", "koi8_r"),
        ("file,singer\na.m4a,Müller\n", "cp1252"),
    ],
)
def test_other_encodings_are_refused_and_never_guessed(text: str, encoding: str) -> None:
    with pytest.raises(DataError, match=r"^t\.csv\b.*UTF-8"):
        decode_text(text.encode(encoding), "t.csv")


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        ("file,singer\na,张三\nb,".encode() + "李四".encode("gbk") + "\nc,王五\n".encode(), "3"),
        ("file,singer\na,张三\nb,".encode() + "李四".encode("gbk") + ",赵六\nc,王五\n".encode(), "3"),
        ("录音,分数\n".encode() + "邓丽君.m4a,85\n周华健.m4a,90\n".encode("gbk"), "2, line 3"),
        ("\ufeff录音,分数\n".encode() + "邓丽君.m4a,85\n".encode("gbk"), "2"),
        ("录音,分数\n后来.m4a,85\n歌".encode()[:-1], "3"),
        ("file,singer\na,Zoë\nb,".encode() + "Núñez\n".encode("latin-1"), "3"),
    ],
)
def test_text_in_two_encodings_names_the_lines(data: bytes, lines: str) -> None:
    with pytest.raises(DataError, match=rf"^t\.csv\b.*line {lines}\b"):
        decode_text(data, "t.csv")


@pytest.mark.parametrize(
    "data",
    [b"a,b\n\0\0\n", "录音\n".encode() + bytes(4096), "录音".encode("gbk") + b"\0", bytes(range(256))],
)
def test_binary_data_is_refused(data: bytes) -> None:
    with pytest.raises(DataError, match=r"^t\.csv\b"):
        decode_text(data, "t.csv")


def test_a_cut_text_is_refused() -> None:
    for encoding in ("utf-8", "gb18030", "utf-16", "utf-16-le"):
        with pytest.raises(DataError, match=r"^t\.csv\b"):
            decode_text("录音,分数\n后来.m4a,85\n歌曲.m4a,90,张".encode(encoding)[:-1], "t.csv")


def test_gbk_that_is_also_valid_utf_8_is_refused() -> None:
    data = "file,singer\na.m4a,袁桐强\n".encode("gbk")
    assert data.decode("utf-8")
    with pytest.raises(DataError, match=r"^t\.csv\b.*GB18030"):
        decode_text(data, "t.csv")


def test_marks_of_joined_files_are_removed() -> None:
    assert decode_text(b"\xef\xbb\xbfa\r\n\xef\xbb\xbf\xef\xbb\xbfb\r\n", "t.csv") == "a\r\nb\r\n"


def test_a_large_gbk_table_is_read() -> None:
    names = ("亓官丽", "仉伟", "郄志强", "张雪", "谯晓梅")
    text = "录音,演唱者\n" + "".join(f"{number}.m4a,{names[number % 5]}{number}\n" for number in range(5000))
    assert decode_text(text.encode("gb18030"), "t.csv") == text
