"""Estimate of a run's GPU-hours and disk from stated assumptions: `python -m manifests.sizing`.

This is arithmetic, not a measurement on a GPU. The operations of a forward pass were counted (torch's FlopCounterMode,
MuQ-large with its first six layers at random weights, 5 s of audio). The rate of a GPU and the efficiency of several
GPUs are assumed; all results are proportional to them.
"""

import sys
from dataclasses import dataclass

from audioscore.units import HOUR_SECONDS

FRONT_END = 27.3e9  # operations per second of audio: MuQ's convolutions
SIX_LAYERS = 7.8e9  # its first six layers
STORED_BYTES = 25 * 1024 * 4  # per second of audio and stored layer: 25 frames of 1024 float32


@dataclass(frozen=True)
class Assumptions:
    """Settings of `pipelines/configs/full.yaml` and properties of the cluster.

    Args:
        rate: sustained operations per second of a GPU.
        kept: efficiency of several GPUs that share a batch.
    """

    clip_seconds: float = 60.0
    rate: float = 20e12  # about 6 % of an A100's bf16 peak: small convolutions use little of it
    kept: float = 0.8
    train_share: float = 0.6
    tuned_plans: int = 2  # baseline and hybrid; the heads of the controls cost little
    seeds: int = 3
    epochs: int = 20  # without early stopping
    passes: float = 3.0  # forward, again forward under gradient checkpointing, backward through frozen weights
    layers_stored: int = 2  # the input of the first tuned layer, and layer 6 for the frozen control


def gpu_hours(clips: int, assumed: Assumptions = Assumptions()) -> tuple[float, float]:
    """GPU-hours for extraction, once per corpus, and for training all tuned plans and seeds.

    >>> [round(hours, 2) for hours in gpu_hours(2_000)]
    [0.06, 2.81]
    """
    audio = clips * assumed.clip_seconds
    extraction = audio * (FRONT_END + SIX_LAYERS)
    trained = audio * assumed.train_share * assumed.tuned_plans * assumed.seeds * assumed.epochs
    per_hour = assumed.rate * HOUR_SECONDS
    return extraction / per_hour, trained * SIX_LAYERS * assumed.passes / per_hour


def table(assumed: Assumptions = Assumptions()) -> str:
    """Markdown table by number of clips: hours of audio, disk for features, GPU-hours, hours on 1, 4 and 8 GPUs."""
    rows = [
        "| clips | audio, h | features, GB | extraction, GPU-h | training, GPU-h | on 1 GPU, h | on 4, h | on 8, h |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for clips in (2_000, 10_000, 50_000):
        seconds = clips * assumed.clip_seconds
        extraction, training = gpu_hours(clips, assumed)
        walls = [extraction / gpus + training / (gpus * (assumed.kept if gpus > 1 else 1)) for gpus in (1, 4, 8)]
        cells = [
            f"{clips:,}",
            f"{seconds / HOUR_SECONDS:.0f}",
            f"{seconds * STORED_BYTES * assumed.layers_stored / 1e9:.0f}",
            *(f"{hours:.1f}" for hours in (extraction, training, *walls)),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    sys.stdout.write(table())
