"""The registered model's code, which MLflow runs when it loads a version.

Input: a table with a column `audio` of file bytes. Output: a row for each with score, lo, hi, raw, seconds, error and
notes (one text; empty for most recordings).
"""

from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

from audioscore.scoring.checkpoint import load_scorer

COLUMNS = ["score", "lo", "hi", "raw", "seconds", "error", "notes"]


class ScorerModel(PythonModel):  # type: ignore[misc]  # its base class is not typed
    """A scorer with MLflow's interface. A recording that cannot be scored gets an error and no score."""

    def load_context(self, context: Any) -> None:
        self.scorer = load_scorer(Path(context.artifacts["scorer"]), needs_voice=True)

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Shape: N rows with a column `audio` -> N rows."""
        scored = self.scorer.score_many([bytes(audio) for audio in model_input["audio"]])
        rows = [
            [row.score, *(row.interval or (None, None)), row.raw, row.seconds, row.error, " ".join(row.notes)]
            for row in scored
        ]
        # Numeric columns would turn None into NaN, which JSON does not have.
        return pd.DataFrame(rows, columns=COLUMNS, dtype=object)


mlflow.tracing.disable()  # traces must not contain audio
set_model(ScorerModel())
