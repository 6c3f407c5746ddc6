import json
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import get_args
from unittest.mock import Mock

import httpx
import pytest
import torch
from torch import Tensor

from audioscore.encoders.compute import Precision
from audioscore.encoders.muq import MuQEncoder, load_muq
from audioscore.errors import ModelError, UsageError
from audioscore.files import sha256_of

DEPTH = 4
HiddenStates = Callable[[Tensor], tuple[Tensor, ...]]


def noise(seconds: float, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(round(seconds * 24_000), generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def copy(dropout_muq: Path, tmp_path: Path) -> Path:
    """A copy of the folder to damage."""
    return Path(shutil.copytree(dropout_muq, tmp_path / "muq-copy"))


@pytest.mark.parametrize("layer", range(1, DEPTH + 1))
def test_frames_equal_the_full_models_hidden_state(dropout_muq: Path, full_muq: HiddenStates, layer: int) -> None:
    encoder = load_muq(str(dropout_muq), layer=layer)
    wave = noise(1.7)
    states = full_muq(wave)
    assert len(states) == DEPTH + 1
    assert torch.equal(encoder.frames(wave), states[layer])
    assert len(encoder.module.model.conformer.layers) == layer
    assert (encoder.layer, encoder.dim) == (layer, 32)


def test_frames_are_deterministic_and_frozen(dropout_muq: Path) -> None:
    encoder = load_muq(str(dropout_muq), layer=2)
    wave = noise(4.0)
    frames = encoder.frames(wave)
    assert frames.shape == (100, 32)
    assert frames.dtype == torch.float32
    assert torch.equal(frames, encoder.frames(wave))
    assert torch.equal(frames, load_muq(str(dropout_muq), layer=2).frames(wave))
    assert [name for name, parameter in encoder.module.named_parameters() if parameter.requires_grad] == []
    assert [name for name, part in encoder.module.named_modules() if part.training] == []


def test_a_long_recording_is_split_into_equal_windows(dropout_muq: Path, full_muq: HiddenStates) -> None:
    encoder = load_muq(str(dropout_muq), layer=2, window_seconds=2.0)
    wave = noise(5.0)  # 5 s are three windows of 5/3 s, not 2 + 2 + 1
    parts = [encoder.frames(wave[start : start + 40_000]) for start in (0, 40_000, 80_000)]
    assert torch.equal(encoder.frames(wave), torch.cat(parts))
    assert torch.equal(encoder.frames(wave[:48_000]), full_muq(wave[:48_000])[2])
    assert [encoder.windows(samples) for samples in (48_000, 48_001, 120_000)] == [1, 2, 3]
    assert encoder.reference.key.endswith("-w2")


def test_without_windows_frames_equal_the_full_models(dropout_muq: Path, full_muq: HiddenStates) -> None:
    encoder, windowed = load_muq(str(dropout_muq), layer=2, window_seconds=None), load_muq(str(dropout_muq), layer=2)
    wave = noise(40.0)
    frames = encoder.frames(wave)
    assert len(frames) == 1000
    assert torch.equal(frames, full_muq(wave)[2])
    assert (encoder.windows(len(wave)), windowed.windows(len(wave))) == (1, 2)
    assert not torch.allclose(windowed.frames(wave), frames, atol=1e-2)
    assert torch.equal(windowed.frames(wave[: 10 * 24_000]), encoder.frames(wave[: 10 * 24_000]))
    assert (encoder.window, encoder.reference.window) == (None, None)
    positions = encoder.module.model.conformer.embed_positions
    assert positions.cached_sequence_length is None, "threads would overwrite it for each other"
    assert encoder.reference.key == f"{windowed.reference.key}-whole"


@pytest.mark.parametrize(("precision", "off"), [("bf16", 0.03), ("fp16", 0.004)])
def test_a_lower_precision_is_used_in_the_conformer(dropout_muq: Path, precision: Precision, off: float) -> None:
    usual, loaded = load_muq(str(dropout_muq), layer=2), load_muq(str(dropout_muq), layer=2)
    lower = MuQEncoder(loaded.module, 2, replace(loaded.reference, precision=precision), dropout_muq)
    wave = torch.sin(torch.arange(48_000) * (2 * torch.pi * 440 / 24_000))  # its power is beyond fp16
    dtypes: list[torch.dtype] = []
    lower.module.model.conv.register_forward_pre_hook(lambda _, inputs: dtypes.append(inputs[0].dtype))
    layer = lower.module.model.conformer.layers[0].self_attn.linear_q
    layer.register_forward_hook(lambda _, __, made: dtypes.append(made.dtype))
    frames, wanted = lower.frames(wave), usual.frames(wave)
    assert dtypes == [torch.float32, {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]]
    assert frames.dtype == torch.float32
    assert not torch.equal(frames, wanted)
    assert (frames - wanted).norm() < off * wanted.norm()
    assert {value.dtype for value in lower.module.state_dict().values() if value.is_floating_point()} == {torch.float32}
    assert lower.reference.key == f"{usual.reference.key}-{precision}"


def test_a_cpu_computes_in_fp32_within_autocast(dropout_muq: Path) -> None:
    encoder, wave = load_muq(str(dropout_muq), layer=2), noise(1.0)
    wanted = encoder.frames(wave)
    for precision in get_args(Precision):
        lower = load_muq(str(dropout_muq), layer=2, precision=precision)
        assert lower.reference == encoder.reference
        assert torch.equal(lower.frames(wave), wanted)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(encoder.frames(wave), wanted)


def test_positions_are_exact_in_a_lower_precision(dropout_muq: Path) -> None:
    """Frame 257 is no bf16 number: rounded, two frames would have one position."""
    usual = load_muq(str(dropout_muq), layer=2, window_seconds=None)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        states = torch.zeros(1, 2_000, 32, dtype=torch.bfloat16)
        table = usual.module.model.conformer.embed_positions(states)
    wanted = usual.module.model.conformer.embed_positions(states.float())
    assert torch.equal(table, wanted.bfloat16())
    assert len(wanted[0, :, 0, 0].unique(dim=0)) == 2_000


def test_the_pinned_hash_is_checked_before_loading(copy: Path) -> None:
    found = load_muq(str(copy), layer=1).reference.sha256
    assert load_muq(str(copy), layer=1, sha256=found).reference.sha256 == found
    (copy / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(ModelError, match=rf"muq-copy: .*[0-9a-f]{{64}}.*\b{found}\b"):
        load_muq(str(copy), layer=1, sha256=found)


def test_loading_keeps_the_random_state_and_prints_nothing(
    dropout_muq: Path, copy: Path, capsys: pytest.CaptureFixture[str], global_rng: Callable[[], object]
) -> None:
    before = global_rng()
    load_muq(str(dropout_muq), layer=1)
    assert global_rng() == before
    (copy / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(ModelError):
        load_muq(str(copy), layer=1)
    assert global_rng() == before
    assert capsys.readouterr().out == ""


def test_a_saved_encoder_is_complete(dropout_muq: Path, tmp_path: Path) -> None:
    encoder = load_muq(str(dropout_muq), layer=1)
    reference = encoder.reference
    assert (reference.id, reference.kind, reference.layer) == (None, "muq", 1)
    assert reference.sha256 == sha256_of(dropout_muq / "config.json", dropout_muq / "model.safetensors")
    assert str(dropout_muq) not in json.dumps(reference.to_json())
    encoder.save(tmp_path / "embedded" / "muq")
    again = load_muq(str(tmp_path / "embedded" / "muq"), layer=1)
    assert again.reference == reference
    assert torch.equal(again.frames(noise(1.0)), encoder.frames(noise(1.0)))
    assert len(load_muq(str(tmp_path / "embedded" / "muq"), layer=DEPTH).module.model.conformer.layers) == DEPTH


def test_invalid_layers_windows_and_waves_are_refused(dropout_muq: Path) -> None:
    for layer in (0, -1, DEPTH + 1):
        with pytest.raises(ModelError, match=rf"layer {layer}: .*1 to {DEPTH}\."):
            load_muq(str(dropout_muq), layer=layer)
    for seconds in (0.0, 0.49, -30.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match=rf"{seconds} s: .*\b0\.5\b"):
            load_muq(str(dropout_muq), layer=1, window_seconds=seconds)
    encoder = load_muq(str(dropout_muq), layer=1)
    for shape in ((5_999,), (0,), (1, 24_000)):
        with pytest.raises(ModelError, match=rf"\b6000\b.*{re.escape(str(list(shape)))}"):
            encoder.frames(torch.zeros(shape))


@pytest.mark.parametrize(
    ("names", "keep", "shown"),
    [
        (["config.json"], None, "config.json missing"),
        (["model.safetensors"], None, "model.safetensors missing"),
        (["config.json", "model.safetensors"], None, "config.json and model.safetensors missing"),
        *((["model.safetensors"], keep, "model.safetensors") for keep in (0, 5, 1000, -1)),
    ],
)
def test_missing_and_truncated_files_are_named(copy: Path, names: list[str], keep: int | None, shown: str) -> None:
    for path in [copy / name for name in names]:
        path.unlink() if keep is None else path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelError, match=rf"^[^\n]*muq-copy: [^\n]*{re.escape(shown)}[^\n]*$"):
        load_muq(str(copy), layer=1)


@pytest.mark.parametrize(
    "change",
    [
        '{"encoder_dim": 48}',  # other sizes than the weights'
        '{"encoder_depth": 2}',  # weights left over
        '{"encoder_depth": 5}',  # weights missing
        '{"w2v2_config": {}}', '{"stat": null}', '{"encoder_dim": "wide"}', "{", "[]", "",
    ],
)  # fmt: skip
def test_a_configuration_that_does_not_fit_the_weights_is_refused(copy: Path, change: str) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "ignored_by_muqs_own_loader": 1}))
    assert load_muq(str(copy), layer=1).dim == 32
    (copy / "config.json").write_text(json.dumps(config | json.loads(change)) if ":" in change else change)
    with pytest.raises(ModelError, match=r"^[^\n]*config\.json \([^\n]+\)[^\n]*$"):
        load_muq(str(copy), layer=1)


def test_an_offline_hub_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What HF_HUB_OFFLINE=1 and HF_HUB_CACHE set in a fresh interpreter.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match=r"^somebody/muq: [^\n]*`audioscore encoders pull`[^\n]*$"):
        load_muq("somebody/muq", layer=1)


def test_a_hub_that_is_down_is_named_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match=r"^somebody/muq: .*HF_ENDPOINT"):
        load_muq("somebody/muq", layer=1)


@pytest.mark.parametrize("error", [httpx.ConnectError, httpx.ReadTimeout, httpx.RemoteProtocolError])
def test_an_http_error_of_the_hub_is_a_model_error(
    monkeypatch: pytest.MonkeyPatch, error: type[httpx.TransportError]
) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", Mock(side_effect=error("no route\nto host")))
    monkeypatch.setattr("audioscore.encoders.hubs.await_hub", lambda kind: None)
    with pytest.raises(ModelError) as caught:
        load_muq("somebody/muq", layer=1)
    names = ("somebody/muq: ", "(no route)", "`audioscore encoders pull`", "encoders.muq.source", "config.json",
             "model.safetensors")  # fmt: skip
    assert [name for name in names if name not in str(caught.value)] == []
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("window", [30.0, None])
def test_threads_encode_clips_of_many_lengths_at_once(tiny_encoders: Path, window: float | None) -> None:
    encoder = load_muq(str(tiny_encoders / "muq-small"), layer=1, window_seconds=window)
    generator = torch.Generator().manual_seed(3)
    waves = [torch.randn(12_000 + 960 * number, generator=generator) * 0.1 for number in range(24)]
    alone = [encoder.frames(wave) for wave in waves]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(encoder.frames, waves * 4))
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(alone * 4, together, strict=True))
