"""A scorer as an MLflow model: its weights, the code that runs it, and what that code needs, pinned."""

import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import audioscore
from audioscore.tracking.registry import SCORER_ARTIFACT

# What a registered scorer needs to run, pinned to the versions that made it.
REQUIREMENTS = (
    "addict", "av", "mlflow", "modelscope", "muq", "numba", "numpy", "pandas", "peft", "pydantic", "pyyaml",
    "safetensors", "scipy", "soxr", "torch", "torchaudio", "torchvision", "transformers",
)  # fmt: skip


def log_scorer(folder: Path, run_id: str, name: str) -> int:
    """Log a scorer folder to a run as a pyfunc model, and register it; returns its version's number.

    In: a table with a column `audio` of file bytes. Out: one row each, see `tracking/pyfunc_scorer.py`.
    """
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    outputs = [ColSpec(DataType.double, part, required=False) for part in ("score", "lo", "hi", "raw", "seconds")]
    signature = ModelSignature(
        inputs=Schema([ColSpec(DataType.binary, "audio")]),
        outputs=Schema([*outputs, ColSpec(DataType.string, "error", required=False)]),
    )
    package = Path(audioscore.__file__).parent
    with mlflow.start_run(run_id=run_id), warnings.catch_warnings():
        # An example would be scored to guess a signature, which is given here.
        warnings.filterwarnings("ignore", message="(?s).*input example was not provided", category=UserWarning)
        logged = mlflow.pyfunc.log_model(
            name="scorer",
            python_model=str(package / "tracking" / "pyfunc_scorer.py"),
            artifacts={SCORER_ARTIFACT: str(folder)},
            code_paths=[str(package)],
            pip_requirements=pinned_requirements(),
            signature=signature,
            registered_model_name=name,
        )
    return int(logged.registered_model_version)


def pinned_requirements() -> list[str]:
    """`name==version` of what a registered scorer imports, as installed here."""
    pinned = []
    for name in REQUIREMENTS:
        try:
            pinned.append(f"{name}=={version(name).split('+')[0]}")
        except PackageNotFoundError:
            continue  # a slimmer environment: what is not installed was not used
    return pinned
