import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from audioscore.encoders import muq
from audioscore.encoders.muq import load_muq
from audioscore.errors import ModelError
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


def test_a_long_recording_is_cut_into_equal_windows_joined_in_time(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(muq, "WINDOW_SECONDS", 2.0)
    encoder = load_muq(str(folder), layer=2)
    wave = noise(5.0)  # 5 s are three windows of 5/3 s, not 2 + 2 + 1
    parts = [encoder.frames(wave[start : start + 40_000]) for start in (0, 40_000, 80_000)]
    assert torch.equal(encoder.frames(wave), torch.cat(parts))
    assert torch.equal(encoder.frames(wave[:48_000]), encoder._window(wave[:48_000])), "2 s fit into one window"


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
        ModelError, match=r"^somebody/muq: cannot be fetched \(.+\)\. Go online once, or give"
    ) as caught:
        load_muq("somebody/muq", layer=1)
    assert "\n" not in str(caught.value)


def test_threads_hear_clips_of_many_lengths_at_once(tiny_encoders: Path) -> None:
    """The network's own cache of positions belongs to the last clip, and is replaced."""
    from concurrent.futures import ThreadPoolExecutor

    encoder = load_muq(str(tiny_encoders / "muq-small"), layer=1)
    generator = torch.Generator().manual_seed(3)
    waves = [torch.randn(12_000 + 960 * place, generator=generator) * 0.1 for place in range(24)]
    alone = [encoder.frames(wave) for wave in waves]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(encoder.frames, waves * 4))
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(alone * 4, together, strict=True))
