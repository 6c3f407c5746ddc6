import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from audioscore.data.clips import Clip
from audioscore.scoring import network
from audioscore.scoring.head import ScoreHead
from audioscore.scoring.network import ScoreNetwork
from audioscore.training.data import TrainingClip, TrainingSplit, fit_statistics, training_clips


def clip(name: str, score: float | None = None) -> Clip:
    return Clip(f"{name}.wav", score, sha256=name * 64)


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(1, 60),
    in_memory=st.integers(1, 60),
    centre=st.floats(-1e4, 1e4),
    spread=st.floats(0.1, 1e3),
    seed=st.integers(0, 99),
)
def test_statistics_are_those_of_numpy(count: int, in_memory: int, centre: float, spread: float, seed: int) -> None:
    """The clips differ in length, so that batches are padded."""
    rng = np.random.default_rng(seed)
    features = [
        {
            "muq": torch.from_numpy(rng.normal(centre, spread, (int(rng.integers(1, 9)), 4))).float(),
            "campplus": torch.from_numpy(rng.normal(centre, spread, 3)).float(),
        }
        for _ in range(count)
    ]
    head = ScoreNetwork(ScoreHead({"muq": 4, "campplus": 3}, width=4, hidden=4, dropout=0.0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network, "BATCH_CLIPS", in_memory)
        fit_statistics(head, features)
    frames = np.concatenate([one["muq"].double().numpy() for one in features])
    voices = np.stack([one["campplus"].double().numpy() for one in features])
    for kind, values in (("muq", frames), ("campplus", voices)):
        norm = head.head.fusion.norms[kind]
        np.testing.assert_allclose(norm.mean.numpy(), values.mean(0), rtol=1e-6, atol=1e-6 * spread)
        if len(values) > 1:
            np.testing.assert_allclose(norm.std.numpy(), values.std(0), rtol=1e-4)


def test_clips_are_sorted_by_content_for_any_order_of_rows_and_groups() -> None:
    scored = [clip("c", 70.0), clip("a", 90.0), clip("b", 80.0)]
    groups = [[clip("f"), clip("e")], [clip("d"), clip("a"), clip("g")]]
    wanted = training_clips(scored, groups)
    assert [(one.clip.audio_file[0], one.score, one.group) for one in wanted] == [
        ("a", 90.0, 0), ("a", -1.0, 1), ("b", 80.0, 0), ("c", 70.0, 0), ("d", 0.0, 1), ("e", -1.0, 2), ("f", 0.0, 2),
        ("g", -2.0, 1),
    ]  # fmt: skip
    for rows in itertools.permutations(scored):
        assert training_clips(rows, groups[::-1]) == wanted


def test_a_clip_without_a_score_outside_a_group_is_left_out() -> None:
    assert training_clips([clip("a"), clip("b", 60.0)]) == [TrainingClip(clip("b", 60.0), 60.0)]


def test_without_groups_scores_are_absolute_and_names_are_the_keys() -> None:
    found = TrainingSplit([], [60.0, 70.0], ["", ""], ["k1", "k2"])
    assert found.groups == (0, 0)
    assert found.names == ("k1", "k2")


def test_a_network_without_normalisation_needs_no_statistics() -> None:
    fit_statistics(SimpleNamespace(head=SimpleNamespace()), [])
