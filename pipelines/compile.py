"""Compile the pipeline: `python -m pipelines.compile [FILE]`."""

import sys
from pathlib import Path

from kfp import compiler

from pipelines.platform import LOCAL, Platform
from pipelines.scorer_pipeline import build

GOLDEN = Path(__file__).with_name("scorer_pipeline.yaml")  # kept under version control, recompiled by a test


def compile_pipeline(target: Path, platform: Platform = LOCAL) -> None:
    """Write the pipeline's intermediate representation, for any KFP 2 backend."""
    compiler.Compiler().compile(build(platform), str(target))


if __name__ == "__main__":
    compile_pipeline(Path(sys.argv[1]) if len(sys.argv) > 1 else GOLDEN)
