"""Step 7: choose the winner, compare it with the champion, register it, write the report."""

from typing import List

from kfp import dsl

from components.base import component


@component()
def register_winner(
    data: dsl.Input[dsl.Dataset],
    validated: dsl.Input[dsl.Dataset],
    index: dsl.Input[dsl.Dataset],
    features: dsl.Input[dsl.Artifact],
    models: dsl.Input[List[dsl.Model]],
    evaluation: dsl.Input[dsl.Artifact],
    data_digest: str,
    data_revision: str,
    code_rev: str,
    run_id: str,
    settings: dict,
    tracking_uri: str,
    artifact_root: str,
    outcome: dsl.Output[dsl.Artifact],
    report: dsl.Output[dsl.HTML],
) -> None:
    """Register the winner, as champion if the gate promotes it, else as challenger."""
    import shutil
    from pathlib import Path

    from audioscore.config import parse_config
    from audioscore.data.versions.revision import image_revision
    from audioscore.tracking.decide import RunFolders
    from audioscore.tracking.provenance import Provenance
    from audioscore.tracking.register import register_winner
    from audioscore.tracking.run_page import REPORT

    folders = RunFolders(
        data=Path(data.path),
        validated=Path(validated.path),
        index=Path(index.path),
        features=Path(features.path),
        plans=tuple(Path(model.path) for model in models),
        evaluation=Path(evaluation.path),
    )
    provenance = Provenance(run_id, data_digest, data_revision or None, image_revision() or code_rev)
    register_winner(folders, Path(outcome.path), parse_config(settings), provenance, tracking_uri, Path(artifact_root))
    shutil.copyfile(Path(outcome.path) / REPORT, report.path)
