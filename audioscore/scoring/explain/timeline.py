"""A score each few seconds: the head's answer to what is heard around each moment."""

import torch
from torch import Tensor

from audioscore.encoders.features import Features
from audioscore.scoring.calibration import Calibration
from audioscore.scoring.network import BATCH_CLIPS, Batch, ScoreNetwork, collate
from audioscore.scoring.results import Moment

HOP_SECONDS = 2.5  # from one moment to the next
SPAN_SECONDS = 10.0  # heard around each: the length of a short take, which the calibration has met


def moments(
    network: ScoreNetwork, calibration: Calibration, features: Features, seconds: float, device: str
) -> tuple[Moment, ...]:
    """Scores of spans of a recording, each judged as if it were one; none where the scorer hears the voice alone.

    MuQ hears the recording once, as for its score: frames of a span know what is around it. The voice is that of the
    whole recording.
    """
    if "muq" not in features:
        return ()
    spans = _spans(seconds)
    with torch.inference_mode():
        heard = network.hear(collate([features], windowed=network.windowed).to(device))
        assert heard.frames is not None
        frames = heard.frames[0, : int(heard.lengths[0])]  # (F, D)
        parts: list[Tensor] = [_span(frames, start, end, seconds) for start, end in spans]
        raw = torch.cat(
            [_raw(network, parts[at : at + BATCH_CLIPS], heard) for at in range(0, len(parts), BATCH_CLIPS)]
        )
    scores = calibration.apply(raw.double().cpu().numpy())
    return tuple(Moment(start, end, float(score)) for (start, end), score in zip(spans, scores, strict=True))


def _raw(network: ScoreNetwork, parts: list[Tensor], heard: Batch) -> Tensor:
    padded = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)
    lengths = torch.tensor([len(part) for part in parts])
    embedding = None if heard.embedding is None else heard.embedding.expand(len(parts), -1)
    return network.judge(network.head.represent(Batch(lengths, padded, embedding)))


def _span(frames: Tensor, start: float, end: float, seconds: float) -> Tensor:
    first = round(start / seconds * len(frames))
    return frames[first : max(round(end / seconds * len(frames)), first + 1)]


def _spans(seconds: float) -> list[tuple[float, float]]:
    """Spans of SPAN_SECONDS, HOP_SECONDS apart, the last one ending with the recording.

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
