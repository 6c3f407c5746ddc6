"""Compile the pipeline: `audioscore compile`, and `python -m pipelines.compile` for the golden file."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kfp import compiler

from audioscore.config import SMALL, load_config
from audioscore.data.versions.revision import code_revision
from audioscore.errors import AudioscoreError, UsageError, describe_os_error
from audioscore.files import atomic_path
from pipelines.platform import LOCAL, Platform, on_cluster
from pipelines.request import REPOSITORY, CompileRequest, cluster_parameters
from pipelines.scorer_pipeline import NAME, build

GOLDEN = Path(__file__).with_name("scorer_pipeline.yaml")  # under version control; a test compares it


def compile_pipeline(
    target: Path,
    platform: Platform = LOCAL,
    *,
    parameters: Mapping[str, Any] | None = None,
    manifests: bool = False,
) -> None:
    """Write the pipeline's intermediate representation, which any KFP 2 backend reads; atomically.

    Args:
        parameters: default values of the pipeline's parameters.
        manifests: write the Kubernetes resources Pipeline and PipelineVersion in the cluster section's namespace, for
            a KFP that stores its pipelines in Kubernetes.
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


def main(request: CompileRequest) -> int:
    """Compile for a configuration's cluster, or without a configuration for this machine; returns the exit code."""
    try:
        _compile(request)
    except AudioscoreError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except OSError as error:
        sys.stderr.write(f"error: {describe_os_error(error)}\n")
        return AudioscoreError.exit_code
    return 0


def _compile(request: CompileRequest) -> None:
    out = Path(request.out)
    if out.suffix not in (".yaml", ".yml"):
        raise UsageError(f"--out {out}: the name of a KFP pipeline file ends in .yaml. Rename it.")
    if not (request.config or request.overrides or request.kubernetes):
        compile_pipeline(out)
        return
    config = load_config(Path(request.config) if request.config else SMALL, request.overrides)
    if config.cluster.image is None:
        raise UsageError("cluster.image: missing, but cluster pipelines need it. Set the image of the pods, by digest.")
    # Defaults for all parameters but run_id, so that a run can be started from KFP's own pages.
    values = cluster_parameters(config, "", code_revision(REPOSITORY))
    defaults = {name: value for name, value in values.items() if value is not None and name != "run_id"}
    compile_pipeline(out, on_cluster(config.cluster), parameters=defaults, manifests=request.kubernetes)


if __name__ == "__main__":
    if sys.argv[1:]:
        sys.exit("python -m pipelines.compile writes the golden file and has no options. Use `audioscore compile`.")
    compile_pipeline(GOLDEN)
