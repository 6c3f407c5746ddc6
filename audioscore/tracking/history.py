"""Who was champion from when to when, and why: kept in tags of the registered model, one a change, never rewritten."""

import json
from collections.abc import Sequence
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
    number = len(read_changes(client, name)) + 1
    client.set_registered_model_tag(name, f"{PREFIX}{number:05d}", json.dumps(asdict(change), ensure_ascii=False))


def read_changes(client: "MlflowClient", name: str) -> list[Change]:
    """Every change, oldest first. Raises ModelError where a tag was changed by hand into something else."""
    tags = client.get_registered_model(name).tags
    changes = []
    for key in sorted(key for key in tags if key.startswith(PREFIX)):
        try:
            changes.append(Change(**json.loads(tags[key])))
        except (ValueError, TypeError) as fault:
            raise ModelError(f"{name}: its tag {key} is no change of the champion. Mend or delete it.") from fault
    return changes


def reigns(changes: Sequence[Change], champion: int | None) -> list[Reign]:
    """The changes as times in office, oldest first; `champion` is today's, as the alias says.

    >>> first = Change(1, None, "promote", "first model", "2026-01-01T00:00:00+00:00")
    >>> second = Change(2, 1, "promote", "better", "2026-02-01T00:00:00+00:00")
    >>> [(one.champion, one.until, one.carried_out) for one in reigns([first, second], 2)]
    [(1, '2026-02-01T00:00:00+00:00', True), (2, None, True)]
    """
    found = []
    for place, change in enumerate(changes):
        following = changes[place + 1] if place + 1 < len(changes) else None
        found.append(
            Reign(
                change.champion,
                change.at,
                following.at if following else None,
                change.kind,
                change.why,
                change.before,
                change.champion == (following.before if following else champion),
            )
        )
    return found


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
