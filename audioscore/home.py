"""Locations of the state on disk: `$AUDIOSCORE_HOME`, or `.audioscore/` in the working folder."""

import os
from dataclasses import dataclass
from pathlib import Path

from audioscore.errors import UsageError
from audioscore.files import path_to_uri

DEMO_WORKSPACE = "demo"
MODEL = "audioscore"  # default name of the registered model
ARTIFACTS = "mlartifacts"  # folder beside the database
LONGEST_DATABASE = 504  # bytes of a path: SQLite allows 512, and adds "-journal"
DEMO_MODEL = "audioscore-demo"  # a separate name, so that a demo never becomes the production champion


@dataclass(frozen=True)
class Home:
    """One workspace: the MLflow database and artifacts, the feature store, and one folder for each run."""

    folder: Path
    server: str | None = None  # address of the MLflow server, if runs and registry are not in the database
    unsupported: str | None = None  # the kind of tracking store in MLFLOW_TRACKING_URI, if it cannot be used

    @property
    def tracking_uri(self) -> str:
        """MLflow URI of runs and registry.

        Raises UsageError for an unsupported store in MLFLOW_TRACKING_URI, and for a folder that cannot hold a database.
        """
        if self.unsupported is not None:
            raise UsageError(
                f"MLFLOW_TRACKING_URI: stores of kind {self.unsupported!r} are not supported. Start an MLflow server "
                "on that store and set its http:// or https:// address, or unset the variable for the local database."
            )
        return self.server or path_to_uri(self._database(), "sqlite")

    def _database(self) -> Path:
        path = self.folder / "mlflow.db"
        name = os.fsencode(path)
        if name != str(path).encode(errors="replace"):
            raise UsageError(
                "AUDIOSCORE_HOME: its path is not UTF-8, which MLflow's database needs. Rename the folder."
            )
        if len(name) > LONGEST_DATABASE:
            raise UsageError(
                f"AUDIOSCORE_HOME: mlflow.db has a path of {len(name)} bytes; at most {LONGEST_DATABASE} fit. "
                f"Set AUDIOSCORE_HOME to a folder with a shorter path."
            )
        existing = next(one for one in (self.folder, *self.folder.parents) if os.path.exists(one))
        if not os.path.isdir(existing):
            raise UsageError(f"{existing}: is not a folder. Set AUDIOSCORE_HOME to a folder; it may not exist yet.")
        return path

    @property
    def artifacts(self) -> Path:
        """Artifacts of MLflow runs and registered models."""
        return self.folder / ARTIFACTS

    @property
    def features(self) -> Path:
        """The feature store."""
        return self.folder / "features"

    @property
    def measurements(self) -> Path:
        """Cache of audio measurements, by the content of the recording."""
        return self.folder / "probes.db"

    @property
    def converted(self) -> Path:
        """Scorers converted from legacy models, by the content of their weights."""
        return self.folder / "converted"

    @property
    def runs(self) -> Path:
        """One folder for each pipeline run."""
        return self.folder / "runs"


def home(workspace: str = "") -> Home:
    """Return the home, or a workspace inside it; a workspace is always local.

    The MLflow server is `$MLFLOW_TRACKING_URI` if that is an http(s) address. MLflow itself sets the variable to SQLite
    databases, which are ignored. Any other store raises an error when `tracking_uri` is read.
    """
    base = Path(os.environ.get("AUDIOSCORE_HOME") or ".audioscore").resolve()
    if workspace:
        return Home(base / workspace)
    address = os.environ.get("MLFLOW_TRACKING_URI", "")
    if address.startswith(("http://", "https://")):
        return Home(base, address)
    kind = address.partition(":")[0] if ":" in address else "file"
    return Home(
        base, unsupported=None if kind.split("+")[0] in ("sqlite", "file") else kind
    )  # the rest of the URI may hold a password


def home_of_model(name: str) -> Home:
    """Return the workspace whose registry holds a model name; the demo has its own."""
    return home(DEMO_WORKSPACE if name == DEMO_MODEL else "")
