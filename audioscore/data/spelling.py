"""Recognize one id, or one file name, in several spellings: a person in two spellings could be in two splits."""

import contextlib
import locale
import os
import posixpath
import re
import unicodedata
from collections import defaultdict
from decimal import Decimal
from pathlib import Path, PurePosixPath

from audioscore.data.tables import ERRORS, is_text
from audioscore.errors import DataError, shorten

# Characters without a glyph: Unicode's property Default_Ignorable_Code_Point, and control characters.
INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f"
    "\u202a-\u202e\u2060-\u206f\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a\U000e0000-\U000e0fff]+"
)
AS_TEXT = re.compile(r"""="(.*)"|'(\d[\d.,]*)""")  # marks of a number that a spreadsheet keeps as text
NUMBER = re.compile(r"(\d+|\d{1,3}(?:,\d{3})+)(?:\.0+)?", re.ASCII)
BLANKS = frozenset({"", "-", "/", "na", "n/a", "nan", "none", "null", "无"})
POWER_OF_TEN = re.compile(r"\d+[.,]\d+e\+?\d{1,3}|\d+e\+\d{1,3}", re.ASCII | re.IGNORECASE)
EXACT_DIGITS = 15  # that a spreadsheet keeps of a number
LOOK_ALIKES = str.maketrans(  # dashes, apostrophes and middle dots, as input methods and word processors type them
    "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\u2018\u2019\u02bc\u2022\u2027\u30fb\u2219\u22c5",
    "-------'''\xb7\xb7\xb7\xb7\xb7",
)
# A space between two characters aligns a short name with longer ones.
HAN_SPACE = re.compile(r"(?<=[\u3400-\u9fff]) (?=[\u3400-\u9fff])")


def clean_id(text: str) -> str:
    """Return the normal form of an id: without invisible characters, width, repeated spaces and decimal zeros.

    Letter case and leading zeros are kept; `id_key` ignores them, too.

    Raises DataError for what a program writes in place of an id: a rounded power of ten, an error, or question marks.

    >>> clean_id("张三\\u200b"), clean_id("\\uff33\\uff10\\uff11"), clean_id("A  B\\xa0"), clean_id("007.0")
    ('张三', 'S01', 'A B', '007')
    """
    visible = " ".join(unicodedata.normalize("NFKC", INVISIBLE.sub("", text)).split())
    if typed := AS_TEXT.fullmatch(visible):
        visible = (typed[1] or typed[2] or "").strip()
    if POWER_OF_TEN.fullmatch(visible):
        value = Decimal(visible.replace(",", "."))
        if int(value.as_tuple().exponent) > 0:
            raise DataError(f"{visible} has lost its last digits; store the column as text, and export it again.")
        visible = f"{value:f}"
    if visible in ERRORS or (visible.startswith("##") and not visible.strip("#")):
        raise DataError(f"{visible} is an error of the spreadsheet; correct the formula or the width of the column.")
    if "\ufffd" in visible or (len(visible) > 1 and not visible.strip("? ")):
        raise DataError(f"{visible} has lost its characters; export the table again in UTF-8.")
    number = NUMBER.fullmatch(visible)
    return number[1].replace(",", "") if number else visible


def id_key(text: str) -> str:
    """Return what is equal for all spellings of an id: case, leading zeros and look-alike marks do not matter.

    Unlike `clean_id`, it accepts every text, such as the keys of an old splits.json.

    >>> id_key("007") == id_key("7.0"), id_key("\\uff21\\uff10") == id_key(" a0 "), id_key("a01") == id_key("a1")
    (True, True, False)
    """
    try:
        clean = clean_id(text)
    except DataError:
        clean = text
    key = HAN_SPACE.sub("", unicodedata.normalize("NFKC", clean.casefold()).translate(LOOK_ALIKES))
    return (key.lstrip("0") or "0") if key.isascii() and key.isdigit() else key


class Spellings:
    """The ids of one column of a file: the first spelling of each replaces the others; BLANKS become an empty text."""

    def __init__(self, column: str) -> None:
        self._column = column
        self._first: dict[str, str] = {}  # spelling by key
        self._of: dict[str, str] = {}  # spelling by text

    def __call__(self, text: str) -> str:
        """Return the spelling of an id; DataError as `clean_id`."""
        if text not in self._of:
            try:
                clean = clean_id(text)
            except DataError as error:
                raise DataError(f"{self._column} {error}") from error
            self._of[text] = "" if clean.casefold() in BLANKS else self._first.setdefault(id_key(clean), clean)
        return self._of[text]

    def notes(self) -> list[str]:
        """Describe, in one sentence each: ids with several spellings, blanks, and ids that seem to be rounded."""
        typed: dict[str, list[str]] = defaultdict(list)
        for text, spelling in self._of.items():
            if spelling:
                typed[spelling].append(spelled(text, spelling))
        merged = [" = ".join(texts[:5]) for texts in typed.values() if len(texts) > 1]
        notes = []
        if blank := [f"'{shown}'" for text, one in self._of.items() if not one and (shown := clean_id(text))]:
            notes.append(f"{self._column}: {shorten(blank)} {'is' if len(blank) == 1 else 'are'} read as blank.")
        if merged:
            listed = shorten(merged, 3)
            notes.append(
                f"{self._column}: {len(merged)} of {len(typed)} values have several spellings, read as one ({listed})."
            )
        long = [one for one in typed if one.isascii() and one.isdigit() and len(one) > EXACT_DIGITS]
        if len(long) > 1 and not any(one[EXACT_DIGITS:].strip("0") for one in long):
            notes.append(
                f"{self._column}: all {len(long)} ids of more than {EXACT_DIGITS} digits end in zeros "
                f"({shorten(long, 3)}), as a spreadsheet rounds them: two people may have become one. Export the "
                f"column as text."
            )
        return notes


def spelled(text: str, spelling: str) -> str:
    """Quote a spelling for a message, with escapes for the characters in which it differs from another one.

    >>> spelled("张三\\u200b", "张三") == r"'张三\\u200b'"
    True
    """
    letters = (one if one.isprintable() and (one.isascii() or one in spelling) else ascii(one)[1:-1] for one in text)
    return f"'{''.join(letters)[:60]}'"


def file_key(audio_file: str) -> str:
    """Return what is equal for all names of one file: `./a.m4a` is `a.m4a`, in both Unicode normal forms.

    >>> file_key("./audio//a.m4a"), file_key("https://h/a//b.m4a")
    ('audio/a.m4a', 'https://h/a//b.m4a')
    """
    name = unicodedata.normalize("NFC", audio_file)
    return name if "://" in name else posixpath.normpath(name)


def unicode_forms(name: str) -> dict[str, None]:
    """Return a name as written, composed and decomposed, without repeats."""
    return dict.fromkeys((name, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name)))


def path_on_disk(folder: Path, name: str) -> Path:
    """Return the path of a name below a folder: each part in its form on disk, or as written if no file has it.

    The forms are those of Unicode, then the locale's encoding and GB18030: archives that were made under a Chinese
    Windows hold names in GBK, whose superset is GB18030.
    """
    if os.path.lexists(folder / name):
        return folder / name
    path = folder
    for part in PurePosixPath(name).parts:
        forms = unicode_forms(part)
        for encoding in () if part.isascii() else (locale.getencoding(), "gb18030"):
            with contextlib.suppress(UnicodeEncodeError):
                forms[os.fsdecode(part.encode(encoding))] = None
        path /= next((form for form in forms if os.path.lexists(path / form)), part)
    return path


def text_name(folder: Path, name: str) -> str:
    """Return the name of a file as a table can hold it: parts that are not UTF-8 are decoded from GB18030.

    The name stays as it is if `path_on_disk` does not find the same file by the text.
    """
    if is_text(name):
        return name
    parts = name.split("/")
    for index, part in enumerate(parts):
        if not is_text(part):
            with contextlib.suppress(UnicodeError):
                parts[index] = os.fsencode(part).decode("gb18030")
    text = "/".join(parts)
    return text if path_on_disk(folder, text) == folder / name else name


def normalized_name(name: str) -> str:
    """Normalize a name as file systems do that ignore case and Unicode normal form.

    >>> normalized_name("audio/A.m4a") == normalized_name("audio/a.M4A")
    True
    """
    return unicodedata.normalize("NFC", name).casefold()


def _loose(name: str) -> str:
    return normalized_name(" ".join(unicodedata.normalize("NFKC", INVISIBLE.sub("", name)).split()))


class NamesOnDisk:
    """The names of a folder's files, to find those that a table spells in another way; folders are listed once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._listed: dict[Path, dict[str, list[str]]] = {}

    def find(self, audio_file: str) -> str:
        """Return the name of the only file that a name can mean, also with other case, width, spaces or separators.

        Links, absolute paths, and names that exist as they are do not change; neither do names of no file or several.
        A name in GBK on disk is returned as text, for `path_on_disk`.
        """
        if "\0" in audio_file or "://" in audio_file:
            return audio_file
        if os.path.lexists(self.folder / audio_file):
            return text_name(self.folder, audio_file)
        parts = posixpath.normpath(audio_file.replace("\\", "/")).split("/")
        found = self.folder
        for part in parts:
            form = path_on_disk(found, part)
            names = [form.name] if os.path.lexists(form) else self._list(found).get(_loose(part), [])
            if part in ("", "..") or len(names) != 1:
                return audio_file
            found /= names[0]
        return text_name(self.folder, found.relative_to(self.folder).as_posix())

    def _list(self, folder: Path) -> dict[str, list[str]]:
        if folder not in self._listed:
            names: dict[str, list[str]] = defaultdict(list)
            try:
                for name in os.listdir(folder):
                    names[_loose(text_name(folder, name))].append(name)
            except OSError:  # a file, or a folder that cannot be read: the check of the recording reports it
                pass
            self._listed[folder] = names
        return self._listed[folder]
