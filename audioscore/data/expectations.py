"""What is expected of a labels table, as a Great Expectations suite that runs in memory and calls nobody.

Great Expectations' own pages load scripts from elsewhere, so its results come out here as plain dictionaries.
"""

import logging
import os
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypedDict

from audioscore.units import SCORE_MAX, SCORE_MIN

if TYPE_CHECKING:
    import pandas as pd

MAX_EXAMPLES = 5
POSITION = "position"  # of a row in the frame; row numbers of a table need not be unique


class ExpectationResult(TypedDict):
    """One expectation and how the table met it, ready for JSON.

    `severity` is what a failure would mean: "error" or "warning". `observed` is the measured count for expectations
    about the table, None for those about cells, which have `unexpected_count` and at most five `examples` instead.
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


@dataclass(frozen=True)
class Expectation:
    """One line of the suite, in plain values, so that Great Expectations is imported only to run it.

    `kind` is the class's name. `fault` says of a cell, in the braces' place, why its row is rejected.
    """

    kind: str
    column: str | None
    meaning: str
    arguments: dict[str, Any] = field(default_factory=dict)
    severity: str = "error"
    fault: str = ""
    where: tuple[str, str | None] | None = None  # only rows whose column has this value (None: is empty)


def check_table(
    frame: "pd.DataFrame",
    *,
    sources: Sequence[str] = (),
    min_clips: int = 1,
    min_per_source: int = 0,
    min_singers: int = 0,
    usual_scores: tuple[float, float] = (50.0, 99.0),
) -> TableCheck:
    """Hold a labels table against what is expected of it.

    `frame` has a row a clip: audio_file, score, and where known source, singer_id, row (its number in the table) and
    fault (why the row was already set aside; such rows are counted once, as faults, and looked at no further).
    `sources` are the recording domains allowed; empty allows any, and none.
    """
    import pandas as pd

    frame = frame.reset_index(drop=True)
    frame[POSITION] = range(len(frame))
    if "score" in frame:
        frame["score"] = pd.to_numeric(frame["score"], errors="coerce").astype(float)
    suite = [
        *_about_columns(bool(sources), min_per_source, min_singers),
        *_about_cells(sources, usual_scores),
        *_about_counts(frame, sources, min_clips, min_per_source, min_singers),
    ]
    present = [line for line in suite if line.kind == "ExpectColumnToExist" or line.column in {None, *frame.columns}]
    row_faults: dict[int, list[str]] = defaultdict(list)
    results: list[ExpectationResult] = []
    for line, outcome in zip(present, _run(frame, present), strict=True):
        positions = [int(entry[POSITION]) for entry in outcome.result.get("unexpected_index_list") or []]
        results.append(_result(frame, line, outcome, positions))
        if line.fault and line.severity == "error":
            for position in positions:
                row_faults[position].append(line.fault.format(_shown(frame, line.column, position)))
    return TableCheck(results, dict(row_faults))


def _about_columns(sources: bool, min_per_source: int, min_singers: int) -> list[Expectation]:
    needs = {
        "audio_file": ("a column with the recordings", True),
        "score": ("a column with the scores", True),
        "source": ("recording domains, for the within-source figures", sources or min_per_source),
        "singer_id": ("singers, or each clip counts as a singer of its own", min_singers),
    }
    return [
        Expectation("ExpectColumnToExist", column, meaning, severity="error" if needed else "warning")
        for column, (meaning, needed) in needs.items()
    ]


def _about_cells(sources: Sequence[str], usual_scores: tuple[float, float]) -> list[Expectation]:
    low, high = usual_scores
    allowed = ", ".join(sources)
    escaped = allowed.replace("{", "{{").replace("}", "}}")  # a fault is a format string
    null, between = "ExpectColumnValuesToNotBeNull", "ExpectColumnValuesToBeBetween"
    whole = {"min_value": SCORE_MIN, "max_value": SCORE_MAX}
    usual = {"min_value": low, "max_value": high}
    scale = f"{SCORE_MIN:g}-{SCORE_MAX:g}"
    lines = [
        Expectation("ExpectColumnValuesToBeNull", "fault", "every row can be used"),
        Expectation(null, "audio_file", "every row names a recording", fault="no file name"),
        Expectation(
            "ExpectColumnValuesToBeUnique",
            "audio_file",
            "no recording is named twice",
            fault="{} is named by other rows too",
        ),
        Expectation(null, "score", "every row has a score that is a number", fault="no score"),
        Expectation(between, "score", f"scores are on the {scale} scale", whole, fault="score {} is outside " + scale),
        Expectation(between, "score", f"scores lie within the usual {low:g}-{high:g}", usual, severity="warning"),
        Expectation(null, "singer_id", "every clip names its singer", severity="warning"),
    ]
    if not sources:
        return [*lines, Expectation(null, "source", "every clip names its recording domain", severity="warning")]
    return [
        *lines,
        Expectation(
            null, "source", "every clip names its recording domain", fault=f"no source; it must be one of {escaped}"
        ),
        Expectation(
            "ExpectColumnValuesToBeInSet",
            "source",
            f"every source is one of {allowed}",
            {"value_set": list(sources)},
            fault="source {} is not one of " + escaped,
        ),
    ]


def _about_counts(
    frame: "pd.DataFrame", sources: Sequence[str], min_clips: int, min_per_source: int, min_singers: int
) -> list[Expectation]:
    rows, distinct = "ExpectTableRowCountToBeBetween", "ExpectColumnUniqueValueCountToBeBetween"
    lines = [Expectation(rows, None, f"at least {min_clips} usable clips", {"min_value": min_clips})]
    if min_per_source and "source" in frame:
        found = sorted(set(frame["source"].dropna()))
        lines += [
            Expectation(
                rows,
                "source",
                f"at least {min_per_source} usable clips of {source}",
                {"min_value": min_per_source},
                where=("source", source),
            )
            for source in sources or found
        ]
    if min_singers:
        lines.append(Expectation(distinct, "singer_id", f"at least {min_singers} singers", {"min_value": min_singers}))
    return lines


def _run(frame: "pd.DataFrame", suite: Sequence[Expectation]) -> list[Any]:
    """Great Expectations' outcome of each line, in the suite's order (it returns them in its own)."""
    # Read when the package is first imported: no usage statistics leave the machine.
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    with warnings.catch_warnings():
        # At import it uses modules that Python has deprecated; its users can do nothing about that.
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        import great_expectations as gx
        from great_expectations import expectations as gxe
        from great_expectations.data_context.types.base import ProgressBarsConfig

    logging.getLogger("great_expectations.data_context.types.base").setLevel(
        logging.WARNING
    )  # it announces its temporary folders
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    asset = context.data_sources.add_pandas("labels").add_dataframe_asset("labels")
    batch = asset.add_batch_definition_whole_dataframe("labels")
    rows = gx.ExpectationSuite(
        "labels",
        expectations=[
            getattr(gxe, line.kind)(
                **({"column": line.column} if line.column and "Table" not in line.kind else {}),
                **line.arguments,
                **_condition(line, "fault" in frame),
                severity="critical" if line.severity == "error" else "warning",
                meta={"order": order},
            )
            for order, line in enumerate(suite)
        ],
    )
    definition = gx.ValidationDefinition(name="labels", data=batch, suite=context.suites.add(rows))
    outcome = context.validation_definitions.add(definition).run(
        batch_parameters={"dataframe": frame},
        result_format={"result_format": "COMPLETE", "unexpected_index_column_names": [POSITION]},
    )
    return sorted(outcome.results, key=lambda result: result.expectation_config.meta["order"])


def _condition(line: Expectation, has_faults: bool) -> dict[str, Any]:
    """Rows already set aside are looked at by the expectation about `fault` alone."""
    from great_expectations.expectations.row_conditions import Column

    if line.kind == "ExpectColumnToExist" or line.column == "fault":
        return {}
    conditions: list[Any] = [Column("fault").is_null()] if has_faults else []
    if line.where:
        conditions.append(Column(line.where[0]) == line.where[1])
    if not conditions:
        return {}
    return {"row_condition": conditions[0] if len(conditions) == 1 else conditions[0] & conditions[1]}


def _result(frame: "pd.DataFrame", line: Expectation, outcome: Any, positions: list[int]) -> ExpectationResult:
    errors = [part for part in outcome.exception_info.values() if isinstance(part, dict)]
    return {
        "expectation": outcome.expectation_config.type,
        "column": line.column,
        "meaning": line.meaning,
        "success": bool(outcome.success),
        "severity": line.severity,
        "observed": errors[0]["exception_message"] if errors else _plain(outcome.result.get("observed_value")),
        "unexpected_count": len(positions),
        "examples": [_example(frame, line.column, position) for position in positions[:MAX_EXAMPLES]],
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
