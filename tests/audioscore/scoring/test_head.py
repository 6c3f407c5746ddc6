from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from audioscore.encoders.features import Features, Kind
from audioscore.errors import ModelError
from audioscore.scoring.fusion import Standardize
from audioscore.scoring.head import ScoreHead, build_head
from audioscore.scoring.network import Batch, collate

DIMS: dict[Kind, int] = {"muq": 6, "campplus": 5}
BRANCHES: list[tuple[Kind, ...]] = [("muq",), ("campplus",), ("muq", "campplus")]
KINDS = ["light", "attention", "songeval"]


def clips(count: int = 9, *, kinds: tuple[Kind, ...] = ("muq", "campplus"), seed: int = 0) -> list[Features]:
    generator = torch.Generator().manual_seed(seed)

    def shape(kind: Kind, index: int) -> tuple[int, ...]:
        return (3 + 7 * index, DIMS["muq"]) if kind == "muq" else (DIMS["campplus"],)

    return [{kind: torch.randn(shape(kind, index), generator=generator) for kind in kinds} for index in range(count)]


def make(kinds: tuple[Kind, ...], kind: str = "light", *, pooled: bool = False) -> ScoreHead:
    """In eval mode; every norm has weights of its own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        dims: dict[str, int] = {name: DIMS[name] for name in kinds}
        head = ScoreHead(dims, width=8, hidden=8, dropout=0.3, kind=kind, pooled=pooled, heads=4, layers=2).eval()
        for name, dim in dims.items():
            norm = head.fusion.norms[name]
            assert isinstance(norm, Standardize)
            norm.set(0.5 * torch.randn(dim), 0.5 + torch.rand(dim))
        for part in head.modules():
            if isinstance(part, nn.LayerNorm):
                nn.init.uniform_(part.weight, 0.5, 1.5)
                nn.init.uniform_(part.bias, -0.5, 0.5)
    return head


@torch.inference_mode()
@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("kinds", BRANCHES)
@pytest.mark.parametrize("kind", KINDS)
def test_batch_mates_change_nothing(kind: str, kinds: tuple[Kind, ...], pooled: bool) -> None:
    head, features = make(kinds, kind, pooled=pooled), clips(kinds=kinds)
    together = head(collate(features))
    alone = torch.cat([head(collate([clip])) for clip in features])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    torch.testing.assert_close(head(collate(features[::-1])).flip(0), together, rtol=0, atol=1e-5)
    assert together.shape == (9,)
    assert np.ptp(together.numpy()) > 1e-3


@torch.inference_mode()
@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_nothing(kind: str, pooled: bool) -> None:
    head, batch = make(("muq", "campplus"), kind, pooled=pooled), collate(clips())
    padding = torch.arange(batch.frames.shape[1])[None] >= batch.lengths[:, None]
    loud = Batch(batch.lengths, batch.frames.masked_fill(padding[..., None], 1e4), batch.embedding)
    more = Batch(batch.lengths, nn.functional.pad(batch.frames, (0, 0, 0, 50)), batch.embedding)
    for other in (loud, more):
        torch.testing.assert_close(head(other), head(batch), rtol=0, atol=1e-5)


def pooled_by_hand(head: ScoreHead, clip: Features) -> list[np.ndarray]:
    """Pooling of one clip in numpy, float64, for all kinds but songeval: mean, deviation, weighted mean."""
    state = {name: value.double().numpy() for name, value in head.state_dict().items()}
    parts = {}
    for name in head.fusion.dims:
        value = (clip[name].double().numpy() - state[f"fusion.norms.{name}.mean"]) / state[f"fusion.norms.{name}.std"]
        parts[name] = value @ state[f"fusion.projections.{name}.weight"].T + state[f"fusion.projections.{name}.bias"]
    frames = parts["muq"]
    if not head.fusion.pooled:
        frames = np.concatenate([frames, np.broadcast_to(parts["campplus"], frames.shape)], axis=1)
    weights = np.exp(frames @ state["attention.score.weight"][0] + state["attention.score.bias"])
    weighted = weights / weights.sum() @ frames
    found = [weighted] if head.kind == "attention" else [frames.mean(0), np.sqrt(frames.var(0) + 1e-6), weighted]
    return [*found, parts["campplus"]] if head.fusion.pooled else found


@torch.inference_mode()
@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("kind", ["light", "attention"])
def test_a_representation_is_the_closed_form(kind: str, pooled: bool) -> None:
    head, features = make(("muq", "campplus"), kind, pooled=pooled), clips()
    found = head.represent(collate(features))
    assert found.shape == (9, head.representation_dim)
    wanted = np.stack([np.concatenate(pooled_by_hand(head, clip)) for clip in features])
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("pooled", [False, True])
def test_the_songeval_head_reads_the_fused_frames(pooled: bool) -> None:
    head, batch = make(("muq", "campplus"), "songeval", pooled=pooled), collate(clips())
    joint, mask, voice = head.fusion(batch)
    wanted = head.songeval(joint, mask)
    found = head.represent(batch)
    assert found.shape == (9, head.representation_dim)
    assert torch.equal(found[:, : wanted.shape[1]], wanted)
    if voice is not None:
        assert torch.equal(found[:, wanted.shape[1] :], voice)
    assert (found.shape[1] == wanted.shape[1]) is not pooled


@torch.inference_mode()
@pytest.mark.parametrize("kind", KINDS)
def test_the_output_is_computed_from_the_representation(kind: str) -> None:
    head, batch = make(("muq", "campplus"), kind), collate(clips())
    assert torch.equal(head(batch), head.predict(head.represent(batch)))


@torch.inference_mode()
@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("branch", ["muq", "campplus"])
@pytest.mark.parametrize("kind", KINDS)
def test_each_branch_changes_the_output(kind: str, branch: Kind, pooled: bool) -> None:
    head, features = make(("muq", "campplus"), kind, pooled=pooled), clips()
    other = [{**clip, branch: clip[branch] + 1.0} for clip in features]
    assert ((head(collate(other)) - head(collate(features))).abs() > 1e-6).all()


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_learns_from_clips_of_any_length(kind: str, pooled: bool) -> None:
    head = make(("muq", "campplus"), kind, pooled=pooled)
    head(collate(clips())).square().sum().backward()
    dead = {name for name, value in head.named_parameters() if value.grad is None or not value.grad.any()}
    assert dead <= {"attention.score.bias"}  # softmax ignores a constant


@torch.inference_mode()
@pytest.mark.parametrize("kind", KINDS)
def test_a_clip_of_one_frame_has_an_output(kind: str) -> None:
    head = make(("muq",), kind)
    assert head(collate([{"muq": torch.ones(1, 6)}])).isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_description_builds_the_head_it_describes(kind: str) -> None:
    sizes = {"dims": {"muq": 6, "campplus": 5}, "width": 8, "hidden": 8, "dropout": 0.3, "kind": kind}
    more = {"pooled": True, "heads": 4, "layers": 2}
    with torch.random.fork_rng(devices=[]):
        built = build_head({**sizes, **more})
    wanted = make(("muq", "campplus"), kind, pooled=True).state_dict()
    assert {name: value.shape for name, value in built.state_dict().items()} == {
        name: value.shape for name, value in wanted.items()
    }
    assert built.kind == kind


def test_a_head_without_a_kind_is_light() -> None:
    built = build_head({"dims": {"muq": 6}, "width": 8, "hidden": 8, "dropout": 0.3})
    assert isinstance(built, ScoreHead)
    assert built.kind == "light"


SIZES: dict[str, Any] = {"dims": {"muq": 6}, "width": 8, "hidden": 8, "dropout": 0.3}


@pytest.mark.parametrize(("arguments", "match"), [
    ({}, "missing"), ({**SIZES, "pools": 3}, "pools"),
    ({**SIZES, "dims": {"pitch": 1}}, r"\['pitch'\]"),
    ({**SIZES, "kind": "deep"}, "light.*attention.*songeval.*'deep'"),
    ({"kind": "predecessor", "dims": {"muq": 6}}, "dims"), ({**SIZES, "width": -1}, ""),
    ({**SIZES, "width": "wide"}, ""), ({**SIZES, "dropout": 3.0}, "dropout"),
])  # fmt: skip
def test_an_invalid_head_description_is_an_error(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ModelError, match=rf"head .*\(.*{match}.*\)"):
        build_head(arguments)
