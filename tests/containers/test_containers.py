"""The image, and the whole pipeline in its containers, compared with the same pipeline in processes."""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from audioscore.errors import UsageError
from audioscore.files import read_json
from audioscore.platforms import ContainersSection
from pipelines.container_engine import engine
from pipelines.containers import Containers, docker_runner, remove_containers, run_container, use_image
from pipelines.platform import UID
from pipelines.request import SubmitRequest
from pipelines.submit import main

pytestmark = pytest.mark.containers
TOLERANCE = 1e-3
FIGURES = ("spearman", "spearman_within_source", "pairwise_accuracy", "kendall", "mae")
SETTINGS = (
    "training.epochs=3", "training.seeds=[1]", "training.plans=[baseline,hybrid,muq_frozen]",
    "evaluation.resamples=200", "evaluation.robustness.clips=3", "validation.min_clips=10",
    "split.val=0.25", "split.test=0.3", "registry.model=singers",
)  # fmt: skip
OWNER = f"owner-{os.getpid()}"  # no other run uses this label
UNCOMPILED = """
import os, sys
import audioscore.scoring.scorer, kfp, mlflow, torch
for module in list(sys.modules.values()):
    kept, source = getattr(module, "__cached__", None), getattr(module, "__file__", None) or ""
    if isinstance(kept, str) and str(source).endswith(".py") and not os.path.exists(kept):
        print(source)
"""


def podman(*arguments: str) -> str:
    return subprocess.run(["podman", *arguments], check=True, capture_output=True, text=True).stdout


def containers(label: str = "audioscore.run") -> str:
    """Containers with the label, also stopped ones."""
    return podman("ps", "--all", "--quiet", "--filter", f"label={label}")


@pytest.fixture(scope="module")
def readable(tiny_corpus: Path, tiny_encoders: Path) -> Iterator[Path]:
    """Corpus and encoders in a folder that the user of the image can read."""
    folder = Path(tempfile.mkdtemp(prefix="audioscore-"))
    shutil.copytree(tiny_corpus, folder / "data")
    shutil.copytree(tiny_encoders, folder / "encoders")
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    yield folder
    shutil.rmtree(folder)


def submit(readable: Path, home: Path, *settings: str, on: Literal["docker"] | None = None) -> dict[str, Any]:
    sources = [f"encoders.{name}.source={readable / 'encoders' / f'{name}-small'}" for name in ("muq", "campplus")]
    request = SubmitRequest(data=str(readable / "data"), overrides=[*SETTINGS, *sources, *settings], on=on)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUDIOSCORE_HOME", str(home))
        patch.setenv("OMP_NUM_THREADS", "1")
        assert main(request) == 0
    (result,) = home.glob("runs/*/result.json")
    document: dict[str, Any] = read_json(result)
    return document


def test_the_whole_pipeline_in_containers_has_the_figures_of_processes(
    image: str, readable: Path, tmp_path: Path
) -> None:
    home = readable / "home"  # writable for the user of the image
    before = {path: path.stat().st_mtime_ns for path in (readable / "data").rglob("*")}
    others = containers()
    inside = submit(readable, home, f"containers.image={image}", on="docker")
    outside = submit(readable, tmp_path / "home")
    for plan, figures in outside["plans"].items():
        for name in FIGURES:
            assert inside["plans"][plan][name]["value"] == pytest.approx(figures[name]["value"], abs=TOLERANCE), name
    assert inside["winner"] == outside["winner"]
    assert inside["registered"]["version"] == 1
    assert {path: path.stat().st_mtime_ns for path in (readable / "data").rglob("*")} == before
    assert containers() == others
    owners = {path.stat().st_uid for path in home.glob("runs/*/steps/*/*")}
    assert owners == ({UID} if os.getuid() == 0 else {os.getuid()})


@pytest.fixture
def held(image: str, tmp_path: Path) -> Any:
    """An engine, its client, and the settings of a step."""
    import docker

    data, home = tmp_path / "data", tmp_path / "home"
    for folder in (tmp_path, *tmp_path.parents[:2], data, home):
        folder.mkdir(exist_ok=True)
        folder.chmod(0o755)
    with engine():
        settings = dict(
            docker_runner(Containers(ContainersSection(image=image), home, (data,)), OWNER).container_run_args
        )
        client = docker.from_env()
        yield client, settings, data, home
        client.close()


def run(held: Any, image: str, command: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    client, settings, _, _ = held
    code = run_container(client, image, ["sh", "-c", command], {}, **settings)
    return code, capsys.readouterr().out


def test_a_step_is_unprivileged_and_cannot_change_its_data(
    held: Any, image: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _, _, data, home = held
    code, output = run(held, image, f"id -u; touch {home}/made && ! touch {data}/made && ! touch /opt/made", capsys)
    assert code == 0, output
    assert output.splitlines()[0] == str(UID if os.getuid() == 0 else os.getuid())
    assert (home / "made").is_file()
    assert not (data / "made").exists()


def test_exit_codes_and_the_last_line_are_returned(held: Any, image: str, capsys: pytest.CaptureFixture[str]) -> None:
    for code in (0, 1, 3, 7) * 3:
        assert run(held, image, f"echo end {code}; exit {code}", capsys) == (code, f"end {code}\n")


def test_containers_of_a_killed_run_are_removed(held: Any, image: str) -> None:
    client, settings, _, _ = held
    client.containers.run(image, ["sleep", "600"], detach=True, **settings)
    assert remove_containers("another") == 0
    assert remove_containers(OWNER) == 1
    assert containers(f"audioscore.run={OWNER}") == ""


def test_a_missing_image_is_named(engine_settings: None) -> None:
    missing = "localhost/audioscore-python:never"
    with engine(), pytest.raises(UsageError, match=missing), use_image(missing):
        pass


def test_labels_user_and_sbom_of_the_image(image: str) -> None:
    (about,) = json.loads(podman("image", "inspect", image))
    labels = about["Config"]["Labels"] if "Config" in about else about["Labels"]
    assert labels["org.opencontainers.image.title"] == "audioscore"
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert about["Config"]["User"] == f"{UID}:{UID}"
    sbom = json.loads(podman("run", "--rm", "--network", "host", image, "cat", "/usr/share/sbom/python.cdx.json"))
    assert sbom["bomFormat"] == "CycloneDX"
    assert {"torch", "kfp", "mlflow", "muq", "kubeflow"} <= {part["name"] for part in sbom["components"]}


def test_the_image_runs_as_any_user_on_a_read_only_file_system(image: str) -> None:
    output = podman(
        "run", "--rm", "--network", "host", "--read-only", "--user", "54321:0", "--tmpfs", "/tmp", image,
        "sh", "-c", "audioscore --help && audioscore doctor --help && touch /cache/x /state/x",
    )  # fmt: skip
    assert "doctor" in output


@pytest.mark.parametrize("program", [UNCOMPILED, "import kfp, kubeflow, audioscore"])
def test_imports_are_compiled_and_need_no_network(image: str, program: str) -> None:
    assert podman("run", "--rm", "--network", "none", image, "python3", "-c", program) == ""
