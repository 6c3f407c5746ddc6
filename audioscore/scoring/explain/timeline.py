"""Timeline: the score of overlapping segments of a recording."""

import torch
from torch import Tensor

from audioscore.encoders.features import Features
from audioscore.scoring.calibration import Calibration
from audioscore.scoring.network import BATCH_CLIPS, Batch, ScoreNetwork, collate
from audioscore.scoring.results import TimelineSegment

HOP_SECONDS = 2.5  # between the starts of two segments
SPAN_SECONDS = 10.0  # of one segment: the length of a short clip, as in the calibration data


def timeline_segments(
    network: ScoreNetwork, calibration: Calibration, features: Features, seconds: float, device: str
) -> tuple[TimelineSegment, ...]:
    """Score each segment of a recording like a recording of its own; empty for a scorer without MuQ.

    MuQ runs once for the whole recording, so that the frames of a segment have context. The voice embedding is that of
    the whole recording.
    """
    if "muq" not in features:
        return ()
    spans = _spans(seconds)
    with torch.inference_mode():
        encoded = network.encode(collate([features], windowed=network.windowed).to(device))
        assert encoded.frames is not None
        frames = encoded.frames[0, : int(encoded.lengths[0])]  # (F, D)
        parts: list[Tensor] = [_span(frames, start, end, seconds) for start, end in spans]
        raw = torch.cat(
            [_raw(network, parts[at : at + BATCH_CLIPS], encoded) for at in range(0, len(parts), BATCH_CLIPS)]
        )
    scores = calibration.apply(raw.double().cpu().numpy())
    return tuple(TimelineSegment(start, end, float(score)) for (start, end), score in zip(spans, scores, strict=True))


def _raw(network: ScoreNetwork, parts: list[Tensor], whole: Batch) -> Tensor:
    padded = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)
    lengths = torch.tensor([len(part) for part in parts])
    embedding = None if whole.embedding is None else whole.embedding.expand(len(parts), -1)
    return network.predict(network.head.represent(Batch(lengths, padded, embedding)))


def _span(frames: Tensor, start: float, end: float, seconds: float) -> Tensor:
    first = round(start / seconds * len(frames))
    return frames[first : max(round(end / seconds * len(frames)), first + 1)]


def _spans(seconds: float) -> list[tuple[float, float]]:
    """Segments of SPAN_SECONDS, HOP_SECONDS apart; the last one ends with the recording.

    >>> _spans(4.0), _spans(13.0)
    ([(0.0, 4.0)], [(0.0, 10.0), (2.5, 12.5), (3.0, 13.0)])
    """
    if seconds <= SPAN_SECONDS:
        return [(0.0, seconds)]
    last = seconds - SPAN_SECONDS
    starts = [HOP_SECONDS * step for step in range(int(last / HOP_SECONDS) + 1)]
    if starts[-1] < last:
        starts.append(last)
    return [(start, start + SPAN_SECONDS) for start in starts]
