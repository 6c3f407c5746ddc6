"""Compile the pipeline: `audioscore compile`, and `python -m pipelines.compile` for the copy under version control."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kfp import compiler

from audioscore.config import SMALL, Config, load_config
from audioscore.data.versions.revision import code_revision
from audioscore.errors import AudioscoreError, UsageError, describe_os_error
from audioscore.files import atomic_path
from pipelines.platform import LOCAL, Platform, on_cluster
from pipelines.scorer_pipeline import NAME, build

GOLDEN = Path(__file__).with_name("scorer_pipeline.yaml")  # kept under version control, recompiled by a test


def compile_pipeline(
    target: Path,
    platform: Platform = LOCAL,
    *,
    parameters: Mapping[str, Any] | None = None,
    manifests: bool = False,
) -> None:
    """Write the pipeline's intermediate representation, for any KFP 2 backend, whole or not at all.

    `parameters` become the defaults of the pipeline's. With `manifests`, as the resources Pipeline and
    PipelineVersion of a KFP that keeps its pipelines in Kubernetes, in the cluster section's namespace.
    """
    section = platform.cluster
    options = None
    if manifests:
        from kfp.compiler.compiler_utils import KubernetesManifestOptions

        options = KubernetesManifestOptions(
            pipeline_name=NAME,
            pipeline_version_name=f"{NAME}-1",
            namespace=section.namespace if section else None,
            include_pipeline_manifest=True,
        )
    with atomic_path(target) as unfinished:
        compiler.Compiler().compile(
            build(platform), str(unfinished), pipeline_parameters=dict(parameters) if parameters else None,
            kubernetes_manifest_options=options, kubernetes_manifest_format=manifests,
        )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile for a configuration's cluster, or, without one, for this machine."""
    parser = argparse.ArgumentParser(prog="audioscore compile", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", type=Path)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--kubernetes", action="store_true")
    parser.add_argument("-o", "--out", type=Path, default=GOLDEN)
    options = parser.parse_args(arguments)
    try:
        if options.out.suffix not in (".yaml", ".yml"):
            raise UsageError(f"--out {options.out}: KFP takes a pipeline whose name ends in .yaml.")
        if options.config is None and not options.overrides and not options.kubernetes:
            compile_pipeline(options.out)
            return 0
        config = load_config(options.config or SMALL, options.overrides)
        if config.cluster.image is None:
            raise UsageError("a cluster needs cluster.image, by digest: what its pods run.")
        compile_pipeline(
            options.out, on_cluster(config.cluster), parameters=_defaults(config), manifests=options.kubernetes
        )
    except AudioscoreError as fault:
        sys.stderr.write(f"error: {fault}\n")
        return fault.exit_code
    except OSError as fault:
        sys.stderr.write(f"error: {describe_os_error(fault)}\n")
        return AudioscoreError.exit_code
    return 0


def _defaults(config: Config) -> dict[str, Any]:
    """What a run from KFP's own pages need not type: all but its run_id, and what the configuration leaves open."""
    from pipelines.cluster_run import cluster_arguments

    known = cluster_arguments(config, code_revision(Path(__file__).resolve().parents[1]), "")
    return {name: value for name, value in known.items() if value is not None and name != "run_id"}


if __name__ == "__main__":
    sys.exit(main())
