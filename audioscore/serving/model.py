"""The model of the service: its reference, loading it, and the processes that decode recordings for it."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from audioscore.data.audio import Wave
from audioscore.errors import AudioError, ModelError
from audioscore.home import DEMO_MODEL, MODEL, home_of_model
from audioscore.scoring.input import DecodedClip, InputLimits, InputRecording
from audioscore.scoring.scorer import Scorer
from audioscore.scoring.stream import GuardedDecoder
from audioscore.serving.metrics import ServiceSettings
from audioscore.units import CAMPPLUS_RATE, MUQ_RATE


@dataclass(frozen=True)
class ModelReference:
    """Which model to load: its name and version (None for a folder), `uri` for responses, `source` for loading."""

    name: str
    version: int | None
    uri: str
    source: str


@dataclass
class ServedModel:
    """A loaded model. `users` counts the requests that use it; a retired model is closed when no request uses it."""

    reference: ModelReference
    scorer: Scorer
    decoder: GuardedDecoder
    users: int = 0
    retired: bool = False

    def decode(self, upload: InputRecording) -> DecodedClip:
        """Decode an uploaded recording. The message of an AudioError does not contain the path of the upload."""
        try:
            return self.decoder(replace(upload, file="the recording"))
        except AudioError as error:
            raise AudioError(str(error).replace(str(upload.source), "the recording")) from error


def resolve_model(model: str | None) -> ModelReference:
    """Resolve `model`: a folder, `models:/NAME/VERSION`, `models:/NAME@ALIAS`, or None for the champion.

    Raises ModelError if the alias does not exist or the registry cannot be read, UsageError for an invalid name.
    """
    from audioscore.tracking.connection import connect, require_database
    from audioscore.tracking.find_scorer import find_scorer
    from audioscore.tracking.registry import has_champion, version_by_alias

    if model is None:
        found = [name for name in (MODEL, DEMO_MODEL) if has_champion(home_of_model(name).tracking_uri, name)]
        model = f"models:/{found[0]}@champion" if found else find_scorer(None)[0]  # raises an error with instructions
    if not model.startswith("models:/"):
        folder = Path(model).resolve()
        return ModelReference(folder.name, None, folder.name, model)
    name, at, alias = model.removeprefix("models:/").partition("@")
    if not at:
        name, _, version = name.partition("/")
        return ModelReference(name, int(version) if version.isdecimal() else None, model, model)
    tracking_uri = home_of_model(name).tracking_uri
    require_database(tracking_uri)
    version_found = version_by_alias(connect(tracking_uri), name, alias)
    if version_found is None:
        raise ModelError(f"{model}: the model or alias does not exist. List them with `audioscore models`.")
    return ModelReference(name, version_found.version, model, version_found.uri)


def load_served(reference: ModelReference, settings: ServiceSettings, *, device: str, fast: bool) -> ServedModel:
    """Load a model and start its decoding processes. Raises ModelError if it cannot be loaded."""
    from audioscore import load_scorer

    scorer = load_scorer(reference.source, device=device, fast=fast)
    limits = InputLimits(settings.max_bytes, min(settings.max_seconds, scorer.limits.max_seconds), needs_voice=True)
    decoder = GuardedDecoder(scorer.needs, limits, seconds=settings.decode_seconds, processes=settings.processes)
    return ServedModel(reference, scorer, decoder)


def trial_clip(scorer: Scorer) -> DecodedClip:
    """Synthesise a tone with harmonics, 2 s long, to test that a model can score before it is used."""

    def tone(rate: int) -> Wave:
        time = np.arange(2 * rate) / rate
        return np.asarray(sum(0.1 * np.sin(2 * np.pi * 220 * k * time) / k for k in range(1, 9)), dtype=np.float32)

    return DecodedClip(
        "a trial",
        2.0,
        tone(MUQ_RATE) if scorer.needs.muq else None,
        tone(CAMPPLUS_RATE) if scorer.needs.voice else None,
    )
