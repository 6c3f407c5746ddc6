"""Run the pipeline on a cluster: compile it, hand it to the KFP API, follow it, and fetch what came out."""

import contextlib
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from audioscore.config import Config
from audioscore.data.versions.storage import local_repository
from audioscore.errors import FAULT_EXIT_CODE, AudioscoreError, DataError, UsageError
from audioscore.home import home_of_model
from pipelines.compile import compile_pipeline
from pipelines.platform import on_cluster

if TYPE_CHECKING:
    from kfp import Client

TOKEN = "AUDIOSCORE_KFP_TOKEN"  # of whoever may not speak to the API as a pod of its cluster does
POLL_SECONDS = 15.0
MOST_UNANSWERED = 20  # looks at a run in a row
NEEDED = ("image", "feature_store", "tracking_uri")
ENDED = {"SUCCEEDED", "FAILED", "CANCELED", "SKIPPED"}


class ClusterRunFailed(AudioscoreError):
    """A run on the cluster did not end well; what its steps said is with KFP."""

    exit_code = FAULT_EXIT_CODE


def check(config: Config) -> None:
    """Raise UsageError or DataError where a configuration names what only this machine has."""
    section = config.cluster
    if missing := [f"cluster.{name}" for name in NEEDED if getattr(section, name) is None]:
        raise UsageError(
            f"a cluster needs {', '.join(missing)}: its pods share no folder and no database of this machine."
        )
    uri = str(config.data.uri)
    if local_repository(uri) or (not uri.startswith(("s3://", "git+")) and "@" not in uri):
        raise DataError(
            f"{uri}: a folder of this machine, which a cluster's pods do not see. Give s3://… or git+URL@REV."
        )
    for name in ("muq", "campplus"):
        source = getattr(config.encoders, name).source
        seen = section.volume is not None and Path(source).is_relative_to(section.volume.path)
        if Path(source).is_absolute() and not seen:
            raise UsageError(
                f"encoders.{name}.source {source} is a folder that pods do not see. "
                "Give a hub id, or a folder under cluster.volume.path."
            )


def cluster_arguments(config: Config, code_rev: str, run_id: str) -> dict[str, Any]:
    """What the pipeline is called with on a cluster."""
    from pipelines.submit import run_arguments

    section = config.cluster
    return run_arguments(config, run_id, code_rev, on_cluster=True) | {
        "feature_store": section.feature_store,
        "tracking_uri": section.tracking_uri,
        "artifact_root": section.artifact_root,
        "image": section.image,
    }


def run_on_cluster(config: Config, code_rev: str, run_id: str, console: Console, *, quiet: bool) -> dict[str, Any]:
    """Start a run, wait for it, and return the document of `run --json`, from the MLflow server.

    Interrupted here, the run goes on there. Steps that an earlier run with the same inputs finished are taken over by
    KFP's cache. Raises UsageError where the API cannot be reached, ClusterRunFailed where the run failed.
    """
    section = config.cluster
    client = _client(config)
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "pipeline.yaml"
        compile_pipeline(package, on_cluster(section))
        try:
            with contextlib.redirect_stdout(sys.stderr):  # where KFP's client prints its links
                started = client.create_run_from_pipeline_package(
                    str(package), arguments=cluster_arguments(config, code_rev, run_id), run_name=run_id,
                    experiment_name=section.experiment, namespace=section.namespace, enable_caching=True,
                    pipeline_root=section.pipeline_root, service_account=section.service_account,
                )  # fmt: skip
        except Exception as fault:  # of KFP's client, of urllib3 and of Kubernetes: none has a class for all
            raise UsageError(f"the KFP API did not take the run: {_first_line(fault)}") from fault
    console.print(f"run {run_id} is KFP's {started.run_id}; interrupting this leaves it running", highlight=False)
    state = _follow(client, started.run_id, console)
    if state != "SUCCEEDED":
        raise ClusterRunFailed(f"run {run_id} ({started.run_id}) {state.lower()} on the cluster; KFP has its logs.")
    return _outcome(config, run_id)


def _client(config: Config) -> "Client":
    import kfp

    section = config.cluster
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # every client says which versions of KFP it works with
            return kfp.Client(
                host=section.host, namespace=section.namespace or "kubeflow", existing_token=os.environ.get(TOKEN)
            )
    except Exception as fault:
        raise UsageError(
            f"no KFP API at {section.host or 'the cluster of the kubeconfig'} ({_first_line(fault)}). "
            f"Set cluster.host, and {TOKEN} where the API asks who calls."
        ) from fault


def _follow(client: "Client", run: str, console: Console) -> str:
    """Say what each step comes to, until the run has ended; its last state."""
    said: dict[str, str] = {}
    unanswered = 0
    while True:
        try:
            found = client.get_run(run)
        except Exception as fault:  # a tunnel that broke, a server that starts again: the run itself goes on
            unanswered += 1
            if unanswered == MOST_UNANSWERED:
                raise ClusterRunFailed(
                    f"the KFP API no longer answers ({_first_line(fault)}); run {run} goes on there."
                ) from fault
            time.sleep(POLL_SECONDS)
            continue
        unanswered = 0
        for name, state in _steps(found):
            if said.get(name) != state:
                said[name] = state
                console.print(f"  {'kept' if state == 'CACHED' else state.lower():<9} {name}", highlight=False)
        if str(found.state) in ENDED:
            return str(found.state)
        time.sleep(POLL_SECONDS)


def _steps(run: Any) -> Iterator[tuple[str, str]]:
    """Name and state of each step that KFP knows of."""
    for task in (run.run_details and run.run_details.task_details) or ():
        if task.display_name and task.state:
            yield str(task.display_name), str(task.state)


def _outcome(config: Config, run_id: str) -> dict[str, Any]:
    """result.json of a run, as its last step logged it."""
    from audioscore.tracking.run_page import fetch_outcome

    target = home_of_model(config.registry.model).runs / run_id
    seen = os.environ.get(
        "MLFLOW_TRACKING_URI", ""
    )  # the server's address as it is from here, through a tunnel perhaps
    address = seen if seen.startswith(("http://", "https://")) else str(config.cluster.tracking_uri)
    try:
        result: Mapping[str, Any] = fetch_outcome(address, run_id, target)
    except AudioscoreError:
        raise
    except Exception as fault:  # of MLflow and of requests
        raise ClusterRunFailed(
            f"run {run_id} ended well, but {address} did not give its result ({_first_line(fault)}). "
            "Set MLFLOW_TRACKING_URI to the server's address as it is from here."
        ) from fault
    return {**result, "report": str(target / "report.html")}


def _first_line(fault: BaseException) -> str:
    return (str(fault).strip() or type(fault).__name__).splitlines()[0]
