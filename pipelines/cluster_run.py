"""Run the pipeline on a cluster: compile it, submit it to the KFP API, follow the run, and fetch its result."""

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
from audioscore.data.transfer.network import await_server
from audioscore.data.versions.storage import local_repository
from audioscore.errors import INTERNAL_ERROR_EXIT_CODE, AudioscoreError, DataError, UsageError
from audioscore.home import home_of_model
from pipelines.compile import compile_pipeline
from pipelines.platform import on_cluster
from pipelines.request import cluster_parameters

if TYPE_CHECKING:
    from kfp import Client

TOKEN = "AUDIOSCORE_KFP_TOKEN"  # for clients that have no identity in the cluster
POLL_SECONDS = 15.0
MAX_UNANSWERED = 20  # failed requests in a row before following a run ends
NEEDED = ("image", "feature_store", "tracking_uri")
ENDED = {"SUCCEEDED", "FAILED", "CANCELED", "SKIPPED"}


class ClusterRunFailed(AudioscoreError):
    """A run on the cluster failed; KFP has the logs of its steps."""

    exit_code = INTERNAL_ERROR_EXIT_CODE


def check_cluster_config(config: Config) -> None:
    """Check that a configuration names nothing that exists on this machine only.

    Raises:
        UsageError: an encoder is a local folder, or a required setting is missing.
        DataError: the data are in a local folder or repository.
    """
    section = config.cluster
    if missing := [f"cluster.{name}" for name in NEEDED if getattr(section, name) is None]:
        raise UsageError(
            f"{', '.join(missing)}: missing. Pods share no folder and no database with this machine; set them."
        )
    uri = str(config.data.uri)
    if local_repository(uri) or (not uri.startswith(("s3://", "git+")) and "@" not in uri):
        raise DataError(
            f"{uri}: a folder of this machine, which pods cannot read. Give s3://BUCKET/PREFIX or git+URL@REV."
        )
    for name in ("muq", "campplus"):
        source = getattr(config.encoders, name).source
        mounted = section.volume is not None and Path(source).is_relative_to(section.volume.path)
        if Path(source).is_absolute() and not mounted:
            raise UsageError(
                f"encoders.{name}.source {source}: a folder that pods cannot read. "
                "Give a hub id, or a folder under cluster.volume.path."
            )


def run_on_cluster(config: Config, run_id: str, code_rev: str, console: Console) -> dict[str, Any]:
    """Start a run, wait for it, and return the document of `run --json` from the MLflow server.

    An interrupt ends this process only; the run continues on the cluster. KFP's cache provides the outputs of steps
    that an earlier run with the same inputs finished.

    Raises:
        UsageError: the API cannot be reached, or refuses the run.
        ClusterRunFailed: the run failed, or its result cannot be fetched.
    """
    section = config.cluster
    client = _client(config)
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "pipeline.yaml"
        compile_pipeline(package, on_cluster(section))
        try:
            with contextlib.redirect_stdout(sys.stderr):  # KFP's client prints links to standard output
                started = client.create_run_from_pipeline_package(
                    str(package), arguments=cluster_parameters(config, run_id, code_rev), run_name=run_id,
                    experiment_name=section.experiment, namespace=section.namespace, enable_caching=True,
                    pipeline_root=section.pipeline_root, service_account=section.service_account,
                )  # fmt: skip
        except Exception as error:  # KFP's client, urllib3 and kubernetes have no common error class
            raise UsageError(f"KFP API: refused the run ({_first_line(error)}). Check the section cluster.") from error
    console.print(
        f"run {run_id} is KFP run {started.run_id}; it continues there if this command is interrupted", highlight=False
    )
    state = _follow(client, started.run_id, console)
    if state != "SUCCEEDED":
        raise ClusterRunFailed(f"run {run_id} ({started.run_id}): {state.lower()} on the cluster. See its logs in KFP.")
    return _fetch_result(config, run_id)


def _client(config: Config) -> "Client":
    import kfp

    section = config.cluster
    if section.host and "://" in section.host:
        await_server(section.host, "cluster.host")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # every client lists the KFP versions that it supports
            return kfp.Client(
                host=section.host, namespace=section.namespace or "kubeflow", existing_token=os.environ.get(TOKEN)
            )
    except Exception as error:
        raise UsageError(
            f"KFP API at {section.host or 'the cluster of the kubeconfig'}: does not respond ({_first_line(error)}). "
            f"Set cluster.host, and {TOKEN} if the API requires authentication."
        ) from error


def _follow(client: "Client", run: str, console: Console) -> str:
    """Print each change of a step's state until the run has ended; return the run's last state."""
    printed: dict[str, str] = {}
    unanswered = 0
    while True:
        try:
            found = client.get_run(run)
        except Exception as error:  # a broken tunnel or a server that restarts does not end the run
            unanswered += 1
            if unanswered == MAX_UNANSWERED:
                raise ClusterRunFailed(
                    f"KFP API: did not respond {MAX_UNANSWERED} times ({_first_line(error)}). Follow run {run} there."
                ) from error
            time.sleep(POLL_SECONDS)
            continue
        unanswered = 0
        for name, state in _step_states(found):
            if printed.get(name) != state:
                printed[name] = state
                console.print(f"  {'kept' if state == 'CACHED' else state.lower():<9} {name}", highlight=False)
        if str(found.state) in ENDED:
            return str(found.state)
        time.sleep(POLL_SECONDS)


def _step_states(run: Any) -> Iterator[tuple[str, str]]:
    """Name and state of each step that KFP has started."""
    for task in (run.run_details and run.run_details.task_details) or ():
        if task.display_name and task.state:
            yield str(task.display_name), str(task.state)


def _fetch_result(config: Config, run_id: str) -> dict[str, Any]:
    """Fetch a run's result.json, which its last step logged to the MLflow server."""
    from audioscore.tracking.run_page import fetch_outcome

    target = home_of_model(config.registry.model).runs / run_id
    local = os.environ.get("MLFLOW_TRACKING_URI", "")  # the server's address from this machine, for example a tunnel
    address = local if local.startswith(("http://", "https://")) else str(config.cluster.tracking_uri)
    try:
        result: Mapping[str, Any] = fetch_outcome(address, run_id, target)
    except AudioscoreError:
        raise
    except Exception as error:  # of MLflow or requests
        raise ClusterRunFailed(
            f"run {run_id}: succeeded, but its result could not be fetched from {address} ({_first_line(error)}). "
            "Set MLFLOW_TRACKING_URI to the server's address from this machine."
        ) from error
    return {**result, "report": str(target / "report.html")}


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
