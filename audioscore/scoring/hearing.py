"""What a scorer's encoders hear of decoded recordings, many at a time."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from audioscore.encoders.campplus import CampplusEncoder
from audioscore.encoders.extract import WINDOWS, Encoders, Features
from audioscore.encoders.muq import MuQEncoder
from audioscore.encoders.threads import side_by_side
from audioscore.muq_cpu.inference import MuQInference
from audioscore.scoring.input import DecodedClip


class Hearing:
    """A scorer's encoders as they are run for it; each hears a recording once."""

    def __init__(self, encoders: Encoders, prefix_layer: int | None = None, *, fast: bool = False) -> None:
        muq, voice = encoders.get("muq"), encoders.get("campplus")
        self._muq = MuQInference(muq, fast=fast) if isinstance(muq, MuQEncoder) else None
        self._voice = voice if isinstance(voice, CampplusEncoder) else None
        self._layer = prefix_layer

    def __call__(self, clips: Sequence[DecodedClip]) -> list[Features]:
        """Each clip's features, in order; with a prefix layer, MuQ gives that hidden state in place of its own."""
        heard: list[dict[str, Tensor]] = [{} for _ in clips]
        if self._muq is not None:
            waves = [torch.from_numpy(clip.muq) for clip in clips]
            for features, wave, frames in zip(heard, waves, self._muq.hear(waves, self._layer), strict=True):
                features["muq"] = frames
                if self._layer is not None:
                    features[WINDOWS] = torch.tensor(self._muq.encoder.windows(len(wave)))
        if self._voice is not None:
            tasks = [partial(self._voice.embedding, torch.from_numpy(clip.voice)) for clip in clips]
            on_cpu = torch.device(self._voice.device).type == "cpu"
            embeddings = side_by_side(tasks) if on_cpu else [task() for task in tasks]
            for features, embedding in zip(heard, embeddings, strict=True):
                features["campplus"] = embedding
        return list(heard)
