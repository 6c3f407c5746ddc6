"""A model that the service scores with: which one it is, and the processes that decode for it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from audioscore.data.audio import Wave
from audioscore.errors import AudioError, ModelError
from audioscore.home import DEMO_MODEL, MODEL, home_of_model
from audioscore.scoring.input import DecodedClip, Limits, Take
from audioscore.scoring.scorer import Scorer
from audioscore.scoring.stream import GuardedDecoder
from audioscore.serving.metrics import Settings
from audioscore.serving.uploads import Upload
from audioscore.units import CAMPPLUS_RATE, MUQ_RATE


@dataclass(frozen=True)
class Which:
    """A model's name, its version (None for a folder), what answers call it, and what loads it."""

    name: str
    version: int | None
    uri: str
    source: str


@dataclass
class ServedModel:
    """A loaded model. `users`: requests that are being scored with it; it is closed once none is left."""

    which: Which
    scorer: Scorer
    decoder: GuardedDecoder
    users: int = 0
    retired: bool = False

    @property
    def name(self) -> str:
        return self.which.name

    @property
    def version(self) -> int | None:
        return self.which.version

    @property
    def uri(self) -> str:
        return self.which.uri

    def decode(self, upload: Upload) -> DecodedClip:
        """Take one upload in. Raises AudioError, which names no path of this machine."""
        try:
            return self.decoder(Take("the recording", upload.path))
        except AudioError as fault:
            raise AudioError(str(fault).replace(str(upload.path), "the recording")) from fault


def which_model(model: str | None) -> Which:
    """What `model` names now: a folder, `models:/NAME/VERSION`, the version that an alias points at, or the champion.

    Raises ModelError where an alias points at nothing, or the registry cannot be read; UsageError for no model's name.
    """
    from audioscore.tracking.connection import connect, require_database
    from audioscore.tracking.find_scorer import find_scorer
    from audioscore.tracking.registry import has_champion, version_by_alias

    if model is None:
        found = [name for name in (MODEL, DEMO_MODEL) if has_champion(home_of_model(name).tracking_uri, name)]
        model = f"models:/{found[0]}@champion" if found else find_scorer(None)[0]  # which says what to do
    if not model.startswith("models:/"):
        folder = Path(model).resolve()
        return Which(folder.name, None, folder.name, model)
    name, at, alias = model.removeprefix("models:/").partition("@")
    if not at:
        name, _, version = name.partition("/")
        return Which(name, int(version) if version.isdecimal() else None, model, model)
    tracking_uri = home_of_model(name).tracking_uri
    require_database(tracking_uri)
    version_found = version_by_alias(connect(tracking_uri), name, alias)
    if version_found is None:
        raise ModelError(f"{model}: there is no such model or alias. `audioscore models` lists them.")
    return Which(name, version_found.version, model, version_found.uri)


def load_served(which: Which, settings: Settings, *, device: str, fast: bool) -> ServedModel:
    """Load a model, and start the processes that decode for it. Raises ModelError where it cannot be."""
    from audioscore import load_scorer

    scorer = load_scorer(which.source, device=device, fast=fast)
    limits = Limits(settings.max_bytes, min(settings.max_seconds, scorer.limits.max_seconds), needs_voice=True)
    decoder = GuardedDecoder(scorer.ears, limits, seconds=settings.decode_seconds, processes=settings.processes)
    return ServedModel(which, scorer, decoder)


def trial_clip(scorer: Scorer) -> DecodedClip:
    """Two seconds of a buzz: a model that cannot score this can score nothing."""

    def buzz(rate: int) -> Wave:
        time = np.arange(2 * rate) / rate
        return np.asarray(sum(0.1 * np.sin(2 * np.pi * 220 * k * time) / k for k in range(1, 9)), dtype=np.float32)

    return DecodedClip(
        "a trial",
        2.0,
        buzz(MUQ_RATE) if scorer.ears.muq else None,
        buzz(CAMPPLUS_RATE) if scorer.ears.voice else None,
    )
