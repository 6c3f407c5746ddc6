"""Functions compiled by Numba, which takes a second to import: only what needs it then imports this."""

import contextlib
import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

from numba import njit

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """The function as machine code, during which other threads run; kept on disk where that is possible.

    Products may be added unrounded.
    """
    return _compiled(function, {"contract"})


def summing(function: Function) -> Function:
    """As `compiled`, and numbers may be added up in any order: several at a time."""
    return _compiled(function, {"contract", "reassoc"})


def _compiled(function: Function, liberties: set[str]) -> Function:
    options: dict[str, Any] = {"nogil": True, "fastmath": liberties}
    try:
        made: Any = njit(**options, cache=True)(function)
    except RuntimeError:  # there is no folder that can be written
        return cast(Function, njit(**options)(function))
    # Numba keeps machine code as long as the file of the function is the same; what it calls is compiled into it too.
    made._cache._cache_file._source_stamp = (made._cache._cache_file._source_stamp, *_sources())
    keep = made._cache.save_overload

    def keep_if_possible(*arguments: Any) -> None:
        with contextlib.suppress(OSError):  # a full disk; what was compiled is used all the same
            keep(*arguments)

    made._cache.save_overload = keep_if_possible
    return cast(Function, made)


@cache
def _sources() -> tuple[tuple[str, str], ...]:
    """The files that machine code is made of, where they are there, and what is in them."""
    here = Path(__file__).parent
    files = (*sorted(here.glob("*_kernels.py")), *here.glob("compiled.py"))
    return tuple((file.name, hashlib.sha256(file.read_bytes()).hexdigest()) for file in files)
