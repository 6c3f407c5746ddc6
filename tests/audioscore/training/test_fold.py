import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from audioscore.data.clips import Clip
from audioscore.scoring.fusion import Standardize
from audioscore.training import fold
from audioscore.training.fold import Entry, Fold, entries_of, fit_statistics


def clip(name: str, score: float | None = None) -> Clip:
    return Clip(f"{name}.wav", score, sha256=name * 64)


def parts_of(count: int, cuts: list[int]) -> list[slice]:
    ends = sorted({0, count, *(cut % (count + 1) for cut in cuts)})
    return [slice(first, last) for first, last in itertools.pairwise(ends)]


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(1, 60),
    cuts=st.lists(st.integers(0, 60), max_size=6),
    centre=st.floats(-1e4, 1e4),
    spread=st.floats(1e-3, 1e3),
    seed=st.integers(0, 99),
)
def test_running_statistics_are_numpys_however_the_clips_are_split(
    count: int, cuts: list[int], centre: float, spread: float, seed: int
) -> None:
    values = torch.from_numpy(np.random.default_rng(seed).normal(centre, spread, (count, 3))).float()
    sums = torch.zeros(3, 3, dtype=torch.float64)
    for part in parts_of(count, cuts):
        fold._add(sums, values[part])
    judge = values.double().numpy()
    assert (sums[0] == count).all()
    np.testing.assert_allclose(sums[1].numpy(), judge.mean(0), rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose((sums[2] / count).numpy(), judge.var(0), rtol=1e-6, atol=1e-12 * centre**2 + 1e-12)


@settings(max_examples=10, deadline=None)
@given(cuts=st.lists(st.integers(0, 20), max_size=4), seed=st.integers(0, 99))
def test_statistics_do_not_depend_on_how_many_clips_fit_in_memory(cuts: list[int], seed: int) -> None:
    """Any split into batches, padding and all, gives numpy's figures over the real frames."""
    draw = np.random.default_rng(seed)
    features = [{"muq": torch.from_numpy(draw.normal(3, 2, (int(draw.integers(1, 9)), 4))).float()} for _ in range(20)]

    def batches(network: Any, given_features: Any) -> Any:
        from audioscore.scoring.batch import collate

        for part in parts_of(20, cuts):
            yield collate(given_features[part])

    norm = Standardize(4)
    network = SimpleNamespace(
        head=SimpleNamespace(fusion=SimpleNamespace(norms={"muq": norm})), eval=lambda: None, hear=lambda batch: batch
    )
    before, fold.batches = fold.batches, batches
    try:
        fit_statistics(network, features)
    finally:
        fold.batches = before
    frames = np.concatenate([one["muq"].double().numpy() for one in features])
    np.testing.assert_allclose(norm.mean.numpy(), frames.mean(0), atol=1e-6)
    np.testing.assert_allclose(norm.std.numpy(), frames.std(0), atol=1e-6)


def test_entries_are_sorted_by_content_whatever_the_order_of_rows_and_groups() -> None:
    scored = [clip("c", 70.0), clip("a", 90.0), clip("b", 80.0)]
    groups = [[clip("f"), clip("e")], [clip("d"), clip("a"), clip("g")]]
    wanted = entries_of(scored, groups)
    assert [(entry.clip.audio_file[0], entry.score, entry.group) for entry in wanted] == [
        ("a", 90.0, 0), ("a", -1.0, 1), ("b", 80.0, 0), ("c", 70.0, 0), ("d", 0.0, 1), ("e", -1.0, 2), ("f", 0.0, 2),
        ("g", -2.0, 1),
    ]  # fmt: skip
    for rows in itertools.permutations(scored):
        assert entries_of(rows, groups[::-1]) == wanted


def test_a_clip_without_a_score_outside_a_group_is_no_entry() -> None:
    assert entries_of([clip("a"), clip("b", 60.0)]) == [Entry(clip("b", 60.0), 60.0)]


def test_a_fold_without_groups_is_of_absolute_scores_and_named_by_content() -> None:
    found = Fold([], [60.0, 70.0], ["", ""], ["k1", "k2"])
    assert found.groups == (0, 0)
    assert found.names == ("k1", "k2")


def test_a_network_without_normalisation_needs_no_statistics() -> None:
    fit_statistics(SimpleNamespace(head=SimpleNamespace()), [])
