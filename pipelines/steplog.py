"""KFP's local output, sorted into one log file a step, and a quiet account of the steps for people.

KFP's local runner prints everything to standard output. `StepLog` stands in for it: lines between "Executing task"
and "finished with status" belong to that step.
"""

import io
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.table import Table

ANSI = re.compile(r"\x1b\[[0-9;]*m")
STARTED = re.compile(r"Executing task '(?P<name>[^']+)'")
FINISHED = re.compile(r"Task '(?P<name>[^']+)' finished with status (?P<status>\w+)")
PLAN = re.compile(r'^\s*"plan": "(?P<plan>\w+)"')
LOGGED = re.compile(r"^\[KFP Executor [^\]]*\b(?:INFO|WARNING)\]: (?P<message>.*)$")
KFP_CHATTER = ("Looking for component", "Loading KFP component", "Got executor_input", "Wrote executor output")
FAULT = re.compile(r"^(?:audioscore\.errors\.)(?P<kind>\w+): (?P<message>.*)$")


@dataclass
class Step:
    """One execution of a component."""

    name: str
    log: Path
    started: float
    seconds: float | None = None
    status: str = "running"
    last: str = ""  # the newest line it logged
    fault: tuple[str, str] | None = None  # error class and sentence, where it failed on purpose
    notes: list[str] = field(default_factory=list)


class StepLog(io.TextIOBase):
    """A text stream that KFP writes to; a step that fails once the run is `interrupted` was stopped."""

    def __init__(self, folder: Path, console: Console, interrupted: Callable[[], bool] = lambda: False) -> None:
        self.folder = folder
        self.console = console
        self.interrupted = interrupted
        self.steps: list[Step] = []
        self.kept: list[str] = []
        self._pending = ""
        self._file: IO[str] | None = None
        self._status = console.status("starting") if console.is_terminal else None
        folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> "StepLog":
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._pending:
            self._line(self._pending)
            self._pending = ""
        self._close("stopped")
        if self._status is not None:
            self._status.stop()

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self._pending += text
        *lines, self._pending = self._pending.split("\n")
        for line in lines:
            self._line(line)
        return len(text)

    @property
    def running(self) -> Step | None:
        return self.steps[-1] if self.steps and self.steps[-1].status == "running" else None

    def reused(self, name: str) -> None:
        """A step that was finished before, and is not run again."""
        self.kept.append(name.replace("-", "_"))
        self.console.print(f"  [green]kept[/green]  {self.kept[-1]:<32}", highlight=False)

    def _line(self, raw: str) -> None:
        line = ANSI.sub("", raw).rstrip()
        if started := STARTED.search(line):
            self._open(started["name"])
        elif (finished := FINISHED.search(line)) and self.running:
            self._close("done" if finished["status"] == "SUCCESS" else "failed")
        elif self.running and self._file is not None:
            self._file.write(line.removeprefix("    ") + "\n")
            self._file.flush()
            self._note(self.running, line.strip())

    def _note(self, step: Step, line: str) -> None:
        if step.name == "train_scorer" and (plan := PLAN.match(line)):
            step.name = f"{step.name} ({plan['plan']})"
        if fault := FAULT.match(line):
            step.fault = (fault["kind"], fault["message"])
        logged = LOGGED.match(line)
        if logged and not logged["message"].startswith(KFP_CHATTER):
            step.last = logged["message"]
            if " WARNING]: " in line or step.last.startswith("features:"):
                step.notes.append(step.last)
        if self._status is not None:
            self._status.update(f"{step.name}  [dim]{_markup_safe(step.last)}[/dim]")

    def _open(self, name: str) -> None:
        self._close("stopped")
        name = name.replace("-", "_")
        log = self.folder / f"{len(list(self.folder.glob('*.log'))) + 1:02d}-{name}.log"
        self._file = log.open("w", encoding="utf-8")
        self.steps.append(Step(name, log, time.monotonic()))
        if self._status is not None:
            self._status.update(name)

    def _close(self, status: str) -> None:
        step = self.running
        if step is not None:
            status = "stopped" if status == "failed" and self.interrupted() else status
            step.status, step.seconds = status, time.monotonic() - step.started
            mark = "[green]done[/green]" if status == "done" else f"[red]{status}[/red]"
            self.console.print(f"  {mark}  {step.name:<32} {step.seconds:6.1f} s", highlight=False)
            for note in step.notes:
                self.console.print(f"        [dim]{_markup_safe(note)}[/dim]", highlight=False)
        if self._file is not None:
            self._file.close()
            self._file = None


def steps_table(steps: list[Step]) -> Table:
    """Steps, how they ended, how long they took, and the names of their log files."""
    table = Table(box=None, pad_edge=False)
    for heading in ("step", "status", "seconds", "log"):
        table.add_column(heading, justify="right" if heading == "seconds" else "left", no_wrap=True)
    for step in steps:
        table.add_row(step.name, step.status, f"{step.seconds or 0:.1f}", step.log.name)
    table.add_row("all", "", f"{sum(step.seconds or 0 for step in steps):.1f}", "")
    return table


def _markup_safe(text: str) -> str:
    from rich.markup import escape

    return escape(text)
