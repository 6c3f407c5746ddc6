"""Step 6: evaluate every plan on the same held-out clips, original and degraded."""

from typing import List

from kfp import dsl

from components.base import component


@component()
def evaluate_scorers(
    data: dsl.Input[dsl.Dataset],
    models: dsl.Input[List[dsl.Model]],
    index: dsl.Input[dsl.Dataset],
    features: dsl.Input[dsl.Artifact],
    data_digest: str,
    code_rev: str,
    settings: dict,
    evaluation: dsl.Output[dsl.Artifact],
) -> None:
    """Predict every clip with every scorer, compute metrics with intervals, and run the robustness tests."""
    from pathlib import Path

    from audioscore.config import parse_config
    from audioscore.evaluation.predict import evaluate_plans
    from audioscore.evaluation.robustness.run import run_robustness_tests

    folders, target = [Path(model.path) for model in models], Path(evaluation.path)
    section = parse_config(settings).evaluation
    evaluate_plans(folders, Path(index.path), Path(features.path), target, section)
    run_robustness_tests(folders, Path(index.path), Path(features.path), Path(data.path), target, section)
