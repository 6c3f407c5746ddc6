import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from audioscore.errors import AudioError, ModelError
from audioscore.scoring.input import EncoderNeeds, InputRecording
from audioscore.serving.model import ModelReference, resolve_model, trial_clip
from audioscore.tracking import connection, registry


def test_folders_and_versions(tmp_path: Path) -> None:
    (tmp_path / "scorer").mkdir()
    folder = str(tmp_path / "scorer")
    assert resolve_model(folder) == ModelReference("scorer", None, "scorer", folder)
    assert resolve_model("models:/singers/3") == ModelReference("singers", 3, "models:/singers/3", "models:/singers/3")


def test_an_alias_resolves_to_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "require_database", lambda _: None)
    monkeypatch.setattr(connection, "connect", lambda _: None)
    found = SimpleNamespace(version=7, uri="models:/singers/7")
    monkeypatch.setattr(registry, "version_by_alias", lambda *_: found)
    uri = "models:/singers@champion"
    assert resolve_model(uri) == ModelReference("singers", 7, uri, "models:/singers/7")
    monkeypatch.setattr(registry, "version_by_alias", lambda *_: None)
    with pytest.raises(ModelError, match=r"^models:/singers@champion: .*`audioscore models`"):
        resolve_model(uri)


def test_without_a_registry_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for name in (None, "models:/audioscore@champion"):
        with pytest.raises(ModelError, match=os.environ["AUDIOSCORE_HOME"]):
            resolve_model(name)


def test_an_error_does_not_contain_the_path_of_the_upload(a_model: Any, tmp_path: Path) -> None:
    (tmp_path / "1").write_text("none")
    with pytest.raises(AudioError, match=r"^the recording: not a number\.$"):
        a_model().decode(InputRecording("a.wav", tmp_path / "1"))


def test_a_trial_clip_has_the_inputs_of_the_scorer(a_model: Any) -> None:
    both = trial_clip(a_model(needs=EncoderNeeds(muq=True, voice=True, whole=False)).scorer)
    assert both.muq is not None
    assert both.voice is not None
    assert (len(both.muq), len(both.voice), both.muq.dtype) == (48_000, 32_000, np.float32)
    spectrum = np.abs(np.fft.rfft(both.muq))
    assert np.argmax(spectrum) == 440  # 220 Hz in two seconds
    assert trial_clip(a_model(needs=EncoderNeeds(muq=False, voice=True, whole=False)).scorer).muq is None
