"""Step 3: one list, high to low, and singer-disjoint splits."""

from kfp import dsl

from components.base import component


@component()
def sort_data(
    data: dsl.Input[dsl.Dataset],
    validated: dsl.Input[dsl.Dataset],
    data_digest: str,
    code_rev: str,
    settings: dict,
    index: dsl.Output[dsl.Dataset],
) -> None:
    """Sort the accepted clips and assign them to train, val and test."""
    from pathlib import Path

    from audioscore.config import parse_config
    from audioscore.data.sort import sort_folder

    sort_folder(Path(data.path), Path(validated.path), Path(index.path), parse_config(settings).split)
    index.metadata["data_digest"] = data_digest
