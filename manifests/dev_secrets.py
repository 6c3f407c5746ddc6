"""Random passwords for the development overlay: `python -m manifests.dev_secrets`.

They are written to `overlays/dev/secrets/*.env`, which git ignores, readable by their owner only. Existing files are
kept, since a database keeps the password that it was created with.
"""

import os
import secrets
import sys
from pathlib import Path

FOLDER = Path(__file__).parent / "overlays" / "dev" / "secrets"


def make_secrets(folder: Path = FOLDER) -> list[Path]:
    """Write the missing files and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for name, values in _values().items():
        path = folder / f"{name}.env"
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            continue
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.writelines(f"{key}={value}\n" for key, value in values.items())
        made.append(path)
    return made


def _values() -> dict[str, dict[str, str]]:
    """Keys and values of each secret; a password has 32 random bytes."""
    login = {
        user: {"MLFLOW_TRACKING_USERNAME": user, "MLFLOW_TRACKING_PASSWORD": secrets.token_urlsafe(32)}
        for user in ("pipeline", "serving")
    }
    return {
        "postgres": {"password": secrets.token_urlsafe(32)},
        "mlflow-server": {"admin-password": secrets.token_urlsafe(32), "flask-secret-key": secrets.token_urlsafe(32)},
        "mlflow-pipeline": login["pipeline"],
        "mlflow-serving": login["serving"],
        "object-store": {
            "AWS_ACCESS_KEY_ID": secrets.token_hex(10),
            "AWS_SECRET_ACCESS_KEY": secrets.token_urlsafe(30),
        },
    }


if __name__ == "__main__":
    new = make_secrets()
    sys.stdout.write("".join(f"created {path.name}\n" for path in new) or "all secrets exist; no file was changed\n")
