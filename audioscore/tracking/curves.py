"""Learning curves in MLflow, logged through the callback interface of `training`."""

import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from audioscore.config import Plan
from audioscore.home import Home

if TYPE_CHECKING:
    from mlflow import ActiveRun

QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "GIT_PYTHON_REFRESH": "quiet", "MLFLOW_LOGGING_LEVEL": "WARNING"}


class MlflowCurves:
    """Logs every figure of a learning curve as metrics of one MLflow run; a `training.callbacks.Callback`.

    Args:
        artifacts: location of the files of an experiment that does not exist yet; MLflow's default if None.
    """

    def __init__(self, experiment: str, name: str, tags: dict[str, str], artifacts: str | None = None) -> None:
        self._experiment, self._name, self._tags, self._artifacts = experiment, name, tags, artifacts
        self._run: ActiveRun | None = None

    def on_start(self, step: int, steps: int) -> None:
        import mlflow

        logging.getLogger("alembic").setLevel(logging.WARNING)  # it logs every step of creating a database
        found = mlflow.get_experiment_by_name(self._experiment)
        experiment = (
            mlflow.create_experiment(self._experiment, self._artifacts) if found is None else found.experiment_id
        )
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
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    artifacts = None
    if "MLFLOW_TRACKING_URI" not in os.environ:
        home.folder.mkdir(parents=True, exist_ok=True)
        os.environ["MLFLOW_TRACKING_URI"] = home.tracking_uri
        artifacts = (home.artifacts / experiment).as_uri()

    def callbacks_for(plan: Plan, seed: int) -> list[MlflowCurves]:
        return [MlflowCurves(experiment, f"{plan}, seed {seed}", {"plan": plan, "seed": str(seed)}, artifacts)]

    return callbacks_for
