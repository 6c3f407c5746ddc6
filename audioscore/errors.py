"""What can go wrong for a user. Every message says what failed, which item, what was found, and what to do."""

FAULT_EXIT_CODE = 70  # EX_SOFTWARE: a fault in the program, which none of the documented codes may mean


class AudioscoreError(Exception):
    """A fault the user can mend: one clear sentence, printed without a traceback."""

    exit_code = 2


class UsageError(AudioscoreError):
    """Wrong arguments or configuration."""


class DataError(AudioscoreError):
    """Labels, index or folder that cannot be used as they are."""


class AudioError(DataError):
    """One recording that cannot be decoded or scored."""


class ModelError(AudioscoreError):
    """Weights or a saved scorer that cannot be loaded."""


class GateRefused(AudioscoreError):
    """A gate said no: the run worked, and its answer is a refusal."""

    exit_code = 1


def describe_os_error(fault: OSError) -> str:
    """One sentence for a file that cannot be read or written.

    >>> describe_os_error(PermissionError(13, "Permission denied", "/srv/report.html"))
    '/srv/report.html: Permission denied. Check the path, its permissions, and the free space.'
    """
    what = fault.filename if fault.filename is not None else "a file"
    return f"{what}: {fault.strerror or fault}. Check the path, its permissions, and the free space."


def shorten(items: list[str], limit: int = 5) -> str:
    """Names for an error message: at most `limit` of them, then how many more.

    >>> shorten(["a", "b"])
    'a, b'
    >>> shorten(["a", "b", "c"], limit=2)
    'a, b and 1 more'
    """
    shown = ", ".join(items[:limit])
    return shown if len(items) <= limit else f"{shown} and {len(items) - limit} more"
