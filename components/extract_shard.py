"""Step 4a: a share of what the encoders hear, for pods side by side that have one feature store."""

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
    """Run MuQ and CAM++ on those of a share's clips whose features the store lacks.

    Where nobody shares, all is left to extract_features, which tells of it. `share` is for that step to wait for.
    """
    from pathlib import Path

    from audioscore.config import parse_config
    from audioscore.encoders.extract import extract_share

    config = parse_config(settings)
    extract_share(shard, Path(data.path), Path(index.path), feature_store, config.encoders, config.training)
    Path(share.path).write_text(shard, encoding="utf-8")
