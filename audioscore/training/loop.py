"""Fit one head on features that are already there: one seed, early stopping on validation."""

import copy
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from audioscore.encoders.extract import Features
from audioscore.evaluation.metrics import spearman, within_source_spearman
from audioscore.scoring.batch import collate
from audioscore.scoring.head import ScoreHead, Standardize, raw_outputs
from audioscore.training.losses import pairwise_ranking_loss
from audioscore.training.pairs import ordered_pairs

log = logging.getLogger(__name__)

CLIP_NORM = 1.0


@dataclass(frozen=True)
class Fold:
    """Clips to fit or to validate on. `scores` [N] are human scores; `sources` the recording domains."""

    features: Sequence[Features]
    scores: Sequence[float]
    sources: Sequence[str]


@dataclass(frozen=True)
class Fit:
    """A fitted head (best epoch's weights), its learning curve, and the validation figure that chose the epoch."""

    head: ScoreHead
    curve: list[dict[str, float]]
    best_epoch: int
    validation_spearman: float
    selection: float


def fit_head(
    train: Fold,
    val: Fold,
    *,
    seed: int,
    width: int,
    hidden: int,
    dropout: float,
    epochs: int,
    patience: int,
    batch_clips: int,
    learning_rate: float,
    weight_decay: float,
    margin_per_point: float,
    device: str = "cpu",
) -> Fit:
    """Train on all ordered pairs inside random batches; keep the epoch that ranks validation clips best.

    Same seed, same clips, same machine: same weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        dims: dict[str, int] = {kind: int(value.shape[-1]) for kind, value in train.features[0].items()}
        head = ScoreHead(dims, width=width, hidden=hidden, dropout=dropout)
        fit_statistics(head, train.features)
        head.to(device)
        optimizer = torch.optim.AdamW(head.parameters(), lr=learning_rate, weight_decay=weight_decay)
        scores = torch.tensor(train.scores, dtype=torch.float32)
        curve: list[dict[str, float]] = []
        best, best_epoch, best_state = -np.inf, 0, copy.deepcopy(head.state_dict())
        for epoch in range(1, epochs + 1):
            started = time.monotonic()
            loss = _epoch(head, optimizer, train.features, scores, batch_clips, margin_per_point, device)
            figures = validate(head, val, device)
            curve.append({"epoch": epoch, "train_loss": loss, **figures, "seconds": time.monotonic() - started})
            if figures["selection"] > best:
                best, best_epoch, best_state = figures["selection"], epoch, copy.deepcopy(head.state_dict())
            log.info(
                "seed %d epoch %d: loss %.4f, validation Spearman %.3f", seed, epoch, loss, figures["val_spearman"]
            )
            if epoch - best_epoch >= patience:
                break
        head.load_state_dict(best_state)
    chosen = curve[best_epoch - 1]
    return Fit(head.cpu().eval(), curve, best_epoch, chosen["val_spearman"], chosen["selection"])


def fit_statistics(head: ScoreHead, features: Sequence[Features]) -> None:
    """Give each branch's normalisation the statistics of the training clips, every frame counted once."""
    for kind in features[0]:
        norm = head.norms[kind]
        assert isinstance(norm, Standardize)
        values = [clip[kind] for clip in features]
        norm.fit(torch.cat([value if value.ndim == 2 else value[None] for value in values]))


def validate(head: ScoreHead, fold: Fold, device: str = "cpu") -> dict[str, float]:
    """Spearman overall and within source, and their mean, which selects the epoch.

    Overall alone would be won by hearing the room: the sources' score bands differ.
    """
    raw = raw_outputs(head, fold.features, device)
    # Undefined means that the outputs rank nothing (all equal), which is worth 0 here.
    overall = float(np.nan_to_num(spearman(fold.scores, raw)))
    within = float(np.nan_to_num(within_source_spearman(fold.scores, raw, fold.sources), nan=overall))
    return {"val_spearman": overall, "val_spearman_within_source": within, "selection": (overall + within) / 2}


def _epoch(
    head: ScoreHead,
    optimizer: torch.optim.Optimizer,
    features: Sequence[Features],
    scores: Tensor,
    batch_clips: int,
    margin_per_point: float,
    device: str,
) -> float:
    """One pass over the clips in a random order; mean loss over its batches."""
    head.train()
    losses = []
    for chosen in torch.randperm(len(features)).split(batch_clips):
        pairs = ordered_pairs(scores[chosen])
        if len(pairs.gap) == 0:
            continue  # one clip, or all equal: nothing to rank
        raw = head(collate([features[int(i)] for i in chosen]).to(device))
        margin = margin_per_point * pairs.gap.to(device)
        loss = pairwise_ranking_loss(raw[pairs.better], raw[pairs.worse], margin=margin)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), CLIP_NORM)
        optimizer.step()
        losses.append(loss.item())
    return float(np.mean(losses)) if losses else 0.0  # no pair in any batch: nothing was lost
