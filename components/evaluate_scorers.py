"""Step 6: every plan on the same held-out clips."""

from typing import List

from kfp import dsl

from components.base import component


@component()
def evaluate_scorers(
    models: dsl.Input[List[dsl.Model]],
    index: dsl.Input[dsl.Dataset],
    features: dsl.Input[dsl.Artifact],
    data_digest: str,
    code_rev: str,
    settings: dict,
    evaluation: dsl.Output[dsl.Artifact],
) -> None:
    """Predict every clip with every scorer, and compute every figure with its interval."""
    from pathlib import Path

    from audioscore.config import parse_config
    from audioscore.evaluation.predict import evaluate_plans

    folders = [Path(model.path) for model in models]
    section = parse_config(settings).evaluation
    evaluate_plans(folders, Path(index.path), Path(features.path), Path(evaluation.path), section)
