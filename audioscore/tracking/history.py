"""Who was champion from when to when, and why: kept in tags of the registered model, one a change, never rewritten."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from audioscore.errors import ModelError

if TYPE_CHECKING:
    from mlflow import MlflowClient

PREFIX = "champion_change_"


@dataclass(frozen=True)
class Change:
    """One change of the champion, as it was meant when it began."""

    champion: int
    before: int | None
    kind: Literal["promote", "rollback"]
    why: str
    at: str  # ISO 8601, UTC


@dataclass(frozen=True)
class Reign:
    """A version's time as champion. `until` is None for the champion of today.

    `carried_out` is False where the change stopped halfway, or the alias was moved by hand since.
    """

    champion: int
    since: str
    until: str | None
    kind: str
    why: str
    beaten: int | None
    carried_out: bool

    def to_json(self) -> dict[str, Any]:
        """For `audioscore models --history --json`."""
        return asdict(self)


def record_change(client: "MlflowClient", name: str, change: Change) -> None:
    """Append one change; the caller holds the promotion lock. It comes before the aliases move."""
    taken = [int(key.removeprefix(PREFIX)) for key in _keys(client.get_registered_model(name).tags)]
    number = max(taken, default=0) + 1  # never that of another change, also where one was deleted by hand
    client.set_registered_model_tag(name, f"{PREFIX}{number:05d}", json.dumps(asdict(change), ensure_ascii=False))


def read_changes(client: "MlflowClient", name: str) -> list[Change]:
    """Every change, oldest first. Raises ModelError where a tag was changed by hand into something else."""
    tags = client.get_registered_model(name).tags
    changes = []
    for key in _keys(tags):
        try:
            changes.append(Change(**json.loads(tags[key])))
        except (ValueError, TypeError) as fault:
            raise ModelError(f"{name}: its tag {key} is no change of the champion. Mend or delete it.") from fault
    return changes


def _keys(tags: Mapping[str, str]) -> list[str]:
    """The tags that hold changes, oldest first."""
    return sorted(key for key in tags if re.fullmatch(rf"{PREFIX}\d+", key))


def champion_before(changes: Sequence[Change], champion: int) -> int | None:
    """Whom the champion of today replaced when it last took office, as the history says; None where it does not.

    >>> first = Change(1, None, "promote", "first model", "2026-01-01T00:00:00+00:00")
    >>> second = Change(2, 1, "promote", "better", "2026-02-01T00:00:00+00:00")
    >>> champion_before([first, second], 2), champion_before([first, second], 1)
    (1, None)
    """
    in_office = [one for one in reigns(changes, champion) if one.carried_out and one.champion == champion]
    return in_office[-1].beaten if in_office else None


def reigns(changes: Sequence[Change], champion: int | None) -> list[Reign]:
    """The changes as times in office, oldest first; `champion` is today's, as the alias says.

    >>> first = Change(1, None, "promote", "first model", "2026-01-01T00:00:00+00:00")
    >>> second = Change(2, 1, "promote", "better", "2026-02-01T00:00:00+00:00")
    >>> [(one.champion, one.until, one.carried_out) for one in reigns([first, second], 2)]
    [(1, '2026-02-01T00:00:00+00:00', True), (2, None, True)]
    """
    after = [*(change.before for change in changes[1:]), champion]  # who was champion when the next change began
    found: list[Reign] = []
    until: str | None = None
    for change, followed in reversed(list(zip(changes, after, strict=True))):
        done = change.champion == followed
        # What was not carried out is no time in office, and ends nobody's.
        found.append(
            Reign(
                change.champion, change.at, until if done else change.at, change.kind, change.why, change.before, done
            )
        )
        until = change.at if done else until
    return found[::-1]


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
