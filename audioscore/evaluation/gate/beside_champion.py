"""The candidates and the champion on the clips that none of them has seen: every figure, and every difference."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from audioscore.errors import DataError
from audioscore.evaluation.evaluate import evaluate
from audioscore.evaluation.predictions import Prediction

if TYPE_CHECKING:
    from audioscore.config import EvaluationSection

CHAMPION = "champion"


def beside_champion(
    predictions: Sequence[Prediction],
    representative: Mapping[str, int],
    champion: Sequence[Prediction],
    settings: "EvaluationSection",
) -> dict[str, Any]:
    """The document of `evaluate` for the plans' representatives and the champion, with the champion as reference.

    `champion` are its rows, made now, on those test clips of `predictions` that neither it nor a plan was trained on;
    the rest of the test clips is left out and counted as `dropped`. Raises DataError where a row is of another clip, or
    there is none.
    """
    chosen = [row for row in predictions if row.split == "test" and representative.get(row.plan) == row.seed]
    judged, known = {row.clip for row in champion}, {row.clip for row in chosen}
    if not judged:
        raise DataError(
            f"None of {len(known)} test clips is new to the champion and the plans. Add clips, or leave it out."
        )
    if strangers := judged - known:
        raise DataError(f"{len(strangers)} of the champion's {len(judged)} clips are no test clips. Predict those.")
    rows = [row for row in chosen if row.clip in judged]
    rows += [replace(row, plan=CHAMPION, seed=0, split="test") for row in champion]
    found = evaluate(
        rows,
        {},
        {**representative, CHAMPION: 0},
        reference=CHAMPION,
        resamples=settings.resamples,
        confidence=settings.confidence,
        seed=settings.seed,
    )
    return {**found, "dropped": len(known) - len(judged)}
