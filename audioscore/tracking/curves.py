"""Learning curves in MLflow, logged through the callback interface of `training`."""

import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from audioscore.config import Plan
from audioscore.errors import UsageError
from audioscore.home import Home
from audioscore.tracking.connection import initialise

if TYPE_CHECKING:
    from mlflow import ActiveRun

LONGEST_NAME = 500  # characters; MLflow's limit
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "GIT_PYTHON_REFRESH": "quiet", "MLFLOW_LOGGING_LEVEL": "WARNING"}


class MlflowCurves:
    """Logs every figure of a learning curve as metrics of one MLflow run; a `training.callbacks.Callback`.

    Args:
        home: the home in whose database an experiment that does not exist is created; None for MLflow's default.
    """

    def __init__(self, experiment: str, name: str, tags: dict[str, str], home: Home | None = None) -> None:
        self._experiment, self._name, self._tags, self._home = experiment, name, tags, home
        self._run: ActiveRun | None = None

    def on_start(self, step: int, steps: int) -> None:
        import mlflow

        logging.getLogger("alembic").setLevel(logging.WARNING)  # it logs every step of creating a database
        if self._home is not None:
            initialise(self._home.tracking_uri, self._experiment, self._home.artifacts)
        found = mlflow.get_experiment_by_name(self._experiment)
        experiment = mlflow.create_experiment(self._experiment) if found is None else found.experiment_id
        self._run = mlflow.start_run(experiment_id=experiment, run_name=self._name, tags=self._tags)
        mlflow.log_params({"steps": steps, "first_step": step, **self._tags})

    def on_step(self, step: int) -> None:
        pass

    def on_epoch(self, entry: dict[str, float]) -> None:
        if self._run is not None:
            import mlflow

            mlflow.log_metrics({name: value for name, value in entry.items() if name != "epoch"}, int(entry["epoch"]))

    def on_end(self, error: BaseException | None) -> None:
        if self._run is not None:
            self._run.__exit__(None if error is None else type(error), error, None)  # a failed run if there is an error


def mlflow_curves(experiment: str, home: Home) -> Callable[[Plan, int], list[MlflowCurves]]:
    """Return a factory of callbacks that log the fit of a plan and a seed as one run of this experiment.

    The tracking server or database is MLFLOW_TRACKING_URI; if that is not set, it is set to the database of `home`.

    Raises:
        UsageError: MLflow refuses the name of the experiment, or its files would leave the home.
    """
    if not experiment.strip() or len(experiment) > LONGEST_NAME or {"", ".."} & set(experiment.split("/")):
        raise UsageError(
            f"--mlflow {experiment[:40]!r}: an experiment's name has 1 to {LONGEST_NAME} characters. Choose another."
        )
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    own = None
    if "MLFLOW_TRACKING_URI" not in os.environ:
        os.environ["MLFLOW_TRACKING_URI"] = home.tracking_uri
        own = home

    def callbacks_for(plan: Plan, seed: int) -> list[MlflowCurves]:
        return [MlflowCurves(experiment, f"{plan}, seed {seed}", {"plan": plan, "seed": str(seed)}, own)]

    return callbacks_for
