from pathlib import Path
from typing import Any

import numpy as np
import pytest

from audioscore.errors import AudioError, ModelError
from audioscore.scoring.intake import Ears
from audioscore.serving.served import Which, trial_clip, which_model
from audioscore.serving.uploads import Upload


def test_what_a_name_means(tmp_path: Path) -> None:
    (tmp_path / "scorer").mkdir()
    folder = str(tmp_path / "scorer")
    assert which_model(folder) == Which("scorer", None, "scorer", folder)
    assert which_model("models:/singers/3") == Which("singers", 3, "models:/singers/3", "models:/singers/3")


def test_an_alias_is_the_version_that_it_points_at(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    from audioscore.tracking import connection, registry

    monkeypatch.setattr(connection, "require_database", lambda _: None)
    monkeypatch.setattr(connection, "connect", lambda _: None)
    found = SimpleNamespace(version=7, uri="models:/singers/7")
    monkeypatch.setattr(registry, "version_by_alias", lambda *_: found)
    uri = "models:/singers@champion"
    assert which_model(uri) == Which("singers", 7, uri, "models:/singers/7")
    monkeypatch.setattr(registry, "version_by_alias", lambda *_: None)
    with pytest.raises(ModelError, match=r"^models:/singers@champion: there is no such model or alias"):
        which_model(uri)


def test_without_a_champion_the_sentence_says_what_to_do() -> None:
    with pytest.raises(ModelError, match=r"no champion is registered in .* yet"):
        which_model(None)
    with pytest.raises(ModelError, match="no model has been registered there yet"):
        which_model("models:/audioscore@champion")


def test_a_refusal_names_no_path_of_this_machine(a_model: Any, tmp_path: Path) -> None:
    (tmp_path / "1").write_text("no number")
    with pytest.raises(AudioError, match=r"^the recording: cannot be decoded\. Export it again\.$"):
        a_model().decode(Upload("a.wav", tmp_path / "1"))


def test_a_trial_is_what_the_scorer_hears(a_model: Any) -> None:
    both = trial_clip(a_model(ears=Ears(muq=True, voice=True, whole=False)).scorer)
    assert both.muq is not None
    assert both.voice is not None
    assert (len(both.muq), len(both.voice), both.muq.dtype) == (48_000, 32_000, np.float32)
    spectrum = np.abs(np.fft.rfft(both.muq))
    assert np.argmax(spectrum) == 440  # 220 Hz in two seconds
    assert trial_clip(a_model(ears=Ears(muq=False, voice=True, whole=False)).scorer).muq is None
