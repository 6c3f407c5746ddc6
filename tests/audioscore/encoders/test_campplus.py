import importlib
import io
import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from audioscore.encoders import campplus
from audioscore.encoders.campplus import CampplusEncoder, fbank, load_campplus
from audioscore.encoders.precision import Precision
from audioscore.encoders.quiet import quiet_imports
from audioscore.errors import ModelError
from audioscore.files import sha256_of
from audioscore.training.pretrain import build_campplus, save_campplus


def noise(seconds: float, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(round(seconds * 16_000), generator=torch.Generator().manual_seed(seed))


def lively(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Statistics and norms as if trained: at their initial values a wrong BatchNorm mode is not noticed."""
    chance = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            for values in (part.running_var, part.weight if part.affine else None):
                if values is not None:
                    values.data.uniform_(0.5, 1.5, generator=chance)
            assert part.running_mean is not None
            part.running_mean.uniform_(-0.3, 0.3, generator=chance)
    return module


@pytest.fixture
def copy(tiny_encoders: Path, tmp_path: Path) -> Path:
    """A copy of the small CAM++ to damage."""
    return Path(shutil.copytree(tiny_encoders / "campplus-small", tmp_path / "campplus-copy"))


def weights_of(folder: Path) -> Path:
    return folder / str(json.loads((folder / "configuration.json").read_text())["model"]["pretrained_model"])


def test_a_full_size_cam_hears_what_modelscopes_own_model_hears(tmp_path: Path) -> None:
    with quiet_imports():
        from modelscope.models.audio.sv.DTDNN import CAMPPlus, SpeakerVerificationCAMPPlus

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        save_campplus(
            lively(CAMPPlus(feat_dim=80, embedding_size=192)), tmp_path / "cam", name="campplus_cn_common.bin"
        )
    judge = SpeakerVerificationCAMPPlus(
        str(tmp_path / "cam"),
        {"fbank_dim": 80, "emb_size": 192, "sample_rate": 16_000},
        device="cpu",
        pretrained_model="campplus_cn_common.bin",
    )
    encoder = load_campplus(str(tmp_path / "cam"))
    assert encoder.dim == 192
    for seed in range(2):
        wave = noise(1.5 + seed, seed)
        torch.testing.assert_close(encoder.embedding(wave), judge(wave)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sizes", [{"dim": 512, "growth": 4, "channels": 16}, {"dim": 24, "growth": 8, "channels": 32}])
def test_sizes_are_read_from_the_weights(tmp_path: Path, sizes: dict[str, int]) -> None:
    with torch.random.fork_rng(devices=[]):
        # The configuration's own word is wrong here: the weights decide.
        save_campplus(build_campplus(**sizes), tmp_path / "cam", dim=192)
    encoder = load_campplus(str(tmp_path / "cam"))
    assert encoder.dim == sizes["dim"]
    assert encoder.embedding(noise(1.0)).shape == (sizes["dim"],)


def test_fbank_is_kaldis_less_its_mean_at_a_frame_each_10_ms() -> None:
    import torchaudio.compliance.kaldi as kaldi

    wave = noise(1.0)
    raw = kaldi.fbank(wave.unsqueeze(0), num_mel_bins=80)
    assert fbank(wave).shape == (98, 80)  # windows of 25 ms that fit into 1 s
    assert torch.equal(fbank(wave), raw - raw.mean(dim=0, keepdim=True))
    np.testing.assert_allclose(fbank(wave).mean(0).numpy(), 0, atol=1e-5)


def test_a_level_change_leaves_the_features_alone() -> None:
    torch.testing.assert_close(fbank(noise(1.0)), fbank(0.25 * noise(1.0)), rtol=0, atol=2e-3)


def test_frozen_in_eval_mode_and_the_same_twice(tiny_encoders: Path) -> None:
    encoder = load_campplus(str(tiny_encoders / "campplus-small"))
    assert [name for name, parameter in encoder.module.named_parameters() if parameter.requires_grad] == []
    assert [name for name, part in encoder.module.named_modules() if part.training] == []
    embedding = encoder.embedding(noise(2.0))
    assert embedding.dtype == torch.float32
    assert torch.equal(embedding, encoder.embedding(noise(2.0)))


def test_a_long_recordings_embedding_is_the_mean_of_its_equal_windows(
    tiny_encoders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(campplus, "WINDOW_SECONDS", 1.0)
    encoder = load_campplus(str(tiny_encoders / "campplus-small"))
    wave = noise(2.4)  # three windows of 0.8 s
    parts = torch.stack([encoder.embedding(part) for part in wave.split(12_800)])
    assert len(parts) == 3
    torch.testing.assert_close(encoder.embedding(wave), parts.mean(0))


def test_loading_leaves_the_callers_chance_alone(tiny_encoders: Path) -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    load_campplus(str(tiny_encoders / "campplus-small"))
    assert torch.equal(torch.rand(3), wanted)


def test_the_reference_and_a_saved_copy_name_the_same_weights(tiny_encoders: Path, tmp_path: Path) -> None:
    encoder = load_campplus(str(tiny_encoders / "campplus-small"))
    assert encoder.reference.id is None
    assert encoder.reference.sha256 == sha256_of(weights_of(tiny_encoders / "campplus-small"))
    encoder.save(tmp_path / "embedded")
    again = load_campplus(str(tmp_path / "embedded"))
    assert again.reference == encoder.reference
    assert torch.equal(again.embedding(noise(1.0)), encoder.embedding(noise(1.0)))


@pytest.mark.parametrize("shape", [(3_999,), (0,), (1, 16_000)])
def test_a_wave_too_short_or_of_two_dimensions_is_refused(tiny_encoders: Path, shape: tuple[int, ...]) -> None:
    encoder = load_campplus(str(tiny_encoders / "campplus-small"))
    with pytest.raises(ModelError, match=r"at least 4000 samples at 16 kHz; got \[.*\]\.$"):
        encoder.embedding(torch.zeros(shape))


class Harmful:
    """What a pickle may hold: an instruction."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


def as_pickle(value: object) -> bytes:
    return pickle.dumps(value, protocol=2)  # the protocol of torch.save


def as_checkpoint(value: object) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


@pytest.mark.parametrize("write", [as_pickle, as_checkpoint])
def test_a_pickle_with_instructions_is_refused_and_not_run(copy: Path, tmp_path: Path, write: Any) -> None:
    weights_of(copy).write_bytes(write({"xvector.tdnn.linear.weight": Harmful(tmp_path / "was-run")}))
    with pytest.raises(ModelError, match=r"campplus_small\.bin is not a weights-only checkpoint, and is not opened"):
        load_campplus(str(copy))
    assert not (tmp_path / "was-run").exists()


@pytest.mark.parametrize("value", [{}, [1, 2], torch.zeros(3), {"xvector.tdnn.linear.weight": 3}, None])
def test_a_checkpoint_of_something_else_is_refused(copy: Path, value: object) -> None:
    torch.save(value, weights_of(copy))
    with pytest.raises(ModelError, match=r"campplus_small\.bin does not hold CAM\+\+ weights \(.+\)\.$") as caught:
        load_campplus(str(copy))
    assert "\n" not in str(caught.value)


def test_a_missing_and_a_surplus_weight_are_refused(copy: Path) -> None:
    state = torch.load(weights_of(copy), weights_only=True)
    last = [name for name in state if name.endswith("weight")][-1]
    torch.save({key: value for key, value in state.items() if key != last}, weights_of(copy))
    with pytest.raises(ModelError, match=r"does not hold CAM\+\+ weights"):
        load_campplus(str(copy))
    torch.save({**state, "more": torch.zeros(1)}, weights_of(copy))
    with pytest.raises(ModelError, match=r"does not hold CAM\+\+ weights"):
        load_campplus(str(copy))


@pytest.mark.parametrize("keep", [0, 100, -100])
def test_cut_weights_are_refused(copy: Path, keep: int) -> None:
    weights_of(copy).write_bytes(weights_of(copy).read_bytes()[:keep])
    with pytest.raises(ModelError, match=r"campplus_small\.bin"):
        load_campplus(str(copy))


def test_missing_configuration_and_missing_weights_are_refused(copy: Path) -> None:
    weights_of(copy).unlink()
    with pytest.raises(ModelError, match=r"names the weights 'campplus_small\.bin', which are not in the folder"):
        load_campplus(str(copy))
    (copy / "configuration.json").unlink()
    with pytest.raises(ModelError, match=r"configuration\.json missing\. Give a ModelScope snapshot folder"):
        load_campplus(str(copy))


@pytest.mark.parametrize("name", ["../elsewhere.bin", "/etc/passwd", "sub/weights.bin", "..", "", 3, None])
def test_a_configuration_that_points_outside_its_folder_is_refused(copy: Path, name: object) -> None:
    shutil.copy(weights_of(copy), copy.parent / "elsewhere.bin")
    (copy / "sub").mkdir()
    shutil.copy(weights_of(copy), copy / "sub" / "weights.bin")
    (copy / "configuration.json").write_text(json.dumps({"model": {"pretrained_model": name}}))
    with pytest.raises(ModelError, match=r"^campplus-copy: configuration\.json names the weights .+ not in the folder"):
        load_campplus(str(copy))


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"model": null}', '{"model": "campplus.bin"}'])
def test_a_configuration_that_names_nothing_is_refused(copy: Path, text: str) -> None:
    (copy / "configuration.json").write_text(text)
    with pytest.raises(ModelError, match=r"configuration\.json names no weights under model\.pretrained_model"):
        load_campplus(str(copy))


def test_a_hub_that_cannot_be_reached_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with quiet_imports():
        hub = importlib.import_module("modelscope.hub.snapshot_download")

    asked: list[bool] = []

    def refuse(source: str, revision: str | None = None, local_files_only: bool = False) -> str:
        asked.append(local_files_only)
        raise ConnectionError("no route")

    monkeypatch.setattr(hub, "snapshot_download", refuse)
    with pytest.raises(ModelError, match=r"^iic/nothing: cannot be fetched from ModelScope\. Run `audioscore enc"):
        load_campplus("iic/nothing", revision="v1.0.0")
    assert asked == [True, False], "the cache first: offline, the hub's own client retries for 20 s"


@pytest.mark.parametrize("lost", ["configuration.json", "campplus_small.bin"])
def test_a_half_download_in_the_cache_is_completed(
    tiny_encoders: Path, copy: Path, lost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with quiet_imports():
        hub = importlib.import_module("modelscope.hub.snapshot_download")

    def download(source: str, revision: str | None = None, local_files_only: bool = False) -> str:
        if not local_files_only:
            shutil.copy(tiny_encoders / "campplus-small" / lost, copy / lost)
        return str(copy)

    (copy / lost).unlink()
    monkeypatch.setattr(hub, "snapshot_download", download)
    assert load_campplus("iic/small").dim == load_campplus(str(tiny_encoders / "campplus-small")).dim


@pytest.mark.parametrize("lost", ["configuration.json", "campplus_small.bin"])
def test_a_half_download_that_cannot_be_completed_is_said(
    copy: Path, lost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with quiet_imports():
        hub = importlib.import_module("modelscope.hub.snapshot_download")

    def offline(source: str, revision: str | None = None, local_files_only: bool = False) -> str:
        if not local_files_only:
            raise ConnectionError("no route")
        return str(copy)

    (copy / lost).unlink()
    monkeypatch.setattr(hub, "snapshot_download", offline)
    with pytest.raises(ModelError) as caught:
        load_campplus("iic/small")
    assert str(caught.value) == (
        f"iic/small: only part of it is in the cache, {lost} missing, and it cannot be fetched from ModelScope. Run "
        "`audioscore encoders pull` where ModelScope can be reached, or give encoders.campplus.source a snapshot "
        "folder."
    )
    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **__: str(copy))
    with pytest.raises(ModelError, match=rf"^iic/small: ModelScope's copy lacks {lost}\. Check its id and its rev"):
        load_campplus("iic/small")


def test_weights_that_are_pinned_load_and_others_are_refused_before_they_are_read(copy: Path) -> None:
    found = sha256_of(weights_of(copy))
    assert load_campplus(str(copy), sha256=found).reference.sha256 == found
    weights_of(copy).write_bytes(b"other")
    with pytest.raises(ModelError, match=rf"campplus-copy: SHA-256 [0-9a-f]{{64}}, but {found} is pinned\. Correct"):
        load_campplus(str(copy), sha256=found)


@pytest.mark.parametrize(("precision", "off"), [("bf16", 0.1), ("fp16", 0.02)])
def test_a_lower_precision_is_entered_where_the_reference_says_it_was_used(
    tiny_encoders: Path, precision: Precision, off: float
) -> None:
    """On a CPU, which computes in these formats too, if slowly: no GPU was at hand."""
    folder = tiny_encoders / "campplus-small"
    usual, loaded = load_campplus(str(folder)), load_campplus(str(folder), precision=precision)
    assert loaded.reference == usual.reference, "a CPU is not asked to"
    lower = CampplusEncoder(loaded.module, usual.dim, replace(usual.reference, precision=precision), folder)
    heard: list[torch.dtype] = []
    lower.module.register_forward_pre_hook(lambda _, inputs: heard.append(inputs[0].dtype))
    lower.module.head.conv1.register_forward_hook(lambda _, __, made: heard.append(made.dtype))
    embedding, wanted = lower.embedding(noise(2.0)), usual.embedding(noise(2.0))
    assert heard[:2] == [torch.float32, {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]]
    assert embedding.dtype == torch.float32
    assert 0 < (embedding - wanted).norm() < off * wanted.norm()
    assert lower.reference.key == f"{usual.reference.key}-{precision}"


def test_a_hub_id_is_taken_from_the_cache_and_is_named_in_the_reference(
    tiny_encoders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with quiet_imports():
        hub = importlib.import_module("modelscope.hub.snapshot_download")

    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **__: str(tiny_encoders / "campplus-small"))
    reference = load_campplus("iic/small", revision="v1.0.0").reference
    assert (reference.id, reference.revision) == ("iic/small", "v1.0.0")
