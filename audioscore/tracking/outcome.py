"""What a run came to, kept with the run: how whoever started it elsewhere gets its result and its page."""

from pathlib import Path
from typing import Any

from audioscore.errors import ModelError
from audioscore.files import read_json
from audioscore.tracking.connection import connect
from audioscore.tracking.run_page import RESULT


def fetch_outcome(tracking_uri: str, run_id: str, target: Path) -> dict[str, Any]:
    """Put result.json and the pages of a run beside each other under `target`; returns the result.

    `run_id` is that of the pipeline's run. Raises ModelError where the server has no result of it.
    """
    import mlflow

    client = connect(tracking_uri)
    experiments = [found.experiment_id for found in client.search_experiments()]
    for run in client.search_runs(experiments, f"tags.run_id = '{run_id}'"):
        names = [found.path for found in client.list_artifacts(run.info.run_id)]
        if RESULT not in names:
            continue
        target.mkdir(parents=True, exist_ok=True)
        for name in names:
            if name == RESULT or name.endswith((".html", ".md")):
                mlflow.artifacts.download_artifacts(
                    run_id=run.info.run_id, artifact_path=name, dst_path=str(target), tracking_uri=tracking_uri
                )
        result: dict[str, Any] = read_json(target / RESULT)
        return result
    raise ModelError(f"{tracking_uri} has no result of run {run_id}. Did its last step end well?")
