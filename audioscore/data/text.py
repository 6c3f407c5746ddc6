"""Decode text files whose encoding is not declared: tables, indexes, and lists of recordings."""

import contextlib
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

from audioscore.errors import DataError, shorten

BOMS = {
    b"\xef\xbb\xbf": "utf-8",
    b"\xff\xfe\0\0": "utf-32",
    b"\0\0\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
# Characters of two bytes in UTF-8, not all of a common alphabet: a short GBK text can be valid UTF-8 by accident.
TWO_BYTES = re.compile(r"(?=.*[^\0-\u017f\u0386-\u03ce\u0401-\u0451])[\0-\u07ff]*", re.DOTALL)
# Characters that are frequent in Chinese texts, names, song titles and headers of tables. Of the characters that appear
# when EUC-KR, Big5 or KOI8-R is decoded as GB18030, one in six is among them; in Chinese tables, four in five.
FREQUENT = frozenset(
    "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里用道行所然家"
    "种事成方多经么去法学如都同现当没动面起看定天分还进好小部其些主样理心她本前开但因只从想实日军者意无力它与长把机十"
    "民第公此已工使情明性知全三又关点正业外将两高间由问很最重并物手应战向头文体政美相见被利什二等产或新己制身果加西斯"
    "月话合回特代内信表化老给世位次度门任常先海通教儿原东声提立及比员解水名真论处走义各入几口认条平系气题活尔更别打女"
    "变四神总何电数安少报才结反受目太量再感建做接必场件计期市直德命山金指许统保至队形便空展马五基眼书非听白却界达光放"
    "强像难思王象完色路记南品住告类求程北边死张交规万取望觉术领共传师观清今切让识候带导争运李刘陈杨黄赵吴周徐孙朱胡郭"
    "林罗郑梁谢宋唐韩冯邓曹彭曾肖田董袁潘蒋蔡余杜叶苏魏吕丁沈姚卢姜崔钟谭陆汪范石廖贾夏韦付邹孟熊秦邱江尹薛闫段雷侯龙"
    "史陶黎贺顾毛郝龚邵钱严覃武戴莫孔汤伟芳娜敏静丽磊洋勇艳杰娟涛超秀霞刚桂英华玉兰梅斌宇浩轩欣怡梓涵雨桐诗佳琪志远晓"
    "燕波婷雪俊凯博雅琴梦瑶嘉豪鹏飞春红云青星辉永君福兵峰莉丹萍琳凤录音评标备注歌曲唱演称号编序均准节奏息技巧首爱夜风"
    "花忘恋泪笑城秋冬張劉陳楊黃趙吳孫馬鄭謝許韓馮鄧蕭葉蘇呂鍾譚陸愛聽說開來時們個國會後樂錄數夢華傑倫學東風雲飛聲長門"
    "見話麗联网语级组项赛选投票链址径型采集男"
)


def decode_text(data: bytes, name: str) -> str:
    """Decode UTF-8, UTF-16 or UTF-32, with or without byte order mark, or GB18030 (a superset of GBK).

    No other encoding is guessed: text in Big5, Shift-JIS, EUC-KR or KOI8-R that is valid GB18030 by accident is
    refused, because most of its characters are rare. Byte order marks in front of lines (joined files) are removed.

    Raises:
        DataError: The text is in another encoding, in two encodings, or cut inside a character.
    """
    encoding = next((encoding for mark, encoding in BOMS.items() if data.startswith(mark)), None)
    if encoding is None and b"\0" in data:
        encoding = _utf_16(data)
    try:
        text = data.decode(encoding or "utf-8")
        if encoding is None and TWO_BYTES.fullmatch(text) and _frequent_share(_decoded(data, "gb18030") or "") > 0.5:
            raise DataError(f"{name}: may be UTF-8 or GB18030 (GBK) text, both are valid. Save it as UTF-8 with BOM.")
    except UnicodeDecodeError as error:
        if encoding is None:
            text = _decode_gb18030(data, name)
        else:
            line = data.count(b"\n", 0, error.start) + 1
            raise DataError(
                f"{name}, line {line}: not {encoding.upper()} ({error.reason}). Save it again as UTF-8."
            ) from error
    if "\0" in text or "\x1b" in text:  # the escape character switches alphabets in ISO-2022
        raise DataError(f"{name}: contains control characters, so it is not plain text. Save it as UTF-8.")
    return re.sub("^\ufeff+", "", text, flags=re.MULTILINE)


def decode_lines(lines: Sequence[bytes], name: str) -> list[str]:
    """Decode lines as `decode_text` does their text; a line in another encoding than the rest becomes empty.

    UTF-16 and UTF-32 have other line ends, so that the result has another length. Raises DataError if nothing is left.
    """
    try:
        return decode_text(b"\n".join(lines), name).split("\n")
    except DataError:
        candidates = [
            [b"" if b"\x1b" in line or _decoded(line, encoding) is None else line for line in lines]
            for encoding in ("utf-8", "gb18030")
        ]
        for rest in sorted(candidates, key=lambda one: one.count(b"")):
            # UTF-16 and UTF-32 contain zeros; without one of their lines, the bytes of the others would shift.
            if any(rest) and not any(b"\0" in line for line in lines):
                with contextlib.suppress(DataError):
                    return decode_text(b"\n".join(rest), name).split("\n")
        raise


def _utf_16(data: bytes) -> str | None:
    """The byte order of UTF-16 without mark, or None: one half of each comma, digit and line end is zero."""
    first, second = data[::2].count(0), data[1::2].count(0)
    if max(first, second) < max(len(data) / 20, 10 * min(first, second)):
        return None
    return "utf-16-be" if first > second else "utf-16-le"


def _decode_gb18030(data: bytes, name: str) -> str:
    """Decode text that is not UTF-8 as a whole."""
    others: list[str] = []
    are_utf_8 = False
    for number, line in enumerate(data.splitlines(), start=1):
        if (text := _decoded(line, "utf-8")) is None:
            others.append(f"line {number}")
        # Two-byte characters are valid in both encodings too often; of three bytes, the more plausible text counts.
        elif max(text, default="") >= "\u0800":
            are_utf_8 |= _frequent_share(text) > _frequent_share(_decoded(line, "gb18030") or "\0")
    if are_utf_8:
        raise DataError(
            f"{name}: not UTF-8 in {shorten(others)}, but in other lines. Save all of it in one encoding, best UTF-8."
        )
    text = _decoded(data, "gb18030")
    share = _frequent_share(text or "")
    if text is None or share < 0.25 or (share <= 0.5 and not _is_detected(data)):
        raise DataError(f"{name}: not UTF-8 in {shorten(others)}, and not GB18030 (GBK) text. Save it as UTF-8.")
    return text


def _decoded(data: bytes, encoding: str) -> str | None:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        return None


def _frequent_share(text: str) -> float:
    """The share of frequent characters among the letters that are not ASCII; 0 if a character is unassigned."""
    counts = Counter(re.sub(r"[\0-\x7f]", "", text))
    kinds = {character: unicodedata.category(character)[0] for character in counts}
    if "C" in kinds.values():
        return 0.0
    letters = {character: count for character, count in counts.items() if kinds[character] == "L"}
    return (
        sum(letters[character] for character in letters.keys() & FREQUENT) / sum(letters.values()) if letters else 0.0
    )


def _is_detected(data: bytes) -> bool:
    """Whether charset-normalizer finds GB18030: it also has models of rare characters, but needs longer texts."""
    from charset_normalizer import from_bytes

    found = from_bytes(data).best()
    return found is not None and found.encoding == "gb18030"
