"""The model registry: which version is champion, how that changes, and where its scorer folder lies.

Aliases: `champion` is what scoring uses, `challenger` the last winner that was not promoted, `previous` the champion
before this one, which `rollback` restores.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from audioscore.errors import GateRefused, ModelError
from audioscore.tracking.connection import connect, database_file, require_database
from audioscore.tracking.lock import Hold, promotion_lock

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


CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
SCORER_ARTIFACT = "scorer"


@dataclass(frozen=True)
class ModelVersion:
    """One registered version."""

    name: str
    version: int
    aliases: tuple[str, ...]
    tags: dict[str, str]
    run_id: str

    @property
    def uri(self) -> str:
        return f"models:/{self.name}/{self.version}"


def version_by_alias(client: "MlflowClient", name: str, alias: str) -> ModelVersion | None:
    """The version an alias points at, or None where there is no such model or alias."""
    from mlflow.exceptions import MlflowException

    try:
        found = client.get_model_version_by_alias(name, alias)
    except MlflowException as fault:
        if fault.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise ModelError(f"models:/{name}@{alias}: the registry cannot be read ({fault.error_code}).") from fault
    return version_of(client, name, int(found.version))


def has_champion(tracking_uri: str, name: str) -> bool:
    """Whether a model has a champion; looking creates no database."""
    database = database_file(tracking_uri)
    if database is not None and not database.is_file():
        return False
    return version_by_alias(connect(tracking_uri), name, CHAMPION) is not None


def version_of(client: "MlflowClient", name: str, version: int) -> ModelVersion:
    """One version with its aliases. Raises ModelError where it does not exist."""
    from mlflow.exceptions import MlflowException

    try:
        found = client.get_model_version(name, str(version))
    except MlflowException as fault:
        raise ModelError(f"models:/{name}/{version}: no such version. `audioscore models` lists them.") from fault
    return ModelVersion(name, int(found.version), tuple(found.aliases), dict(found.tags), str(found.run_id))


def champion_moved(client: "MlflowClient", name: str, expected: int | None) -> int | None:
    """The champion now. Raises GateRefused where it is not the one that was compared with."""
    current = version_by_alias(client, name, CHAMPION)
    found = current.version if current else None
    if found != expected:
        before, after = (f"v{version}" if version is not None else "none" for version in (expected, found))
        raise GateRefused(f"{name}: champion moved from {before} to {after} since the comparison. Compare again.")
    return found


def promote(client: "MlflowClient", name: str, version: int, *, expected: int | None, why: str = "") -> None:
    """Make a version champion, and the champion it beat `previous`; of several at once, one does.

    `expected` is the champion it was compared with. Raises GateRefused where that is champion no longer, or the
    version is champion already; ModelError where there is no such version, or the lock cannot be had.
    """
    challenger = version_of(client, name, version)
    with promotion_lock(client, name) as hold:
        beaten = champion_moved(client, name, expected)
        if beaten == version:
            raise GateRefused(f"{challenger.uri} is the champion already.")
        _change(client, hold, name, Change(version, beaten, "promote", why, now()))


def rollback(client: "MlflowClient", name: str, why: str = "") -> tuple[int, int]:
    """Make `previous` champion again, and the champion `previous`; returns the new champion and the one before it.

    Raises ModelError where there is no champion, or none before it.
    """
    with promotion_lock(client, name) as hold:
        champion, previous = (version_by_alias(client, name, alias) for alias in (CHAMPION, PREVIOUS))
        if champion is None:
            raise ModelError(f"{name} has no champion, so there is nothing to roll back. See `audioscore models`.")
        before = previous.version if previous else None
        if before in (None, champion.version):  # a change that stopped halfway has moved the alias already
            before = champion_before(read_changes(client, name), champion.version)
        if before is None:
            raise ModelError(f"{champion.uri} is champion, and none before it is known. Promote a version instead.")
        _change(client, hold, name, Change(before, champion.version, "rollback", why, now()))
        return before, champion.version


def _change(client: "MlflowClient", hold: Hold, name: str, change: Change) -> None:
    """Write down what is about to happen, then let it happen; the champion's alias completes it."""
    hold.check()
    record_change(client, name, change)
    if change.before is not None:
        client.set_registered_model_alias(name, PREVIOUS, str(change.before))
    hold.check()
    client.set_registered_model_alias(name, CHAMPION, str(change.champion))
    challenger = version_by_alias(client, name, CHALLENGER)
    if challenger is not None and challenger.version == change.champion:
        client.delete_registered_model_alias(name, CHALLENGER)


def scorer_folder(tracking_uri: str, uri: str) -> Path:
    """Scorer folder of a `models:/…` URI, downloaded where the artifacts are remote.

    Raises ModelError where the URI names nothing that is registered.
    """
    require_database(tracking_uri)
    connect(tracking_uri)
    import mlflow
    from mlflow.exceptions import MlflowException

    try:
        folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri))
        flavors = mlflow.models.Model.load(folder).flavors
    except (MlflowException, OSError) as fault:
        reason = (str(fault).strip() or type(fault).__name__).splitlines()[0]
        raise ModelError(f"{uri}: cannot be loaded from the registry ({reason}). See `audioscore models`.") from fault
    # MLflow keeps an artifact under its own folder name; the MLmodel file says which that is.
    artifact = flavors.get("python_function", {}).get("artifacts", {}).get(SCORER_ARTIFACT)
    if artifact is None or not (folder / artifact["path"]).is_dir():
        raise ModelError(f"{uri}: is registered, but holds no scorer folder. It was not registered by audioscore.")
    return folder / str(artifact["path"])


def describe_version(version: ModelVersion) -> dict[str, Any]:
    """What `run --json` says of a registered version."""
    return {"name": version.name, "version": version.version, "aliases": sorted(version.aliases)}


def list_versions(tracking_uri: str) -> list[ModelVersion]:
    """Every version of every model in a registry, newest first within a model."""
    client = connect(tracking_uri)
    found = client.search_model_versions(order_by=["name ASC", "version_number DESC"])
    return [version_of(client, version.name, int(version.version)) for version in found]
