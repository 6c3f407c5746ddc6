"""Step 3: sort the clips from high to low and split them by singer."""

from kfp import dsl

from components.base import component


@component()
def sort_data(
    data: dsl.Input[dsl.Dataset],
    validated: dsl.Input[dsl.Dataset],
    data_digest: str,
    code_rev: str,
    settings: dict,
    feature_store: str,
    index: dsl.Output[dsl.Dataset],
) -> None:
    """Sort the accepted clips and assign them to the train, validation and test splits."""
    from pathlib import Path

    from audioscore.config import parse_config
    from audioscore.data.split.sort import sort_folder
    from audioscore.encoders.extract import voice_embedder

    config = parse_config(settings)
    embed = voice_embedder(config.encoders.campplus, Path(data.path), feature_store)
    sort_folder(Path(data.path), Path(validated.path), Path(index.path), config.split, embed)
    index.metadata["data_digest"] = data_digest
