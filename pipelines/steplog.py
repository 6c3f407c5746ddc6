"""The output of KFP's local runner: one log file per step, a short progress list, and the cause of a failed step.

KFP's local runner prints everything to standard output. `StepLog` replaces it: lines between "Executing task" and
"finished with status" belong to that step.
"""

import io
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from audioscore import errors
from audioscore.errors import AudioscoreError, UsageError

if TYPE_CHECKING:
    from audioscore.platforms import ContainersSection

ANSI = re.compile(r"\x1b\[[0-9;]*m")
STARTED = re.compile(r"Executing task '(?P<name>[^']+)'")
FINISHED = re.compile(r"Task '(?P<name>[^']+)' finished with status (?P<status>\w+)")
PLAN = re.compile(r'^\s*"plan": "(?P<plan>\w+)"')
LOGGED = re.compile(r"^\[KFP Executor [^\]]*\b(?:INFO|WARNING)\]: (?P<message>.*)$")
KFP_CHATTER = ("Looking for component", "Loading KFP component", "Got executor_input", "Wrote executor output")
ERROR = re.compile(r"^(?:audioscore\.errors\.)(?P<kind>\w+): (?P<message>.*)$")
# The last line of a log, written by containers.run_container.
OUT_OF_MEMORY = "[container ended: out of memory]"
KILLED = "[container ended: killed]"
# The last line of a traceback, or the interpreter's message for a module that it cannot run.
UNCAUGHT = re.compile(
    r"^(?:[A-Za-z_][\w.]*(?:Error|Exception|Exit|Interrupt)\b|/\S+python\S*: No module).*$", re.MULTILINE
)
NO_MODULE = re.compile(r"(?:ModuleNotFoundError|/\S+python\S*): No module named '?(?P<module>[\w.]+)'?")


class StepFailed(AudioscoreError):
    """A step failed for a reason that the user cannot correct: a defect of the program."""

    exit_code = errors.INTERNAL_ERROR_EXIT_CODE


@dataclass
class Step:
    """One execution of a component.

    `last` is its newest log line, `error` the class and message of an expected error that ended it.
    """

    name: str
    log: Path
    started: float
    seconds: float | None = None
    status: str = "running"
    last: str = ""
    error: tuple[str, str] | None = None
    notes: list[str] = field(default_factory=list)


class StepLog(io.TextIOBase):
    """A text stream for KFP's output; a step that fails after the run was `interrupted` counts as stopped."""

    def __init__(self, folder: Path, console: Console, interrupted: Callable[[], bool] = lambda: False) -> None:
        self.folder = folder
        self.console = console
        self.interrupted = interrupted
        self.steps: list[Step] = []
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
        """Print that a step's cached outputs are used."""
        self.console.print(f"  [green]kept[/green]  {name.replace('-', '_'):<32}", highlight=False)

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
        if error := ERROR.match(line):
            step.error = (error["kind"], error["message"])
        logged = LOGGED.match(line)
        if logged and not logged["message"].startswith(KFP_CHATTER):
            step.last = logged["message"]
            if " WARNING]: " in line or step.last.startswith("features:"):
                step.notes.append(step.last)
        if self._status is not None:
            self._status.update(f"{step.name}  [dim]{escape(step.last)}[/dim]")

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
                self.console.print(f"        [dim]{escape(note)}[/dim]", highlight=False)
        if self._file is not None:
            self._file.close()
            self._file = None


def steps_table(steps: list[Step]) -> Table:
    """Steps with their status, duration and log file."""
    table = Table(box=None, pad_edge=False)
    for heading in ("step", "status", "seconds", "log"):
        table.add_column(heading, justify="right" if heading == "seconds" else "left", no_wrap=True)
    for step in steps:
        table.add_row(step.name, step.status, f"{step.seconds or 0:.1f}", step.log.name)
    table.add_row("all", "", f"{sum(step.seconds or 0 for step in steps):.1f}", "")
    return table


def step_error(steps: list[Step], raised: RuntimeError, section: "ContainersSection | None" = None) -> AudioscoreError:
    """The error to raise for a failed run, from its last step's log.

    Args:
        raised: what KFP raised.
        section: settings of the containers that the steps ran in, if they did.

    Returns:
        The step's own error where it raised one for the user, UsageError where image or memory are the cause, else
        StepFailed with the step's log.
    """
    if not steps:
        return StepFailed(f"pipeline: did not start ({raised}). Please report it.")
    step = steps[-1]
    if step.error is not None:
        kind: type[AudioscoreError] = getattr(errors, step.error[0], AudioscoreError)
        return kind(step.error[1])
    if section is not None and (cause := container_cause(step.log, section)) is not None:
        return UsageError(f"step {step.name}: {cause} Its log is {step.log}.")
    return StepFailed(f"step {step.name}: failed unexpectedly; its log is {step.log}. Please report it.")


def container_cause(log: Path, section: "ContainersSection") -> str | None:
    """Why a step in a container ended without an error of its own, and a remedy; None where the log shows no cause."""
    text = log.read_text(encoding="utf-8", errors="replace")
    if OUT_OF_MEMORY in text:
        limit = f"its limit of {section.memory}" if section.memory else "the memory of this machine"
        return f"was killed: it needed more than {limit}. Raise containers.memory, or free memory."
    if KILLED in text:
        return "was killed from outside, probably for memory. Free memory or raise containers.memory, then --resume."
    uncaught = UNCAUGHT.findall(text)  # the last exception ended the step; others may have been caught
    if uncaught and (missing := NO_MODULE.match(uncaught[-1])):
        return f"found no module {missing['module']} in the image {section.image}. Rebuild it: `make image`."
    return None
