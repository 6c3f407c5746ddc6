"""Importing the heavy packages without their start-up chatter."""

import contextlib
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_imports() -> Iterator[None]:
    """Silence the deprecation notices that muq's and modelscope's own dependencies print on import.

    They concern those packages, not their users, and with warnings as errors they would stop a program.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
