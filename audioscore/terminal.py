"""Text encodings of the process: UTF-8 for file names, files and pipes in every locale; a terminal gets its own."""

import codecs
import contextlib
import io
import locale
import os
import sys

ERRORS = "audioscore.terminal"  # name of the error handler of terminals


def use_utf8() -> None:
    """Start the interpreter again in UTF-8 mode if the locale has another encoding, such as GBK.

    Otherwise Python would decode and encode file names with the locale's encoding, and not find a name in UTF-8 that a
    table has. Names of files in another encoding keep their bytes. Processes that this one starts inherit the mode.
    """
    if os.environ.get("PYTHONUTF8") == "1" or sys.flags.utf8_mode or _encoding() == "utf-8":
        return
    os.environ["PYTHONUTF8"] = "1"
    with contextlib.suppress(OSError):  # an embedded interpreter has no program
        os.execv(sys.executable, [os.fsencode(sys.executable), b"-X", b"utf8", *map(_in_utf8, sys.orig_argv[1:])])


def _in_utf8(argument: str) -> bytes:
    """An argument that was decoded with the locale's encoding, in UTF-8 unless it names a file in that encoding."""
    given = os.fsencode(argument)
    with contextlib.suppress(UnicodeDecodeError):
        given.decode("utf-8")
        return given
    return given if os.path.lexists(given) else argument.encode("utf-8", "surrogateescape")


def prepare_output() -> None:
    """Replace characters that standard output cannot show, instead of raising; give a terminal its own encoding.

    Pipes and files get UTF-8, with escapes such as \\udcb8 for the bytes of names that are not UTF-8: in JSON, such an
    escape is valid. A terminal gets these bytes.
    """
    codecs.register_error(ERRORS, _terminal_form)
    if os.environ.get("COLUMNS") == "0":  # of a terminal without a size; Rich would print nothing
        del os.environ["COLUMNS"]
    encoding = _encoding()
    for stream in (sys.stdout, sys.stderr):
        if not isinstance(stream, io.TextIOWrapper):
            continue
        # The locales C and POSIX have ASCII and do not describe the terminal.
        if stream.isatty() and encoding not in ("utf-8", "ascii") and "PYTHONIOENCODING" not in os.environ:
            stream.reconfigure(encoding=encoding, errors=ERRORS)
        else:
            stream.reconfigure(errors="backslashreplace")


def describe_encode_error(error: Exception) -> str | None:
    """Describe on one line that a name is not UTF-8 where it must be; None for other exceptions."""
    if not isinstance(error, UnicodeEncodeError) or not "\ud800" <= error.object[error.start] <= "\udfff":
        return None
    name = error.object[max(0, error.start - 30) : error.end + 30]
    return f"{ascii(name)[1:-1]}: a name that is not UTF-8 cannot be stored. Rename the file or folder."


def _encoding() -> str:
    """The locale's encoding, in UTF-8 mode too."""
    return codecs.lookup(locale.getencoding()).name


def _terminal_form(error: UnicodeError) -> tuple[bytes, int]:
    """The bytes of a name that is not UTF-8; an escape for characters that the terminal's encoding lacks.

    >>> codecs.register_error(ERRORS, _terminal_form)
    >>> "歌\\udcb8\U0001f3a4".encode("gbk", ERRORS)
    b'\\xb8\\xe8\\xb8\\\\U0001f3a4'
    """
    assert isinstance(error, UnicodeEncodeError)
    character, code = error.object[error.start], ord(error.object[error.start])
    raw = bytes([code - 0xDC00]) if 0xDC80 <= code <= 0xDCFF else character.encode("ascii", "backslashreplace")
    return raw, error.start + 1
