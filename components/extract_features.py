"""Step 4: extract the features, once for all plans."""

from typing import List

from kfp import dsl

from components.base import component


@component()
def extract_features(
    data: dsl.Input[dsl.Dataset],
    index: dsl.Input[dsl.Dataset],
    data_digest: str,
    code_rev: str,
    settings: dict,
    feature_store: str,
    shares: dsl.Input[List[dsl.Artifact]],
    features: dsl.Output[dsl.Artifact],
) -> None:
    """Run the encoders on every clip whose features are missing in the store."""
    from pathlib import Path

    from audioscore.config import parse_config
    from audioscore.encoders.extract import extract_folder

    config = parse_config(settings)
    extract_folder(
        Path(data.path), Path(index.path), Path(features.path), feature_store, config.encoders, config.training
    )
