import pytest
import torch

from audioscore.encoders.features import Features
from audioscore.encoders.muq_layers import split_windows
from audioscore.scoring.network import Batch, collate, join_windows

CLIPS: list[Features] = [
    {"muq": torch.full((length, 3), float(length)), "campplus": torch.full((2,), -float(length))} for length in (2, 4)
]
SECONDS = (70.0, 12.0, 31.0, 30.0)  # 3, 1, 2 and 1 windows
SAMPLES = [round(24_000 * seconds) + 7 for seconds in SECONDS]
SAMPLES[3] -= 7


def encoded(samples: int, windows: int, seed: int) -> Features:
    """Frames of an encoder for a number of samples: by window, each rounded up to 25 per second."""
    parts = [-(-len(part) // 960) for part in torch.tensor_split(torch.empty(samples, dtype=torch.bool), windows)]
    generator = torch.Generator().manual_seed(seed)
    return {
        "muq": torch.cat([torch.randn(count, 3, generator=generator) for count in parts]),
        "campplus": torch.randn(2, generator=generator), "windows": torch.tensor(windows)
    }  # fmt: skip


def test_a_single_clip_is_not_copied() -> None:
    frames = collate(CLIPS[:1]).frames
    assert (frames.shape, frames.data_ptr()) == ((1, 2, 3), CLIPS[0]["muq"].data_ptr())


LONG = [
    encoded(samples, windows, seed) for seed, (samples, windows) in enumerate(zip(SAMPLES, (3, 1, 2, 1), strict=True))
]


def test_clips_are_padded_to_the_longest_and_lengths_are_those_without_padding() -> None:
    batch = collate(CLIPS)
    assert (batch.frames.shape, batch.lengths.tolist()) == ((2, 4, 3), [2, 4])
    assert (batch.frames[0, :2].unique().tolist(), batch.frames[0, 2:].unique().tolist()) == ([2.0], [0.0])
    assert (batch.embedding.tolist(), batch.windows) == ([[-2.0, -2.0], [-4.0, -4.0]], None)


def test_a_plan_of_one_branch_has_only_that_one() -> None:
    voice = collate([{"campplus": clip["campplus"]} for clip in CLIPS])
    assert (voice.frames, voice.lengths.tolist()) == (None, [1, 1])
    music = collate([{"muq": clip["muq"]} for clip in CLIPS])
    assert (music.embedding, music.lengths.tolist()) == (None, [2, 4])


def test_windows_are_the_encoders_rows() -> None:
    batch = collate(LONG, windowed=True)
    assert batch.windows == (3, 1, 2, 1)
    rows = [row for clip, samples in zip(LONG, SAMPLES, strict=True) for row in split_windows(clip["muq"], samples)]
    assert (batch.lengths.tolist(), batch.frames.shape) == ([len(row) for row in rows], (7, max(map(len, rows)), 3))
    for ours, wanted in zip(batch.frames, rows, strict=True):
        assert torch.equal(ours[: len(wanted)], wanted)
        assert not ours[len(wanted) :].any()
    assert batch.embedding.shape == (4, 2)


def test_joined_windows_are_the_original_clips() -> None:
    joined, wanted = join_windows(collate(LONG, windowed=True)), collate(LONG)
    assert (joined.windows, joined.lengths.tolist()) == (None, wanted.lengths.tolist())
    assert torch.equal(joined.frames, wanted.frames)
    assert torch.equal(joined.embedding, wanted.embedding)


def test_joined_windows_have_no_padding_between_them() -> None:
    batch = collate(LONG, windowed=True)
    real = torch.arange(batch.frames.shape[1])[None] < batch.lengths[:, None]
    loud = join_windows(Batch(batch.lengths, batch.frames.masked_fill(~real[..., None], 9e9), None, batch.windows))
    wanted = collate(LONG).frames
    assert torch.equal(loud.frames, wanted)


def test_single_windows_are_not_copied() -> None:
    batch = collate([LONG[1], LONG[3]], windowed=True)
    joined = join_windows(batch)
    assert joined.frames is batch.frames
    assert (joined.windows, joined.lengths.tolist()) == (None, batch.lengths.tolist())
    plain = collate(CLIPS)
    assert join_windows(plain) is plain


def test_joined_windows_have_a_gradient() -> None:
    batch = collate(LONG, windowed=True)
    frames = batch.frames.clone().requires_grad_()
    joined = join_windows(Batch(batch.lengths, frames, None, batch.windows)).frames
    joined.square().sum().backward()
    assert torch.equal(frames.grad, 2 * batch.frames)


@pytest.mark.parametrize(("clips", "windowed"), [(CLIPS, False), (LONG, True)])
def test_a_batch_moves_to_a_device_without_its_lengths(clips: list[Features], windowed: bool) -> None:
    batch = collate(clips, windowed=windowed)
    moved = batch.to("meta")
    assert (moved.frames.device.type, moved.embedding.device.type) == ("meta", "meta")
    assert (moved.lengths.device.type, moved.windows) == ("cpu", batch.windows)
