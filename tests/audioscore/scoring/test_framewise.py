from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from audioscore.scoring import fusion as module
from audioscore.scoring.fusion import frame_mask, framewise
from audioscore.scoring.head import SongEvalHead
from audioscore.scoring.legacy.model import CLASSES, PredecessorScoreHead
from audioscore.scoring.network import Batch


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def widths(head: nn.Module) -> list[int]:
    """A list that records the frames in each call of its linear layers, except the last one."""
    seen: list[int] = []
    for part in head.modules():
        if isinstance(part, nn.Linear) and part.out_features != CLASSES:
            part.register_forward_hook(lambda _, given, __: seen.append(given[0].shape[0]))
    return seen


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 7, 8, 9, 24, 31])
@pytest.mark.parametrize("clips", [1, 3])
def test_pieces_make_what_the_whole_makes(frames: int, clips: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE_FRAMES", 8)
    layer, seen = nn.Linear(4, 6), list[int]()
    values = random(clips, frames, 2, 2).transpose(2, 3)

    def counted(piece: Tensor) -> Tensor:
        seen.append(piece.numel() // 4)
        made: Tensor = layer(piece.flatten(-2))
        return made

    torch.testing.assert_close(framewise(counted, values), layer(values.flatten(-2)))
    assert sum(seen) == clips * frames
    assert max(seen) <= 8


@torch.no_grad()
@pytest.mark.parametrize("frames", [3, 8, 21])
def test_in_place_the_values_are_overwritten(frames: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE_FRAMES", 8)
    layer, values = nn.Linear(4, 4), random(2, frames, 4)
    whole = layer(values)
    made = framewise(layer, values, in_place=True)
    torch.testing.assert_close(made, whole)
    assert (made.data_ptr() == values.data_ptr()) == (2 * frames > 8)


def test_in_place_needs_equal_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE_FRAMES", 8)
    with torch.no_grad(), pytest.raises(ValueError, match=r"\(4,\) .*\(2,\)"):
        framewise(nn.Linear(4, 2), torch.zeros(1, 24, 4), in_place=True)


def test_gradients_flow_through_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE_FRAMES", 2)
    layer, values = nn.Linear(4, 6), torch.ones(1, 5, 4, requires_grad=True)
    framewise(layer, values).sum().backward()
    torch.testing.assert_close(values.grad[0], layer.weight.sum(0).expand(5, 4))


@torch.inference_mode()
def test_the_predecessor_head_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    head = PredecessorScoreHead(16, 32).eval()
    batch = Batch(torch.tensor([50, 31]), random(2, 50, 16))
    whole = head(batch)
    monkeypatch.setattr(module, "PIECE_FRAMES", 8)
    seen = widths(head)
    torch.testing.assert_close(head(batch), whole, rtol=0, atol=1e-6)
    assert max(seen) == 8


@torch.inference_mode()
def test_the_songeval_head_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    head = SongEvalHead(16, 32, heads=4).eval()
    frames, mask = random(2, 50, 16), frame_mask(torch.tensor([50, 31]), 50)
    whole = head(frames, mask)
    monkeypatch.setattr(module, "PIECE_FRAMES", 8)
    seen = widths(head)
    torch.testing.assert_close(head(frames, mask), whole, rtol=0, atol=1e-5)
    assert max(seen) == 8
