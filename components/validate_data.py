"""Step 2: the data gate."""

from kfp import dsl

from components.base import component


@component()
def validate_data(
    data: dsl.Input[dsl.Dataset],
    data_digest: str,
    code_rev: str,
    settings: dict,
    validated: dsl.Output[dsl.Dataset],
    report: dsl.Output[dsl.HTML],
) -> None:
    """Check the labels table and every recording; fail if the gate refuses the data."""
    from pathlib import Path

    from audioscore.config import parse_config
    from audioscore.data.gate.output import run_gate

    run_gate(Path(data.path), Path(validated.path), Path(report.path), parse_config(settings))
