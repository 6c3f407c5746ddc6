"""From labels and audio to a registered scorer.

1. fetch_data       the data folder and its digest
2. validate_data    the data gate; it stops the run if the data do not pass
3. sort_data        one list, high to low; singer-disjoint splits
4. extract_shard    shares of the next step, in parallel, if several pods share it
   extract_features MuQ frames and CAM++ embeddings, once for all plans
5. train_scorer     each plan, every seed
6. evaluate_scorers every plan on the same held-out clips, original and degraded
7. register_winner  winner on validation, gate against the champion, registry, report

`code_rev` and `data_digest` are inputs of every step that depends on them, so that a cache never returns results of
other code or other data. One exception: KFP 2.17's local runner passes the loop's item to a step inside a loop instead
of any parameter that another step outputs. train_scorer therefore reads the digest from the index's metadata.
"""

from typing import List

from kfp import dsl

from audioscore.platforms import IMAGE, StepName
from components.evaluate_scorers import evaluate_scorers
from components.extract_features import extract_features
from components.extract_shard import extract_shard
from components.fetch_data import fetch_data
from components.register_winner import register_winner
from components.sort_data import sort_data
from components.train_scorer import train_scorer
from components.validate_data import validate_data
from pipelines.platform import Platform, apply_platform

NAME = "audioscore"


def build(platform: Platform) -> dsl.base_component.BaseComponent:
    """Define the pipeline for one platform."""

    @dsl.pipeline(name=NAME, description="Train, compare and register singing-voice scorers.")
    def scorer_pipeline(
        data_uri: str,
        run_id: str,
        code_rev: str,
        settings: dict,
        plans: List[str],
        shards: List[str],
        feature_store: str,
        tracking_uri: str,
        artifact_root: str,
        image: str = IMAGE,
    ) -> None:
        def configure(task: dsl.PipelineTask, step: StepName) -> None:
            task.set_container_image(image)
            apply_platform(task, step, platform)

        fetched = fetch_data(data_uri=data_uri)
        fetched.set_caching_options(False)  # the same address may hold new data
        configure(fetched, "fetch_data")
        data, digest = fetched.outputs["data"], fetched.outputs["data_digest"]
        version = {"data_digest": digest, "code_rev": code_rev, "settings": settings}

        gate = validate_data(data=data, **version)
        configure(gate, "validate_data")
        validated = gate.outputs["validated"]

        index = sort_data(data=data, validated=validated, feature_store=feature_store, **version)
        configure(index, "sort_data")

        with dsl.ParallelFor(items=shards) as shard:
            shared = extract_shard(shard=shard, data=data, index=index.output, feature_store=feature_store, **version)
            configure(shared, "extract_shard")

        features = extract_features(
            data=data, index=index.output, feature_store=feature_store, shares=dsl.Collected(shared.output), **version
        )
        configure(features, "extract_features")

        with dsl.ParallelFor(items=plans, parallelism=platform.parallel_trainings or None) as plan:
            trained = train_scorer(plan=plan, index=index.output, features=features.output, **version)
            configure(trained, "train_scorer")

        # A Collected may be used once only: the compiler rewrites it.
        evaluated = evaluate_scorers(
            data=data, models=dsl.Collected(trained.output), index=index.output, features=features.output, **version
        )
        configure(evaluated, "evaluate_scorers")

        registered = register_winner(
            data=data,
            validated=validated,
            index=index.output,
            features=features.output,
            models=dsl.Collected(trained.output),
            evaluation=evaluated.output,
            data_revision=fetched.outputs["data_revision"],
            run_id=run_id,
            tracking_uri=tracking_uri,
            artifact_root=artifact_root,
            **version,
        )
        registered.set_caching_options(False)  # it changes the registry
        configure(registered, "register_winner")

    return scorer_pipeline
