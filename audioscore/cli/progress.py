"""Progress bars on standard error, and only where a person is watching."""

import contextlib
import sys
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def stages() -> Iterator[Callable[[str], Callable[[int, int], None] | None]]:
    """A function from a stage's name to what is told `(done, of how many)`; None, and no bar, without a terminal."""
    if not sys.stderr.isatty():
        yield lambda name: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:

        def stage(name: str) -> Callable[[int, int], None]:
            bar = bars.add_task(name, total=None)

            def show(done: int, total: int) -> None:
                bars.update(bar, completed=done, total=total)

            return show

        yield stage
