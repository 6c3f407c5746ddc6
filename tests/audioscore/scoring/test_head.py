import numpy as np
import pytest
import torch

from audioscore.encoders.extract import Features
from audioscore.encoders.reference import Kind
from audioscore.scoring import head as head_module
from audioscore.scoring.batch import Batch, collate
from audioscore.scoring.head import ScoreHead, Standardize, raw_outputs

DIMS: dict[Kind, int] = {"muq": 6, "campplus": 5}
BRANCHES: list[tuple[Kind, ...]] = [("muq",), ("campplus",), ("muq", "campplus")]


def clips(count: int = 9, *, kinds: tuple[Kind, ...] = ("muq", "campplus"), seed: int = 0) -> list[Features]:
    chance = torch.Generator().manual_seed(seed)

    def shape(kind: Kind, index: int) -> tuple[int, ...]:
        return (3 + 7 * index, DIMS["muq"]) if kind == "muq" else (DIMS["campplus"],)

    return [{kind: torch.randn(shape(kind, index), generator=chance) for kind in kinds} for index in range(count)]


def make(kinds: tuple[Kind, ...]) -> ScoreHead:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return ScoreHead({kind: DIMS[kind] for kind in kinds}, width=8, hidden=8, dropout=0.3).eval()


@pytest.mark.parametrize("kinds", BRANCHES)
def test_what_a_clip_is_beside_never_changes_its_output(kinds: tuple[Kind, ...]) -> None:
    head, features = make(kinds), clips(kinds=kinds)
    together = raw_outputs(head, features)
    alone = np.concatenate([raw_outputs(head, [clip]) for clip in features])
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-5)
    np.testing.assert_allclose(raw_outputs(head, features[::-1])[::-1], together, rtol=0, atol=1e-5)
    assert np.ptp(together) > 1e-3, "clips that differ get outputs that differ"


def test_what_a_clip_is_padded_with_never_changes_its_output() -> None:
    head, batch = make(("muq", "campplus")), collate(clips())
    assert batch.frames is not None
    padding = torch.arange(batch.frames.shape[1])[None] >= batch.lengths[:, None]
    loud = Batch(batch.lengths, batch.frames.masked_fill(padding[..., None], 1e4), batch.embedding)
    more = Batch(batch.lengths, torch.nn.functional.pad(batch.frames, (0, 0, 0, 50)), batch.embedding)
    with torch.inference_mode():
        for other in (loud, more):
            torch.testing.assert_close(head(other), head(batch), rtol=0, atol=1e-5)


def test_many_clips_are_forwarded_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    head, features = make(("muq",)), clips(kinds=("muq",))
    whole = raw_outputs(head, features)
    monkeypatch.setattr(head_module, "BATCH_CLIPS", 2)
    np.testing.assert_allclose(raw_outputs(head, features), whole, rtol=0, atol=1e-5)
    assert whole.shape == (9,)
    assert whole.dtype == np.float64
    assert raw_outputs(head, []).shape == (0,)


def test_outputs_are_made_in_eval_mode_and_are_the_same_twice() -> None:
    head, features = make(("muq", "campplus")).train(), clips()
    assert np.array_equal(raw_outputs(head, features), raw_outputs(head, features))
    assert not head.training


@pytest.mark.parametrize("kind", ["muq", "campplus"])
def test_each_branch_is_heard(kind: Kind) -> None:
    head, features = make(("muq", "campplus")), clips()
    other = [{**clip, kind: clip[kind] + 1.0} for clip in features]
    assert (np.abs(raw_outputs(head, other) - raw_outputs(head, features)) > 1e-6).all()


@pytest.mark.parametrize("dims", [{}, {"wav2vec": 4}, {"muq": 4, "pitch": 1}])
def test_unknown_branches_are_refused_by_name(dims: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=rf"branches must be muq and/or campplus; got \[{str(sorted(dims))[1:-1]}\]"):
        ScoreHead(dims, width=8, hidden=8, dropout=0.0)


def test_standardize_is_numpys_and_constant_channels_do_not_blow_up() -> None:
    values = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)) * 3 + 7
    values[:, 2] = 0.1
    norm = Standardize(4)
    norm.fit(values)
    out, judge = norm(values).numpy(), values[:, [0, 1, 3]].double().numpy()
    np.testing.assert_allclose(out[:, [0, 1, 3]], (judge - judge.mean(0)) / judge.std(0), atol=1e-5)
    np.testing.assert_allclose(out[:, 2], 0, atol=1e-6)
    moved = norm(torch.full((1, 4), 0.2)).numpy()
    assert abs(moved[0, 2] - 0.1) < 1e-6, "left unscaled"


def test_statistics_travel_with_the_weights_and_are_not_trained() -> None:
    head = make(("muq",))
    assert {"norms.muq.mean", "norms.muq.std"} <= set(head.state_dict())
    assert not any(name.startswith("norms") for name, _ in head.named_parameters())
