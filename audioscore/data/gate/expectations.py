"""Run the expectations on a labels table with Great Expectations, in memory and without network access.

The results are plain dictionaries, since the HTML pages of Great Expectations load scripts from the network.
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
POSITION = "position"  # of a row in the frame; the row numbers of a table need not be unique


class ExpectationResult(TypedDict):
    """One expectation and its result, ready for JSON.

    `severity` is that of a failure: "error" or "warning". `observed` is the measured value of an expectation about the
    table; an expectation about cells has None, and `unexpected_count` instead. There are at most five `examples`.
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
    """Results in the order of the suite, and the errors of each row, by its position in the frame."""

    results: list[ExpectationResult]
    row_errors: dict[int, list[str]]

    @property
    def table_errors(self) -> list[ExpectationResult]:
        """Failures that rejecting rows does not solve: a missing column, too few clips."""
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
    """Check a labels table against the expectations of `build_suite`.

    Args:
        frame: One row per clip: audio_file, score, and optionally source, singer_id, row (its name in messages) and
            fault (why the row is already rejected; such a row is counted once, and not checked further).
        last_scores: Scores of the last accepted version by source ("" for clips without one), for the comparison of
            distributions.
        unscored: Clips outside the table, which count towards `min_clips`.
    """
    settings = settings or ValidationSettings()
    frame = _derived(frame.reset_index(drop=True))
    suite = build_suite(frame, settings, last_scores or {}, unscored)
    row_errors: dict[int, list[str]] = defaultdict(list)
    results: list[ExpectationResult] = []
    for line, outcome in zip(suite, _run(frame, suite), strict=True):
        positions = [int(entry[POSITION]) for entry in outcome.result.get("unexpected_index_list") or []]
        results.append(_result(frame, line, outcome, positions))
        if line.row_error and line.severity == "error":
            for position in positions:
                row_errors[position].append(line.row_error.format(_shown(frame, line.column, position)))
    return TableCheck(results, dict(row_errors))


def _derived(frame: "pd.DataFrame") -> "pd.DataFrame":
    """Add the positions of the rows, numeric scores, and the columns for the counts."""
    import pandas as pd

    frame[POSITION] = range(len(frame))
    usable = frame["fault"].isna() if "fault" in frame else pd.Series(True, index=frame.index)
    if "audio_file" in frame:
        frame["audio_file"] = frame["audio_file"].astype(object)  # a column of type str hides the original cell types
    if "score" in frame:
        frame["score"] = pd.to_numeric(frame["score"], errors="coerce").astype(float)
        bands = pd.Series(bands_of(frame["score"]), index=frame.index, dtype=object)
        frame[BAND] = bands.where(usable, None)
    if "singer_id" in frame:
        singers = frame["singer_id"].where(usable)
        frame[SINGER_CLIPS] = singers.map(singers.value_counts()).astype(float)
    return frame


def _run(frame: "pd.DataFrame", suite: Sequence[Expectation]) -> list[Any]:
    """The outcome of each line; Great Expectations returns them in another order."""
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
    """The imported package, and its definition of a batch that is a frame."""
    # Read when the package is first imported; disables usage statistics.
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    with warnings.catch_warnings():
        # The package itself imports deprecated modules.
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        import great_expectations as gx
        import great_expectations.expectations
        from great_expectations.data_context.types.base import ProgressBarsConfig

    logging.getLogger("great_expectations.data_context.types.base").setLevel(
        logging.WARNING
    )  # it logs its temporary folders
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    asset = context.data_sources.add_pandas("labels").add_dataframe_asset("labels")
    return gx, asset.add_batch_definition_whole_dataframe("labels")


def _condition(line: Expectation, has_rejected: bool) -> dict[str, Any]:
    """The row condition: rows that are already rejected are checked only by the expectation about `fault`."""
    from great_expectations.expectations.row_conditions import Column

    if line.kind == "ExpectColumnToExist" or line.column == "fault":
        return {}
    conditions: list[Any] = [Column("fault").is_null()] if has_rejected else []
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
    where = row["row"] if "row" in frame else f"row {position + 1}"
    name = f" ({row['audio_file']})" if "audio_file" in frame and isinstance(row["audio_file"], str) else ""
    return f"{where}{name}: {_shown(frame, column, position)}"


def _shown(frame: "pd.DataFrame", column: str | None, position: int) -> str:
    value = _plain(frame[column].iloc[position]) if column else None
    if value is None or value != value:
        return "empty"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _plain(value: Any) -> Any:
    """A numpy scalar as a Python value, for JSON."""
    return value.item() if hasattr(value, "item") else value
