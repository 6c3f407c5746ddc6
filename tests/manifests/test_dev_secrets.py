from pathlib import Path

from manifests.dev_secrets import make_secrets

KEYS = {
    "postgres": {"password"},
    "mlflow-server": {"admin-password", "flask-secret-key"},
    "mlflow-pipeline": {"MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"},
    "mlflow-serving": {"MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"},
    "object-store": {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"},
}


def read(path: Path) -> dict[str, str]:
    return dict(line.split("=", 1) for line in path.read_text(encoding="utf-8").splitlines())


def test_each_secret_is_random_and_readable_by_its_owner_only(tmp_path: Path) -> None:
    created = make_secrets(tmp_path / "a")
    assert {path.stem: set(read(path)) for path in created} == KEYS
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in created)
    again = make_secrets(tmp_path / "b")
    values = [value for path in [*created, *again] for key, value in read(path).items() if not key.endswith("USERNAME")]
    assert len(set(values)) == len(values) == 14
    assert all(len(value) >= 20 for value in values)


def test_existing_secrets_are_kept(tmp_path: Path) -> None:
    (tmp_path / "postgres.env").write_text("password=old\n", encoding="utf-8")
    assert len(make_secrets(tmp_path)) == 4
    assert read(tmp_path / "postgres.env") == {"password": "old"}
    assert make_secrets(tmp_path) == []
