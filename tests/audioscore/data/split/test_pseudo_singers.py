import random
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import pdist

from audioscore.data.clips import Clip
from audioscore.data.split import pseudo_singers
from audioscore.data.split.pseudo_singers import cluster_voices, group_voices
from audioscore.errors import DataError


def partition(labels: NDArray[np.int64]) -> list[list[bool]]:
    same: list[list[bool]] = (labels[:, None] == labels[None]).tolist()
    return same


def voices(singers: int, clips: int, *, spread: float, seed: int = 0, dim: int = 32) -> NDArray[np.float64]:
    """`clips` embeddings per singer, in distant directions and of any length."""
    rng = np.random.default_rng(seed)
    centres = np.linalg.qr(rng.normal(size=(dim, dim)))[0][:singers]
    rows = np.repeat(centres, clips, axis=0) + spread * rng.normal(size=(singers * clips, dim)) / np.sqrt(dim)
    return np.asarray(rows * rng.uniform(1, 50, (len(rows), 1)))


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 60), st.integers(2, 6), st.floats(-0.5, 0.95), st.booleans(), st.integers(0, 10**6))
def test_clusters_match_average_linkage_of_scipy(
    count: int, dim: int, min_cosine: float, repeated: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(count, dim))
    if repeated:  # equal distances everywhere
        rows = rows[rng.integers(count, size=count)]
    expected = fcluster(linkage(pdist(rows, "cosine"), "average"), 1 - min_cosine + 1e-9, "distance")
    assert partition(cluster_voices(rows, min_cosine=min_cosine)) == partition(expected)


def test_distinct_voices_are_found_and_numbered_in_order() -> None:
    rows = voices(7, 5, spread=0.6)
    assert cluster_voices(rows, min_cosine=0.4).tolist() == [number // 5 for number in range(35)]
    assert len(set(cluster_voices(rows, min_cosine=0.999).tolist())) == 35
    assert cluster_voices(rows.astype(np.float32), min_cosine=0.4).dtype == np.int64
    assert cluster_voices(np.zeros((0, 8)), min_cosine=0.4).tolist() == []
    silent = np.array([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]])
    assert cluster_voices(silent, min_cosine=0.1).tolist() == [0, 1, 1]


def test_blocks_give_the_same_voices_as_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = voices(6, 20, spread=0.6)[np.random.default_rng(3).permutation(120)]
    whole = cluster_voices(rows, min_cosine=0.4)
    monkeypatch.setattr(pseudo_singers, "BLOCK", 17)
    assert partition(cluster_voices(rows, min_cosine=0.4)) == partition(whole)
    assert whole.max() == 5


def test_invalid_embeddings_are_reported() -> None:
    clips = [Clip(f"{name}.m4a") for name in "abc"]
    with pytest.raises(DataError, match=r"1 of 3 .*\(b\.m4a\)"):
        group_voices(clips, np.array([[1.0, 0], [np.nan, 0], [0, 1]]), min_cosine=0.4)
    with pytest.raises(DataError, match=r"\b2\b.*\b3\b"):
        group_voices(clips, np.ones((2, 4)), min_cosine=0.4)
    with pytest.raises(DataError, match=r"\[3\]"):
        cluster_voices(np.ones(3), min_cosine=0.4)


def unnamed(singers: int, clips: int) -> list[Clip]:
    return [Clip(f"s{index // clips}-{index % clips}.m4a") for index in range(singers * clips)]


def test_clips_without_a_singer_get_a_voice() -> None:
    clips, rows = unnamed(3, 4), voices(3, 4, spread=0.5)
    found = group_voices(clips, rows, min_cosine=0.4)
    assert found.of == {clip.audio_file: f"voice-{int(clip.audio_file[1]) + 1:04d}" for clip in clips}
    assert found.same_voice == tuple(tuple(f"s{singer}-{clip}.m4a" for clip in range(4)) for singer in range(3))
    assert re.findall(r"\d[\d.]*", found.summary()) == ["12", "12", "3", "0.4", "4"]
    known = group_voices([Clip("a.m4a", singer_id="a")], np.ones((1, 4)), min_cosine=0.5)
    assert (known.of, known.same_voice, known.clips) == ({}, (), 1)
    assert group_voices([], np.zeros((0, 4)), min_cosine=0.5).same_voice == ()


def test_a_known_singer_keeps_the_id() -> None:
    clips, rows = unnamed(3, 4), voices(3, 4, spread=0.5)
    clips = [replace(clip, singer_id="Ana") if index in (0, 1) else clip for index, clip in enumerate(clips)]
    clips[2] = replace(clips[2], singer_id=" ANA")  # another spelling of the same singer
    found = group_voices(clips, rows, min_cosine=0.4)
    assert found.of["s0-3.m4a"] == "Ana"
    assert found.same_voice[0] == ("s0-3.m4a", "s0-0.m4a")
    assert (len(found.same_voice), found.recognised, found.largest) == (3, 1, 4)
    assert re.findall(r"\d[\d.]*", found.summary()) == ["9", "12", "3", "0.4", "1", "4"]


def test_known_singers_similar_to_the_same_clip_have_one_voice() -> None:
    clips = [Clip("a.m4a", singer_id="a"), Clip("b.m4a", singer_id="b"), Clip("x.m4a"), Clip("c.m4a", singer_id="c")]
    rows = np.array([[1, 0.3, 0], [1, -0.1, 0], [1, 0, 0], [0, 0, 1.0]])
    found = group_voices(clips, rows, min_cosine=0.5)
    assert (found.of, found.recognised) == ({"x.m4a": "b"}, 1)
    assert [set(files) for files in found.same_voice] == [{"a.m4a", "b.m4a", "x.m4a"}]


@settings(max_examples=20, deadline=None)
@given(st.randoms(use_true_random=False))
def test_the_order_of_the_clips_does_not_matter(shuffler: random.Random) -> None:
    clips, rows = unnamed(4, 3), voices(4, 3, spread=1.2, seed=5)
    order = list(range(12))
    shuffler.shuffle(order)
    shuffled = group_voices([clips[index] for index in order], rows[order], min_cosine=0.3)
    assert shuffled == group_voices(clips, rows, min_cosine=0.3)
