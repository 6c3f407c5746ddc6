import importlib
import json
import pickle
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from audioscore.demo.pretrain import build_campplus, save_campplus
from audioscore.encoders import campplus
from audioscore.encoders.campplus import CampplusEncoder, fbank, load_campplus
from audioscore.encoders.compute import Precision, quiet_imports
from audioscore.errors import ModelError
from audioscore.files import sha256_of


def noise(seconds: float, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(round(seconds * 16_000), generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def copy(tiny_encoders: Path, tmp_path: Path) -> Path:
    """A copy of the small CAM++ to damage."""
    return Path(shutil.copytree(tiny_encoders / "campplus-small", tmp_path / "campplus-copy"))


def weights_of(folder: Path) -> Path:
    return folder / str(json.loads((folder / "configuration.json").read_text())["model"]["pretrained_model"])


@pytest.mark.parametrize("dim", [192, 512])
def test_the_full_size_equals_modelscopes(tmp_path: Path, dim: int, randomize_norms: Callable[[Any], None]) -> None:
    with quiet_imports():
        from modelscope.models.audio.sv.DTDNN import CAMPPlus, SpeakerVerificationCAMPPlus

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        network = CAMPPlus(feat_dim=80, embedding_size=dim)
        randomize_norms(network)
    save_campplus(network, tmp_path / "cam", name="cam.bin")
    sizes = {"fbank_dim": 80, "emb_size": dim, "sample_rate": 16_000}
    upstream = SpeakerVerificationCAMPPlus(str(tmp_path / "cam"), sizes, device="cpu", pretrained_model="cam.bin")
    encoder = load_campplus(str(tmp_path / "cam"))
    assert encoder.dim == dim
    for wave in (noise(1.5), noise(2.5, 1)):
        torch.testing.assert_close(encoder.embedding(wave), upstream(wave)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sizes", [{"dim": 512, "growth": 4, "channels": 16}, {"dim": 24, "growth": 8, "channels": 32}])
def test_sizes_are_read_from_the_weights(tmp_path: Path, sizes: dict[str, int]) -> None:
    with torch.random.fork_rng(devices=[]):
        save_campplus(build_campplus(**sizes), tmp_path / "cam", dim=192)  # a wrong configuration: the weights decide
    encoder = load_campplus(str(tmp_path / "cam"))
    assert encoder.dim == sizes["dim"]
    assert encoder.embedding(noise(1.0)).shape == (sizes["dim"],)


def test_fbank_equals_kaldis_without_its_mean() -> None:
    import torchaudio.compliance.kaldi as kaldi

    wave = noise(1.0)
    raw = kaldi.fbank(wave.unsqueeze(0), num_mel_bins=80)
    assert fbank(wave).shape == (98, 80)  # windows of 25 ms that fit into 1 s
    assert torch.equal(fbank(wave), raw - raw.mean(dim=0, keepdim=True))
    np.testing.assert_allclose(fbank(wave).mean(0).numpy(), 0, atol=1e-5)
    torch.testing.assert_close(fbank(wave), fbank(0.25 * wave), rtol=0, atol=2e-3)


def test_loading_is_frozen_and_deterministic(tiny_encoders: Path, global_rng: Callable[[], object]) -> None:
    before = global_rng()
    encoder = load_campplus(str(tiny_encoders / "campplus-small"))
    assert global_rng() == before
    assert [name for name, parameter in encoder.module.named_parameters() if parameter.requires_grad] == []
    assert [name for name, part in encoder.module.named_modules() if part.training] == []
    embedding = encoder.embedding(noise(2.0))
    assert embedding.dtype == torch.float32
    assert torch.equal(embedding, encoder.embedding(noise(2.0)))


def test_a_long_embedding_is_the_mean_of_equal_windows(tiny_encoders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campplus, "WINDOW_SECONDS", 1.0)
    encoder = load_campplus(str(tiny_encoders / "campplus-small"))
    wave = noise(2.4)  # three windows of 0.8 s
    parts = torch.stack([encoder.embedding(part) for part in wave.split(12_800)])
    assert len(parts) == 3
    torch.testing.assert_close(encoder.embedding(wave), parts.mean(0))


def test_a_saved_copy_has_the_same_reference_and_hash(tiny_encoders: Path, tmp_path: Path) -> None:
    encoder = load_campplus(str(tiny_encoders / "campplus-small"))
    assert encoder.reference.id is None
    assert encoder.reference.sha256 == sha256_of(weights_of(tiny_encoders / "campplus-small"))
    encoder.save(tmp_path / "embedded")
    again = load_campplus(str(tmp_path / "embedded"))
    assert again.reference == encoder.reference
    assert torch.equal(again.embedding(noise(1.0)), encoder.embedding(noise(1.0)))
    found = encoder.reference.sha256
    assert load_campplus(str(tmp_path / "embedded"), sha256=found).reference.sha256 == found
    weights_of(tmp_path / "embedded").write_bytes(b"other")
    with pytest.raises(ModelError, match=rf"embedded: .*[0-9a-f]{{64}}.*\b{found}\b"):
        load_campplus(str(tmp_path / "embedded"), sha256=found)


@pytest.mark.parametrize("shape", [(3_999,), (0,), (1, 16_000)])
def test_a_short_or_two_dimensional_wave_is_refused(tiny_encoders: Path, shape: tuple[int, ...]) -> None:
    encoder = load_campplus(str(tiny_encoders / "campplus-small"))
    with pytest.raises(ModelError, match=rf"\b4000\b.*{re.escape(str(list(shape)))}"):
        encoder.embedding(torch.zeros(shape))


@pytest.mark.parametrize("write", [partial(pickle.dump, protocol=2), torch.save])
def test_a_pickle_with_instructions_is_not_run(copy: Path, write: Callable[..., None], harmful: Any) -> None:
    with weights_of(copy).open("wb") as stream:
        write({"xvector.tdnn.linear.weight": harmful}, stream)
    with pytest.raises(ModelError, match=r"campplus_small\.bin .*weights-only"):
        load_campplus(str(copy))
    assert not harmful.target.exists()


@pytest.mark.parametrize(
    "value", [{}, [1, 2], torch.zeros(3), {"xvector.tdnn.linear.weight": 3}, None, "missing", "surplus"]
)
def test_a_wrong_checkpoint_is_refused(copy: Path, value: Any) -> None:
    state = torch.load(weights_of(copy), weights_only=True)
    if isinstance(value, str) and value == "missing":
        del state[[name for name in state if name.endswith("weight")][-1]]
    elif isinstance(value, str):
        state["more"] = torch.zeros(1)
    else:
        state = value
    torch.save(state, weights_of(copy))
    with pytest.raises(ModelError, match=r"^[^\n]*campplus_small\.bin .*CAM\+\+ [^\n]*\(.+\)[^\n]*$"):
        load_campplus(str(copy))


@pytest.mark.parametrize("keep", [0, 100, -100])
def test_truncated_and_missing_files_are_named(copy: Path, keep: int) -> None:
    weights_of(copy).write_bytes(weights_of(copy).read_bytes()[:keep])
    with pytest.raises(ModelError, match=r"campplus_small\.bin"):
        load_campplus(str(copy))
    weights_of(copy).unlink()
    with pytest.raises(ModelError, match=r"configuration\.json .*'campplus_small\.bin'"):
        load_campplus(str(copy))
    (copy / "configuration.json").unlink()
    with pytest.raises(ModelError, match=r"configuration\.json missing"):
        load_campplus(str(copy))


@pytest.mark.parametrize(
    ("model", "shown"),
    [({"pretrained_model": name}, repr(name)) for name in ("../elsewhere.bin", "/etc/passwd", "sub/weights.bin", "..")]
    + [({"pretrained_model": name}, repr(name)) for name in ("", 3, None)]
    + [(model, "model.pretrained_model") for model in (None, "campplus.bin", "{", "[]", "{}")],
)
def test_a_configuration_without_weights_in_its_folder_is_refused(copy: Path, model: object, shown: str) -> None:
    (copy / "sub").mkdir()
    for target in (copy.parent / "elsewhere.bin", copy / "sub" / "weights.bin"):
        shutil.copy(weights_of(copy), target)
    text = str(model) if model in ("{", "[]", "{}") else json.dumps({"model": model})
    (copy / "configuration.json").write_text(text)
    with pytest.raises(ModelError, match=rf"^campplus-copy: configuration\.json .*{re.escape(shown)}"):
        load_campplus(str(copy))


@pytest.mark.parametrize("missing", ["configuration.json", "campplus_small.bin"])
def test_a_partial_download_in_the_cache_is_completed(
    tiny_encoders: Path, copy: Path, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with quiet_imports():
        hub = importlib.import_module("modelscope.hub.snapshot_download")
    asked: list[bool] = []
    state = "empty"

    def download(source: str, revision: str | None = None, local_files_only: bool = False) -> str:
        asked.append(local_files_only)
        if state == "empty" or (state == "offline" and not local_files_only):
            raise ConnectionError("no route")
        if state == "online" and not local_files_only:
            shutil.copy(tiny_encoders / "campplus-small" / missing, copy / missing)
        return str(copy)

    (copy / missing).unlink()
    monkeypatch.setattr(hub, "snapshot_download", download)
    monkeypatch.setattr("audioscore.encoders.hubs.await_hub", lambda kind: None)
    with pytest.raises(ModelError, match=r"^iic/small: .*`audioscore encoders pull`") as caught:
        load_campplus("iic/small", revision="v1.0.0")
    assert missing not in str(caught.value)
    assert asked == [True, False], "the cache first: offline, the hub's client retries for 20 s"
    state = "offline"
    with pytest.raises(ModelError, match=rf"^iic/small: .*{missing}.*`audioscore encoders pull`.*campplus\.source"):
        load_campplus("iic/small")
    state = "incomplete"
    with pytest.raises(ModelError, match=rf"^iic/small: .*{missing}") as caught:
        load_campplus("iic/small")
    assert "encoders pull" not in str(caught.value)
    state = "online"
    encoder = load_campplus("iic/small", revision="v1.0.0")
    assert encoder.dim == load_campplus(str(tiny_encoders / "campplus-small")).dim
    assert (encoder.reference.id, encoder.reference.revision) == ("iic/small", "v1.0.0")


@pytest.mark.parametrize(("precision", "off"), [("bf16", 0.1), ("fp16", 0.02)])
def test_a_lower_precision_is_used_in_the_network(tiny_encoders: Path, precision: Precision, off: float) -> None:
    folder = tiny_encoders / "campplus-small"
    usual, loaded = load_campplus(str(folder)), load_campplus(str(folder), precision=precision)
    assert loaded.reference == usual.reference
    lower = CampplusEncoder(loaded.module, usual.dim, replace(usual.reference, precision=precision), folder)
    dtypes: list[torch.dtype] = []
    lower.module.register_forward_pre_hook(lambda _, inputs: dtypes.append(inputs[0].dtype))
    lower.module.head.conv1.register_forward_hook(lambda _, __, made: dtypes.append(made.dtype))
    embedding, wanted = lower.embedding(noise(2.0)), usual.embedding(noise(2.0))
    assert dtypes[:2] == [torch.float32, {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]]
    assert embedding.dtype == torch.float32
    assert 0 < (embedding - wanted).norm() < off * wanted.norm()
    assert lower.reference.key == f"{usual.reference.key}-{precision}"
