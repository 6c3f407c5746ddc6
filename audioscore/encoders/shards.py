"""Shares of an extraction, which pods of a cluster do side by side: "1/4" is the second of four."""

import re

from audioscore.errors import UsageError

SHARD = re.compile(r"([0-9]{1,6})/([0-9]{1,6})")


def shards_of(count: int) -> list[str]:
    """The shares that so many pods do.

    >>> shards_of(3), shards_of(1)
    (['0/3', '1/3', '2/3'], ['0/1'])
    """
    return [f"{which}/{count}" for which in range(count)]


def share_of(shard: str) -> tuple[int, int]:
    """Which share, of how many. Raises UsageError where that is none.

    >>> share_of("1/4")
    (1, 4)
    """
    match = SHARD.fullmatch(shard)
    if match is None or int(match[1]) >= int(match[2]):
        raise UsageError(f"{shard!r} is no share. Give WHICH/COUNT, from 0/4 to 3/4 for four.")
    return int(match[1]), int(match[2])
