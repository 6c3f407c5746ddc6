import pytest
import torch
from torch import Tensor

from audioscore.encoders.extract import Features
from audioscore.encoders.muq_layers import split_windows
from audioscore.scoring.batch import Batch, collate, join_windows

CLIPS: list[Features] = [
    {"muq": torch.full((length, 3), float(length)), "campplus": torch.full((2,), -float(length))} for length in (2, 4)
]
SECONDS = (70.0, 12.0, 31.0, 30.0)  # 3, 1, 2 and 1 windows
SAMPLES = [round(24_000 * seconds) + 7 for seconds in SECONDS]
SAMPLES[3] -= 7


def heard(samples: int, windows: int, seed: int) -> Features:
    """Frames as an encoder makes them of so many samples: by window, each rounded up to 25 a second."""
    parts = [-(-len(part) // 960) for part in torch.tensor_split(torch.empty(samples, dtype=torch.bool), windows)]
    chance = torch.Generator().manual_seed(seed)
    return {
        "muq": torch.cat([torch.randn(count, 3, generator=chance) for count in parts]),
        "campplus": torch.randn(2, generator=chance),
        "windows": torch.tensor(windows),
    }


def test_a_clip_by_itself_is_not_copied() -> None:
    frames = collate(CLIPS[:1]).frames
    assert frames is not None
    assert frames.shape == (1, 2, 3)
    assert frames.data_ptr() == CLIPS[0]["muq"].data_ptr()


LONG = [
    heard(samples, windows, seed) for seed, (samples, windows) in enumerate(zip(SAMPLES, (3, 1, 2, 1), strict=True))
]


def test_clips_are_padded_to_the_longest_and_lengths_say_what_is_real() -> None:
    batch = collate(CLIPS)
    assert batch.frames is not None
    assert batch.embedding is not None
    assert batch.frames.shape == (2, 4, 3)
    assert batch.lengths.tolist() == [2, 4]
    assert batch.frames[0, :2].unique().tolist() == [2.0]
    assert batch.frames[0, 2:].unique().tolist() == [0.0]
    assert batch.embedding.tolist() == [[-2.0, -2.0], [-4.0, -4.0]]
    assert batch.windows is None


def test_a_plan_of_one_branch_has_only_that_one() -> None:
    voice = collate([{"campplus": clip["campplus"]} for clip in CLIPS])
    assert voice.frames is None
    assert voice.lengths.tolist() == [1, 1]
    music = collate([{"muq": clip["muq"]} for clip in CLIPS])
    assert music.embedding is None
    assert music.lengths.tolist() == [2, 4]


def test_windows_are_rows_of_their_own_as_the_encoder_heard_them() -> None:
    batch = collate(LONG, windowed=True)
    assert batch.windows == (3, 1, 2, 1)
    rows = [row for clip, samples in zip(LONG, SAMPLES, strict=True) for row in split_windows(clip["muq"], samples)]
    assert batch.lengths.tolist() == [len(row) for row in rows]
    assert batch.frames is not None
    assert batch.frames.shape == (7, max(map(len, rows)), 3)
    for ours, wanted in zip(batch.frames, rows, strict=True):
        assert torch.equal(ours[: len(wanted)], wanted)
        assert not ours[len(wanted) :].any()
    assert batch.embedding is not None
    assert batch.embedding.shape == (4, 2), "a voice is a clip's, not a window's"


def test_joined_windows_are_the_clips_again() -> None:
    joined, wanted = join_windows(collate(LONG, windowed=True)), collate(LONG)
    assert joined.windows is None
    assert joined.lengths.tolist() == wanted.lengths.tolist()
    assert joined.frames is not None
    assert wanted.frames is not None
    assert torch.equal(joined.frames, wanted.frames)
    assert joined.embedding is not None
    assert wanted.embedding is not None
    assert torch.equal(joined.embedding, wanted.embedding)


def test_what_pads_a_window_is_left_behind_when_it_is_joined() -> None:
    batch = collate(LONG, windowed=True)
    assert batch.frames is not None
    real = torch.arange(batch.frames.shape[1])[None] < batch.lengths[:, None]
    loud = join_windows(Batch(batch.lengths, batch.frames.masked_fill(~real[..., None], 9e9), None, batch.windows))
    wanted = collate(LONG).frames
    assert loud.frames is not None
    assert wanted is not None
    assert torch.equal(loud.frames, wanted)


def test_where_every_clip_is_one_window_nothing_is_copied() -> None:
    batch = collate([LONG[1], LONG[3]], windowed=True)
    joined = join_windows(batch)
    assert joined.frames is batch.frames
    assert (joined.windows, joined.lengths.tolist()) == (None, batch.lengths.tolist())
    plain = collate(CLIPS)
    assert join_windows(plain) is plain


def test_a_gradient_finds_its_way_through_joined_windows() -> None:
    batch = collate(LONG, windowed=True)
    assert batch.frames is not None
    frames = batch.frames.clone().requires_grad_()
    joined = join_windows(Batch(batch.lengths, frames, None, batch.windows)).frames
    assert joined is not None
    joined.square().sum().backward()
    assert frames.grad is not None
    assert torch.equal(frames.grad, 2 * batch.frames)


@pytest.mark.parametrize(("clips", "windowed"), [(CLIPS, False), (LONG, True)])
def test_a_batch_moves_whole_but_for_its_lengths(clips: list[Features], windowed: bool) -> None:
    batch = collate(clips, windowed=windowed)
    moved = batch.to("meta")

    def on(value: Tensor | None) -> str:
        assert value is not None
        return value.device.type

    assert (on(moved.frames), on(moved.embedding)) == ("meta", "meta")
    assert on(moved.lengths) == "cpu", "they are read there"
    assert moved.windows == batch.windows
