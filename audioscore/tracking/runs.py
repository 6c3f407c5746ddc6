"""MLflow runs: one for the pipeline run, one below it for each plan."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audioscore.scoring.trained import TrainedPlan

if TYPE_CHECKING:
    from mlflow import MlflowClient

METRIC_FIGURES = ("value", "lo", "hi")
PARAM_CHARACTERS = 6000  # MLflow's own limit for one value


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as dotted keys.

    >>> flatten({"a": {"b": 1}, "c": [2]})
    {'a.b': 1, 'c': [2]}
    """
    flat: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{key}."))
        else:
            flat[key] = value
    return flat


def log_plan(
    client: "MlflowClient",
    experiment_id: str,
    parent: str,
    trained: TrainedPlan,
    figures: Mapping[str, Any],
    parameters: Mapping[str, Any],
    tags: Mapping[str, str],
    artifacts: Sequence[Path],
) -> str:
    """Log one plan: parameters, test metrics with intervals, a curve a seed, and its files. Returns the run's id."""
    from mlflow.entities import Metric, Param, RunTag
    from mlflow.utils.time import get_current_time_millis

    run = client.create_run(
        experiment_id, run_name=trained.plan, tags={**tags, "mlflow.parentRunId": parent, "plan": trained.plan}
    )
    run_id = str(run.info.run_id)
    now = get_current_time_millis()
    values = {**parameters, "plan": trained.plan, "head_parameters": trained.parameters, "seed": trained.representative}
    metrics = [Metric(name, value, now, 0) for name, value in _test_metrics(figures).items()]
    for seed, figure in trained.validation.items():
        metrics.append(Metric(f"val_spearman_seed_{seed}", figure, now, 0))
    for seed, curve in trained.curves.items():
        for entry in curve:
            step = int(entry["epoch"])
            metrics += [
                Metric(f"curve_{name}_seed_{seed}", entry[name], now, step) for name in ("train_loss", "val_spearman")
            ]
    client.log_batch(run_id, params=[Param(name, str(value)[:PARAM_CHARACTERS]) for name, value in values.items()])
    for start in range(0, len(metrics), 1000):  # MLflow's limit for one batch
        client.log_batch(run_id, metrics=metrics[start : start + 1000])
    client.log_batch(run_id, tags=[RunTag("trainable", ", ".join(trained.trainable))])
    for path in artifacts:
        client.log_artifact(run_id, str(path))
    client.set_terminated(run_id)
    return run_id


def _test_metrics(figures: Mapping[str, Any]) -> dict[str, float]:
    """`test_spearman`, `test_spearman_lo`, … for every estimate that is defined."""
    metrics = {}
    for name, figure in figures.items():
        if isinstance(figure, Mapping) and set(METRIC_FIGURES) <= set(figure):
            for part in METRIC_FIGURES:
                if figure[part] is not None:
                    metrics[f"test_{name}" + ("" if part == "value" else f"_{part}")] = float(figure[part])
    return metrics
