import pytest
from mlflow import MlflowClient

from audioscore.errors import ModelError
from audioscore.tracking.registry import (
    ChampionChange,
    champion_periods,
    promote,
    read_changes,
    record_change,
    rollback,
)


def test_promotions_and_rollbacks_are_recorded(client: MlflowClient) -> None:
    assert read_changes(client, "singers") == []
    promote(client, "singers", 1, expected=None, why="first model")
    promote(client, "singers", 3, expected=1, why="比 v1 好")
    rollback(client, "singers", "wrong")
    found = champion_periods(read_changes(client, "singers"), 1)
    assert [(one.champion, one.beaten, one.kind, one.why) for one in found] == [
        (1, None, "promote", "first model"),
        (3, 1, "promote", "比 v1 好"),
        (1, 3, "rollback", "wrong"),
    ]
    assert [one.until for one in found] == [found[1].since, found[2].since, None]
    assert all(one.carried_out for one in found)
    assert found[0].to_json()["since"].endswith("+00:00")


def test_a_change_that_stopped_halfway_is_seen(client: MlflowClient) -> None:
    promote(client, "singers", 1, expected=None)
    record_change(client, "singers", ChampionChange(2, 1, "promote", "better", "2026-01-01T00:00:00+00:00"))
    found = champion_periods(read_changes(client, "singers"), 1)
    assert [one.carried_out for one in found] == [True, False]
    assert found[0].until is None
    promote(client, "singers", 3, expected=1)
    assert [one.carried_out for one in champion_periods(read_changes(client, "singers"), 3)] == [True, False, True]


def test_a_change_never_overwrites_another(client: MlflowClient) -> None:
    for version, before in ((1, None), (2, 1), (3, 2)):
        promote(client, "singers", version, expected=before)
    client.delete_registered_model_tag("singers", "champion_change_00001")
    promote(client, "singers", 1, expected=3)
    assert [change.champion for change in read_changes(client, "singers")] == [2, 3, 1]


def test_rolling_back_after_a_promotion_that_stopped_halfway(client: MlflowClient) -> None:
    promote(client, "singers", 1, expected=None)
    promote(client, "singers", 2, expected=1)
    # What a promotion of version 3 leaves behind that ended before the champion's alias moved.
    record_change(client, "singers", ChampionChange(3, 2, "promote", "better", "2026-01-01T00:00:00+00:00"))
    client.set_registered_model_alias("singers", "previous", "2")
    assert rollback(client, "singers") == (1, 2)


def test_an_invalid_tag_is_named(client: MlflowClient) -> None:
    client.set_registered_model_tag("singers", "champion_change_00001", "v1")
    with pytest.raises(ModelError, match=r"^singers: .*champion_change_00001"):
        read_changes(client, "singers")
