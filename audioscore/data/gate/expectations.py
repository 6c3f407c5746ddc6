"""What is expected of a labels table, as a Great Expectations suite that runs in memory and calls nobody.

Great Expectations' own pages load scripts from elsewhere, so its results come out here as plain dictionaries.
"""

import functools
import logging
import os
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

from audioscore.data.gate.rejections import ValidationSettings
from audioscore.data.gate.table_suite import BAND, SINGER_CLIPS, Expectation, bands_of, build_suite

if TYPE_CHECKING:
    import pandas as pd

MAX_EXAMPLES = 5
POSITION = "position"  # of a row in the frame; row numbers of a table need not be unique


class ExpectationResult(TypedDict):
    """One expectation and how the table met it, ready for JSON.

    `severity` is what a failure would mean: "error" or "warning". `observed` is the measured count for expectations
    about the table, None for those about cells, which have `unexpected_count` instead; at most five `examples`.
    """

    expectation: str
    column: str | None
    meaning: str
    success: bool
    severity: str
    observed: Any
    unexpected_count: int
    examples: list[str]


@dataclass(frozen=True)
class TableCheck:
    """Results in the order of the suite, and for each row (by its position in the frame) why it cannot be used."""

    results: list[ExpectationResult]
    row_faults: dict[int, list[str]]

    @property
    def table_faults(self) -> list[ExpectationResult]:
        """Failures that no rejected row mends: a missing column, too few clips."""
        return [
            result
            for result in self.results
            if not result["success"] and result["severity"] == "error" and not result["unexpected_count"]
        ]


def check_table(
    frame: "pd.DataFrame",
    settings: ValidationSettings | None = None,
    *,
    last_scores: Mapping[str, Sequence[float]] | None = None,
    unscored: int = 0,
) -> TableCheck:
    """Hold a labels table against what is expected of it.

    `frame` has a row a clip: audio_file, score, and where known source, singer_id, row (its number in the table) and
    fault (why the row was already set aside; such rows are counted once, as faults, and looked at no further).
    `last_scores` are those of the last accepted version by source ("" for clips that name none); without them nothing
    is said of a shift. `unscored` clips outside the table count towards `min_clips`.
    """
    settings = settings or ValidationSettings()
    frame = _derived(frame.reset_index(drop=True))
    suite = build_suite(frame, settings, last_scores or {}, unscored)
    row_faults: dict[int, list[str]] = defaultdict(list)
    results: list[ExpectationResult] = []
    for line, outcome in zip(suite, _run(frame, suite), strict=True):
        positions = [int(entry[POSITION]) for entry in outcome.result.get("unexpected_index_list") or []]
        results.append(_result(frame, line, outcome, positions))
        if line.fault and line.severity == "error":
            for position in positions:
                row_faults[position].append(line.fault.format(_shown(frame, line.column, position)))
    return TableCheck(results, dict(row_faults))


def _derived(frame: "pd.DataFrame") -> "pd.DataFrame":
    """The frame with its rows' positions, numeric scores, and the columns that counts are taken of."""
    import pandas as pd

    frame[POSITION] = range(len(frame))
    usable = frame["fault"].isna() if "fault" in frame else pd.Series(True, index=frame.index)
    if "audio_file" in frame:
        frame["audio_file"] = frame["audio_file"].astype(object)  # a column of type str hides what its cells were
    if "score" in frame:
        frame["score"] = pd.to_numeric(frame["score"], errors="coerce").astype(float)
        bands = pd.Series(bands_of(frame["score"]), index=frame.index, dtype=object)
        frame[BAND] = bands.where(usable, None)
    if "singer_id" in frame:
        singers = frame["singer_id"].where(usable)
        frame[SINGER_CLIPS] = singers.map(singers.value_counts()).astype(float)
    return frame


def _run(frame: "pd.DataFrame", suite: Sequence[Expectation]) -> list[Any]:
    """Great Expectations' outcome of each line, in the suite's order (it returns them in its own)."""
    gx, table = _set_up()
    rows = gx.ExpectationSuite(
        "labels",
        expectations=[
            getattr(gx.expectations, line.kind)(
                **({"column": line.column} if line.column and "Table" not in line.kind else {}),
                **line.arguments,
                **_condition(line, "fault" in frame),
                severity="critical" if line.severity == "error" else "warning",
                meta={"order": order},
            )
            for order, line in enumerate(suite)
        ],
    )
    batch = table.get_batch(batch_parameters={"dataframe": frame})
    complete = {"result_format": "COMPLETE", "unexpected_index_column_names": [POSITION]}
    outcome = batch.validate(rows, result_format=complete)
    return sorted(outcome.results, key=lambda result: result.expectation_config.meta["order"])


@functools.cache
def _set_up() -> tuple[Any, Any]:
    """Great Expectations, imported, and its idea of a table that is handed over as a frame."""
    # Read when the package is first imported: no usage statistics leave the machine.
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    with warnings.catch_warnings():
        # At import it uses modules that Python has deprecated; its users can do nothing about that.
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        import great_expectations as gx
        import great_expectations.expectations
        from great_expectations.data_context.types.base import ProgressBarsConfig

    logging.getLogger("great_expectations.data_context.types.base").setLevel(
        logging.WARNING
    )  # it announces its temporary folders
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    asset = context.data_sources.add_pandas("labels").add_dataframe_asset("labels")
    return gx, asset.add_batch_definition_whole_dataframe("labels")


def _condition(line: Expectation, has_faults: bool) -> dict[str, Any]:
    """Rows already set aside are looked at by the expectation about `fault` alone."""
    from great_expectations.expectations.row_conditions import Column

    if line.kind == "ExpectColumnToExist" or line.column == "fault":
        return {}
    conditions: list[Any] = [Column("fault").is_null()] if has_faults else []
    if line.where:
        column, value = line.where
        conditions.append(Column(column).is_null() if value is None else Column(column) == value)
    if not conditions:
        return {}
    return {"row_condition": conditions[0] if len(conditions) == 1 else conditions[0] & conditions[1]}


def _result(frame: "pd.DataFrame", line: Expectation, outcome: Any, positions: list[int]) -> ExpectationResult:
    errors = [part for part in outcome.exception_info.values() if isinstance(part, dict)]
    observed = errors[0]["exception_message"] if errors else _plain(outcome.result.get("observed_value"))
    cells = [_example(frame, line.column, position) for position in positions[:MAX_EXAMPLES]]
    return {
        "expectation": outcome.expectation_config.type,
        "column": line.column,
        "meaning": line.meaning,
        "success": bool(outcome.success),
        "severity": line.severity,
        "observed": observed + line.added if line.added and isinstance(observed, int) else observed,
        "unexpected_count": len(positions),
        "examples": cells or list(line.examples[:MAX_EXAMPLES]),
    }


def _example(frame: "pd.DataFrame", column: str | None, position: int) -> str:
    row = frame.iloc[position]
    number = row["row"] if "row" in frame and row["row"] == row["row"] else position + 1
    named = f" ({row['audio_file']})" if "audio_file" in frame and isinstance(row["audio_file"], str) else ""
    return f"row {number:g}{named}: {_shown(frame, column, position)}"


def _shown(frame: "pd.DataFrame", column: str | None, position: int) -> str:
    value = _plain(frame[column].iloc[position]) if column else None
    if value is None or value != value:
        return "empty"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _plain(value: Any) -> Any:
    """A numpy scalar as Python's own, which JSON takes."""
    return value.item() if hasattr(value, "item") else value
