"""Errors that a user can correct. Messages have the form `<what>: <problem>. <fix>.`"""

INTERNAL_ERROR_EXIT_CODE = 70  # EX_SOFTWARE: an error in the program; no other exit code has this meaning
LONGEST_ITEM = 1000  # characters of an item in a list: a cell of a table can hold a whole file


class AudioscoreError(Exception):
    """Base class: an error that the user can correct, printed as one line without a traceback."""

    exit_code = 2


class UsageError(AudioscoreError):
    """Invalid arguments or configuration."""


class DataError(AudioscoreError):
    """Labels, an index or a data folder that cannot be used."""


class AudioError(DataError):
    """A recording that cannot be decoded or scored."""


class ServerUnreachable(AudioError):
    """A server that does not answer; the other recordings on it fail too."""


class ModelError(AudioscoreError):
    """Weights or a scorer that cannot be loaded."""


class GateRefused(AudioscoreError):
    """The data gate or the promotion gate refused; the program itself ran without an error."""

    exit_code = 1


def describe_os_error(error: OSError) -> str:
    """Describe in one line why a file cannot be read or written.

    >>> describe_os_error(PermissionError(13, "Permission denied", "/srv/report.html"))
    '/srv/report.html: Permission denied. Check the path, its permissions, and the free space.'
    """
    what = error.filename if error.filename is not None else "a file"
    return f"{what}: {error.strerror or error}. Check the path, its permissions, and the free space."


def first_line(error: BaseException) -> str:
    """Return the first line of another package's error, at most 200 characters, or its class name if it has no text.

    >>> first_line(ValueError("no route\\nto host")), first_line(ValueError())
    ('no route', 'ValueError')
    """
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def shorten(items: list[str], limit: int = 5) -> str:
    """Join names for a message: at most `limit` of them, then the number of the others. Long names are cut.

    >>> shorten(["a", "b"])
    'a, b'
    >>> shorten(["a", "b", "c"], limit=2)
    'a, b and 1 more'
    """
    shown = ", ".join(item if len(item) <= LONGEST_ITEM else f"{item[:LONGEST_ITEM]}..." for item in items[:limit])
    return shown if len(items) <= limit else f"{shown} and {len(items) - limit} more"
