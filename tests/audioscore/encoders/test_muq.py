import json
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import torch
from torch import Tensor

from audioscore.encoders.muq import MuQEncoder, load_muq
from audioscore.encoders.precision import Precision
from audioscore.errors import ModelError, UsageError
from audioscore.files import sha256_of
from audioscore.training.pretrain import build_muq, muq_config, save_muq

DEPTH = 3


def noise(seconds: float, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(round(seconds * 24_000), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A MuQ of three layers whose norms all do something: at their initial values one too many is not noticed."""
    target = tmp_path_factory.mktemp("muq") / "weights"
    config = muq_config(dim=32, depth=DEPTH, conv_dim=8, codebook=64)
    with torch.random.fork_rng(devices=[]):
        model = build_muq(config, seed=3)
        for module in model.modules():
            if isinstance(module, torch.nn.LayerNorm):
                torch.nn.init.uniform_(module.weight, 0.2, 2.0)
                torch.nn.init.uniform_(module.bias, -1.0, 1.0)
    save_muq(model, config, target)
    return target


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """A copy of the folder to damage."""
    return Path(shutil.copytree(folder, tmp_path / "muq-copy"))


@pytest.fixture(scope="module")
def full(folder: Path) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """Judge: every hidden state of the package's own model, loaded by its own loader."""
    from muq import MuQ

    model = MuQ.from_pretrained(str(folder)).eval()

    def hidden_states(wave: Tensor) -> tuple[Tensor, ...]:
        with torch.inference_mode():
            return tuple(state[0] for state in model(wave[None]).hidden_states)

    return hidden_states


@pytest.mark.parametrize("layer", range(1, DEPTH + 1))
def test_frames_are_the_full_models_hidden_state_bit_for_bit(
    folder: Path, full: Callable[[Tensor], tuple[Tensor, ...]], layer: int
) -> None:
    encoder = load_muq(str(folder), layer=layer)
    wave = noise(1.7)
    states = full(wave)
    assert len(states) == DEPTH + 1
    assert torch.equal(encoder.frames(wave), states[layer])
    assert len(encoder.module.model.conformer.layers) == layer
    assert (encoder.layer, encoder.dim) == (layer, 32)


def test_a_final_norm_too_many_would_have_been_noticed(
    folder: Path, full: Callable[[Tensor], tuple[Tensor, ...]]
) -> None:
    encoder = load_muq(str(folder), layer=1)
    wave = noise(1.0)
    norm = load_muq(str(folder), layer=DEPTH).module.model.conformer.layer_norm
    wanted = full(wave)[1]
    assert not torch.allclose(norm(wanted), encoder.frames(wave), rtol=0.1, atol=0.1)


def test_25_frames_a_second_the_same_twice_and_after_a_reload(folder: Path) -> None:
    encoder = load_muq(str(folder), layer=2)
    wave = noise(4.0)
    frames = encoder.frames(wave)
    assert frames.shape == (100, 32)
    assert frames.dtype == torch.float32
    assert torch.equal(frames, encoder.frames(wave))
    assert torch.equal(frames, load_muq(str(folder), layer=2).frames(wave))


def test_nothing_is_trainable_and_everything_is_in_eval_mode(folder: Path) -> None:
    module = load_muq(str(folder), layer=2).module
    assert [name for name, parameter in module.named_parameters() if parameter.requires_grad] == []
    assert [name for name, part in module.named_modules() if part.training] == []


def test_a_long_recording_is_cut_into_equal_windows_joined_in_time(folder: Path) -> None:
    encoder = load_muq(str(folder), layer=2, window_seconds=2.0)
    wave = noise(5.0)  # 5 s are three windows of 5/3 s, not 2 + 2 + 1
    parts = [encoder.frames(wave[start : start + 40_000]) for start in (0, 40_000, 80_000)]
    assert torch.equal(encoder.frames(wave), torch.cat(parts))
    assert torch.equal(encoder.frames(wave[:48_000]), encoder._window(wave[:48_000])), "2 s fit into one window"
    assert [encoder.windows(samples) for samples in (48_000, 48_001, 120_000)] == [1, 2, 3]
    assert encoder.reference.key.endswith("-w2")


def test_heard_whole_a_recording_is_one_window_of_the_full_model_bit_for_bit(
    folder: Path, full: Callable[[Tensor], tuple[Tensor, ...]]
) -> None:
    encoder, windowed = load_muq(str(folder), layer=2, window_seconds=None), load_muq(str(folder), layer=2)
    wave = noise(40.0)
    frames = encoder.frames(wave)
    assert len(frames) == 1000
    assert torch.equal(frames, full(wave)[2])
    assert (encoder.windows(len(wave)), windowed.windows(len(wave))) == (1, 2)
    assert not torch.allclose(windowed.frames(wave), frames, atol=1e-2), "the windows' edges are heard"
    assert torch.equal(windowed.frames(wave[: 10 * 24_000]), encoder.frames(wave[: 10 * 24_000]))
    assert (encoder.window, encoder.reference.window) == (None, None)
    shared = encoder.module.model.conformer.embed_positions
    assert shared.cached_sequence_length is None, "threads that hear side by side would overwrite it for each other"
    assert encoder.reference.key == f"{windowed.reference.key}-whole"


@pytest.mark.parametrize("seconds", [0.0, 0.49, -30.0, float("nan"), float("inf")])
def test_a_window_that_holds_nothing_or_everything_is_refused(folder: Path, seconds: float) -> None:
    with pytest.raises(UsageError, match=rf"^windows of {seconds} s: MuQ needs at least 0\.5\. Give more, or null for"):
        load_muq(str(folder), layer=1, window_seconds=seconds)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_on_a_cpu_every_precision_is_fp32(folder: Path, precision: Precision) -> None:
    encoder, usual = load_muq(str(folder), layer=2, precision=precision), load_muq(str(folder), layer=2)
    assert encoder.reference == usual.reference
    assert torch.equal(encoder.frames(noise(1.0)), usual.frames(noise(1.0)))


@pytest.mark.parametrize(("precision", "off"), [("bf16", 0.03), ("fp16", 0.004)])
def test_a_lower_precision_is_entered_where_the_reference_says_it_was_used(
    folder: Path, precision: Precision, off: float
) -> None:
    """On a CPU, which computes in these formats too, if slowly: no GPU was at hand."""
    usual, loaded = load_muq(str(folder), layer=2), load_muq(str(folder), layer=2)
    lower = MuQEncoder(loaded.module, 2, replace(loaded.reference, precision=precision), folder)
    wave = torch.sin(torch.arange(48_000) * (2 * torch.pi * 440 / 24_000))  # its power is beyond fp16
    heard: list[torch.dtype] = []
    lower.module.model.conv.register_forward_pre_hook(lambda _, inputs: heard.append(inputs[0].dtype))
    layer = lower.module.model.conformer.layers[0].self_attn.linear_q
    layer.register_forward_hook(lambda _, __, made: heard.append(made.dtype))
    frames, wanted = lower.frames(wave), usual.frames(wave)
    assert heard == [torch.float32, {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]]
    assert frames.dtype == torch.float32
    assert not torch.equal(frames, wanted)
    assert (frames - wanted).norm() < off * wanted.norm()
    assert {value.dtype for value in lower.module.state_dict().values() if value.is_floating_point()} == {torch.float32}
    assert lower.reference.key == f"{usual.reference.key}-{precision}"


def test_positions_are_as_exact_in_a_lower_precision(folder: Path) -> None:
    """Heard whole, frame 257 is no bf16 number: rounded, it would share its place with a neighbour."""
    usual = load_muq(str(folder), layer=2, window_seconds=None)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        states = torch.zeros(1, 2_000, 32, dtype=torch.bfloat16)
        table = usual.module.model.conformer.embed_positions(states)
    wanted = usual.module.model.conformer.embed_positions(states.float())
    assert torch.equal(table, wanted.bfloat16())
    assert len(wanted[0, :, 0, 0].unique(dim=0)) == 2_000


def test_fp32_stays_fp32_within_a_callers_autocast(folder: Path) -> None:
    encoder = load_muq(str(folder), layer=2)
    wanted = encoder.frames(noise(1.0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(encoder.frames(noise(1.0)), wanted)


def test_weights_that_are_pinned_load_and_others_are_refused_before_they_are_read(copy: Path) -> None:
    found = load_muq(str(copy), layer=1).reference.sha256
    assert load_muq(str(copy), layer=1, sha256=found).reference.sha256 == found
    (copy / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(ModelError, match=rf"muq-copy: SHA-256 [0-9a-f]{{64}}, but {found} is pinned\. Correct the pin"):
        load_muq(str(copy), layer=1, sha256=found)


def test_loading_leaves_the_callers_chance_alone_and_stdout_empty(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    random.seed(5)
    torch.manual_seed(5)
    wanted = random.random(), torch.rand(3)
    random.seed(5)
    torch.manual_seed(5)
    load_muq(str(folder), layer=1)
    assert random.random() == wanted[0]
    assert torch.equal(torch.rand(3), wanted[1])
    assert capsys.readouterr().out == ""


def test_a_failed_load_leaves_the_callers_chance_alone(copy: Path) -> None:
    (copy / "model.safetensors").write_bytes(b"not weights")
    random.seed(5)
    wanted = random.random()
    random.seed(5)
    with pytest.raises(ModelError):
        load_muq(str(copy), layer=1)
    assert random.random() == wanted


def test_the_reference_names_the_weights_and_no_path(folder: Path) -> None:
    reference = load_muq(str(folder), layer=2).reference
    assert reference.id is None
    assert (reference.kind, reference.layer) == ("muq", 2)
    assert reference.sha256 == sha256_of(folder / "config.json", folder / "model.safetensors")
    assert str(folder) not in json.dumps(reference.to_json())


def test_a_saved_encoder_is_whole_and_hears_the_same(folder: Path, tmp_path: Path) -> None:
    encoder = load_muq(str(folder), layer=1)
    encoder.save(tmp_path / "embedded" / "muq")
    again = load_muq(str(tmp_path / "embedded" / "muq"), layer=1)
    assert again.reference == encoder.reference
    assert torch.equal(again.frames(noise(1.0)), encoder.frames(noise(1.0)))
    assert len(load_muq(str(tmp_path / "embedded" / "muq"), layer=DEPTH).module.model.conformer.layers) == DEPTH


@pytest.mark.parametrize("layer", [0, -1, DEPTH + 1])
def test_a_layer_that_is_not_there_is_refused(folder: Path, layer: int) -> None:
    with pytest.raises(ModelError, match=rf"^MuQ layer {layer}: this model has layers 1 to {DEPTH}\. Set encoders"):
        load_muq(str(folder), layer=layer)


@pytest.mark.parametrize("shape", [(5_999,), (0,), (1, 24_000)])
def test_a_wave_too_short_or_of_two_dimensions_is_refused(folder: Path, shape: tuple[int, ...]) -> None:
    encoder = load_muq(str(folder), layer=1)
    with pytest.raises(ModelError, match=r"at least 6000 samples at 24 kHz; got \[.*\]\.$"):
        encoder.frames(torch.zeros(shape))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_an_incomplete_folder_is_refused_naming_what_is_missing(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(ModelError, match=rf"not a MuQ folder, {name} missing\. Give a folder"):
        load_muq(str(copy), layer=1)


def test_a_folder_that_is_not_there_names_both_files(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json and model\.safetensors missing"):
        load_muq(str(tmp_path / "nowhere"), layer=1)


@pytest.mark.parametrize("keep", [0, 5, 1000, -1])
def test_damaged_weights_are_refused_in_one_sentence(copy: Path, keep: int) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(ModelError, match=r"muq-copy: model\.safetensors is damaged \(.+\)\. Give a folder") as caught:
        load_muq(str(copy), layer=1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"encoder_dim": 48},  # other sizes than the weights'
        {"encoder_depth": 2},  # weights left over
        {"encoder_depth": 4},  # weights missing
        {"w2v2_config": {}},
        {"stat": None},
        {"encoder_dim": "wide"},
    ],
)
def test_a_configuration_that_does_not_fit_the_weights_is_refused(copy: Path, change: dict[str, object]) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ModelError, match=r"MuQ's weights do not fit its config\.json \(.+\)\.$") as caught:
        load_muq(str(copy), layer=1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_a_configuration_that_is_no_json_object_is_refused(copy: Path, text: str) -> None:
    (copy / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"do not fit its config\.json \(.+\)\.$"):
        load_muq(str(copy), layer=1)


def test_keys_that_muqs_own_loader_ignores_are_ignored(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "added_by_a_later_version": 1}))
    assert load_muq(str(copy), layer=1).dim == 32


def test_a_hub_that_cannot_be_reached_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    # What HF_HUB_OFFLINE=1 and HF_HUB_CACHE set in a fresh interpreter.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        ModelError, match=r"^somebody/muq: cannot be fetched \(.+\)\. Run `audioscore encoders pull` where Hugging Face"
    ) as caught:
        load_muq("somebody/muq", layer=1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fault", [httpx.ConnectError, httpx.ReadTimeout, httpx.RemoteProtocolError])
def test_what_the_hubs_http_library_raises_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, fault: type[httpx.TransportError]
) -> None:
    import huggingface_hub

    def refuse(*_: object, **__: object) -> str:
        raise fault("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(ModelError) as caught:
        load_muq("somebody/muq", layer=1)
    assert str(caught.value) == (
        "somebody/muq: cannot be fetched (no route). Run `audioscore encoders pull` where Hugging Face can be reached, "
        "or give encoders.muq.source a folder with config.json and model.safetensors."
    )


@pytest.mark.parametrize("window", [30.0, None])
def test_threads_hear_clips_of_many_lengths_at_once(tiny_encoders: Path, window: float | None) -> None:
    """The network's own cache of positions belongs to the last clip, and is replaced."""
    from concurrent.futures import ThreadPoolExecutor

    encoder = load_muq(str(tiny_encoders / "muq-small"), layer=1, window_seconds=window)
    generator = torch.Generator().manual_seed(3)
    waves = [torch.randn(12_000 + 960 * place, generator=generator) * 0.1 for place in range(24)]
    alone = [encoder.frames(wave) for wave in waves]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(encoder.frames, waves * 4))
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(alone * 4, together, strict=True))
