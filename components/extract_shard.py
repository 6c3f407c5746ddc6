"""Step 4a: extract the features of one share of the clips, for parallel pods with a common feature store."""

from kfp import dsl

from components.base import component


@component()
def extract_shard(
    shard: str,
    data: dsl.Input[dsl.Dataset],
    index: dsl.Input[dsl.Dataset],
    data_digest: str,
    code_rev: str,
    settings: dict,
    feature_store: str,
    share: dsl.Output[dsl.Artifact],
) -> None:
    """Run the encoders on the share's clips whose features are missing in the store.

    With a single share this does nothing: extract_features extracts all clips and reports its progress. The output
    `share` makes extract_features wait for this step.
    """
    from pathlib import Path

    from audioscore.config import parse_config
    from audioscore.encoders.extract import extract_share

    config = parse_config(settings)
    extract_share(shard, Path(data.path), Path(index.path), feature_store, config.encoders, config.training)
    Path(share.path).write_text(shard, encoding="utf-8")
