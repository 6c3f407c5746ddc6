"""The model registry: versions, their aliases, the history of champions, and the scorer folders.

Aliases: `champion` is used for scoring, `challenger` is the last winner that was not promoted, `previous` is the
champion before this one, which `rollback` restores. The history is kept in tags of the registered model, one tag for
each change; tags are never rewritten.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from audioscore.errors import GateRefused, ModelError
from audioscore.files import uri_to_path
from audioscore.tracking.connection import connect, database_exists, database_file, require_database
from audioscore.tracking.lock import Hold, promotion_lock
from audioscore.tracking.relocate import present_location

if TYPE_CHECKING:
    from mlflow import MlflowClient


PREFIX = "champion_change_"


@dataclass(frozen=True)
class ChampionChange:
    """One change of the champion, recorded before the aliases change."""

    champion: int
    before: int | None
    kind: Literal["promote", "rollback"]
    why: str
    at: str  # ISO 8601, UTC


@dataclass(frozen=True)
class ChampionPeriod:
    """The time for which a version was champion. `until` is None for the current champion.

    `carried_out` is False if the change was interrupted, or if the alias was changed by hand afterwards.
    """

    champion: int
    since: str
    until: str | None
    kind: str
    why: str
    beaten: int | None
    carried_out: bool

    def to_json(self) -> dict[str, Any]:
        """Return one entry of `audioscore models --history --json`."""
        return asdict(self)


def record_change(client: "MlflowClient", name: str, change: ChampionChange) -> None:
    """Append one change to the history, before the aliases change. The caller holds the promotion lock."""
    used = [int(key.removeprefix(PREFIX)) for key in _keys(client.get_registered_model(name).tags)]
    number = max(used, default=0) + 1  # unique, also after a tag was deleted by hand
    client.set_registered_model_tag(name, f"{PREFIX}{number:05d}", json.dumps(asdict(change), ensure_ascii=False))


def read_changes(client: "MlflowClient", name: str) -> list[ChampionChange]:
    """Read every change, oldest first. Raises ModelError if a tag is not a valid change."""
    tags = client.get_registered_model(name).tags
    changes = []
    for key in _keys(tags):
        try:
            changes.append(ChampionChange(**json.loads(tags[key])))
        except (ValueError, TypeError) as error:
            raise ModelError(f"{name}: tag {key} is not a valid champion change. Correct or delete it.") from error
    return changes


def _keys(tags: Mapping[str, str]) -> list[str]:
    """Return the tags that hold changes, oldest first."""
    return sorted(key for key in tags if re.fullmatch(rf"{PREFIX}\d+", key))


def champion_before(changes: Sequence[ChampionChange], champion: int) -> int | None:
    """Return the version that the current champion replaced, according to the history; None if it is not recorded.

    >>> first = ChampionChange(1, None, "promote", "first model", "2026-01-01T00:00:00+00:00")
    >>> second = ChampionChange(2, 1, "promote", "better", "2026-02-01T00:00:00+00:00")
    >>> champion_before([first, second], 2), champion_before([first, second], 1)
    (1, None)
    """
    periods = [one for one in champion_periods(changes, champion) if one.carried_out and one.champion == champion]
    return periods[-1].beaten if periods else None


def champion_periods(changes: Sequence[ChampionChange], champion: int | None) -> list[ChampionPeriod]:
    """Turn changes into champion periods, oldest first; `champion` is the version that the alias names now.

    >>> first = ChampionChange(1, None, "promote", "first model", "2026-01-01T00:00:00+00:00")
    >>> second = ChampionChange(2, 1, "promote", "better", "2026-02-01T00:00:00+00:00")
    >>> [(one.champion, one.until, one.carried_out) for one in champion_periods([first, second], 2)]
    [(1, '2026-02-01T00:00:00+00:00', True), (2, None, True)]
    """
    after = [*(change.before for change in changes[1:]), champion]  # the champion when the next change began
    found: list[ChampionPeriod] = []
    until: str | None = None
    for change, followed in reversed(list(zip(changes, after, strict=True))):
        done = change.champion == followed
        # A change that was not carried out starts no period and ends none.
        found.append(
            ChampionPeriod(
                change.champion, change.at, until if done else change.at, change.kind, change.why, change.before, done
            )
        )
        until = change.at if done else until
    return found[::-1]


def now() -> str:
    """Return the time in UTC, to the second, as ISO 8601."""
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
    """Return the version that an alias points to, or None if the model or the alias does not exist."""
    from mlflow.exceptions import MlflowException

    try:
        found = client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        fix = "Check MLFLOW_TRACKING_URI and the server."
        raise ModelError(f"models:/{name}@{alias}: cannot be read ({error.error_code}). {fix}") from error
    return version_of(client, name, int(found.version))


def has_champion(tracking_uri: str, name: str) -> bool:
    """Return whether a model has a champion. Does not create a database."""
    return database_exists(tracking_uri) and version_by_alias(connect(tracking_uri), name, CHAMPION) is not None


def version_of(client: "MlflowClient", name: str, version: int) -> ModelVersion:
    """Return one version with its aliases. Raises ModelError if it does not exist."""
    from mlflow.exceptions import MlflowException

    try:
        found = client.get_model_version(name, str(version))
    except MlflowException as error:
        raise ModelError(f"models:/{name}/{version}: no such version. `audioscore models` lists them.") from error
    return ModelVersion(name, int(found.version), tuple(found.aliases), dict(found.tags), str(found.run_id))


def require_champion(client: "MlflowClient", name: str, expected: int | None) -> int | None:
    """Return the current champion. Raises GateRefused if it is not the version that was compared with."""
    current = version_by_alias(client, name, CHAMPION)
    found = current.version if current else None
    if found != expected:
        before, after = (f"v{version}" if version is not None else "none" for version in (expected, found))
        raise GateRefused(f"{name}: the champion changed from {before} to {after} since the comparison. Compare again.")
    return found


def promote(client: "MlflowClient", name: str, version: int, *, expected: int | None, why: str = "") -> None:
    """Make a version champion and the replaced champion `previous`. Of several concurrent calls, one succeeds.

    Args:
        expected: the champion that the version was compared with; None if there is no champion.

    Raises:
        GateRefused: another version is champion by now, or this one is champion already.
        ModelError: there is no such version, or the lock is not available.
    """
    challenger = version_of(client, name, version)
    with promotion_lock(client, name) as hold:
        beaten = require_champion(client, name, expected)
        if beaten == version:
            raise GateRefused(f"{challenger.uri}: is the champion already. Choose another version.")
        _change(client, hold, name, ChampionChange(version, beaten, "promote", why, now()))


def rollback(client: "MlflowClient", name: str, why: str = "") -> tuple[int, int]:
    """Make `previous` champion again. Returns the new champion and the one that it replaces.

    Raises:
        ModelError: there is no champion, or none before it.
    """
    with promotion_lock(client, name) as hold:
        champion, previous = (version_by_alias(client, name, alias) for alias in (CHAMPION, PREVIOUS))
        if champion is None:
            raise ModelError(f"{name}: has no champion, so there is nothing to roll back. See `audioscore models`.")
        before = previous.version if previous else None
        if before in (None, champion.version):  # an interrupted change has moved the alias already
            before = champion_before(read_changes(client, name), champion.version)
        if before is None:
            raise ModelError(f"{champion.uri}: no earlier champion is recorded. Promote a version instead.")
        _change(client, hold, name, ChampionChange(before, champion.version, "rollback", why, now()))
        return before, champion.version


def _change(client: "MlflowClient", hold: Hold, name: str, change: ChampionChange) -> None:
    """Record the change, then move the aliases; the champion's alias is moved last and completes the change."""
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
    """Return the scorer folder of a `models:/…` URI, downloaded if the artifacts are remote.

    Raises:
        ModelError: the URI does not name a registered scorer.
    """
    require_database(tracking_uri)
    client = connect(tracking_uri)
    import mlflow
    import yaml
    from mlflow.exceptions import MlflowException

    try:
        folder = _files_in_home(client, uri) or Path(mlflow.artifacts.download_artifacts(artifact_uri=uri))
        described = yaml.safe_load((folder / "MLmodel").read_text(encoding="utf-8"))
    except (MlflowException, OSError, ValueError, yaml.YAMLError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"{uri}: cannot be loaded from the registry ({reason}). See `audioscore models`.") from error
    # The MLmodel file names the folder in which MLflow stores the artifact.
    artifact = (described or {}).get("flavors", {}).get("python_function", {}).get("artifacts", {}).get(SCORER_ARTIFACT)
    if artifact is None or not (folder / artifact["path"]).is_dir():
        raise ModelError(f"{uri}: the version holds no scorer folder. Use one that audioscore registered.")
    return folder / str(artifact["path"])


def _files_in_home(client: "MlflowClient", uri: str) -> Path | None:
    """Return a version's files where runs and registry are on this machine; MLflow cannot read paths with `%`.

    Raises ModelError if they are missing.
    """
    from mlflow.store.artifact.utils.models import get_model_name_and_version

    database = database_file(client.tracking_uri)
    if database is None:
        return None
    location = client.get_model_version_download_uri(*get_model_name_and_version(client, uri))
    folder = uri_to_path(present_location(location, database))
    if folder is not None and not folder.is_dir():
        raise ModelError(f"{uri}: its files are missing from {folder}. Restore {database.parent} with all files.")
    return folder


def describe_version(version: ModelVersion) -> dict[str, Any]:
    """Return the entry `registered` of `run --json`."""
    return {"name": version.name, "version": version.version, "aliases": sorted(version.aliases)}


def newest_version(tracking_uri: str, name: str) -> ModelVersion | None:
    """Return the newest version of a model, or None. Does not create a database."""
    if not database_exists(tracking_uri):
        return None
    return next((one for one in list_versions(tracking_uri) if one.name == name), None)


def list_versions(tracking_uri: str) -> list[ModelVersion]:
    """List every version of every model, newest first within a model."""
    client = connect(tracking_uri)
    found = client.search_model_versions(order_by=["name ASC", "version_number DESC"])
    return [version_of(client, version.name, int(version.version)) for version in found]
