"""Step 5: train one plan with every seed."""

from kfp import dsl

from components.base import component


@component()
def train_scorer(
    plan: str,
    index: dsl.Input[dsl.Dataset],
    features: dsl.Input[dsl.Artifact],
    data_digest: str,
    code_rev: str,
    settings: dict,
    model: dsl.Output[dsl.Model],
) -> None:
    """Train, calibrate and save the scorers of one plan."""
    from pathlib import Path

    from audioscore.config import parse_config
    from audioscore.data.versions.revision import image_revision
    from audioscore.scoring.scorer import plan_by_name
    from audioscore.training.launch import launch_plan

    trained = launch_plan(
        plan_by_name(plan),
        Path(index.path),
        Path(features.path),
        Path(model.path),
        parse_config(settings),
        data_digest=index.metadata["data_digest"],  # in a loop, the local runner passes a wrong data_digest
        code_revision=image_revision() or code_rev,
        resume=True,  # a retried step continues from its checkpoint
    )
    model.metadata.update(plan=plan, seed=trained.representative, parameters=trained.chosen.parameters)
