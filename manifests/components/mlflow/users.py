"""Create MLflow's two users with the passwords of the secrets; repeated, it sets their passwords again.

`pipeline` writes runs and models, and owns what it creates. `serving` may read them, but not change them.
"""

import json
import os
import sys
import urllib.error
import urllib.request
from base64 import b64encode


def call(method: str, path: str, values: dict[str, str]) -> int:
    """Send a request to the server's API for users; returns the status. Statuses other than success and 404 raise."""
    admin = b64encode(f"admin:{os.environ['MLFLOW_AUTH_ADMIN_PASSWORD']}".encode()).decode()
    request = urllib.request.Request(
        f"{os.environ['MLFLOW_TRACKING_URI']}/api/2.0/mlflow/users/{path}",
        data=json.dumps(values).encode() if method != "GET" else None,
        headers={"Authorization": f"Basic {admin}", "Content-Type": "application/json"},
        method=method,
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 404:
            return 404
        raise


def main() -> None:
    """Create the users that are missing, and set the passwords of the others."""
    for name in ("pipeline", "serving"):
        login = {"username": name, "password": os.environ[f"{name.upper()}_PASSWORD"]}
        if call("GET", f"get?username={name}", {}) == 404:
            call("POST", "create", login)
            sys.stdout.write(f"{name}: created\n")
        else:
            call("PATCH", "update-password", login)
            sys.stdout.write(f"{name}: password set\n")


if __name__ == "__main__":
    main()
