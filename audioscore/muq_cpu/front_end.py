"""MuQ's convolutional front-end for inference: most of its time on a CPU, and the same frames in under half of it.

Two residual blocks of 3 x 3 convolutions, each halving time and bands, then a linear layer. Here normalisation is
folded into the weights, convolutions of the same input are one, all but the first use Winograd's algorithm, channels
lie innermost, and time is cut into pieces that overlap by as much as the convolutions reach, so that memory does not
grow with the length.
"""

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from audioscore.muq_cpu.matmul import Numbers, linear
from audioscore.muq_cpu.winograd import Scratch, Scratches, WinogradConv

if TYPE_CHECKING:
    from collections.abc import Iterator

MIN_CHANNELS = 128  # below, moving numbers takes longer than multiplying them
PIECE_FRAMES = 240  # 25 a second, computed at once: some 340 MB at 512 channels
REACH_FRAMES = 3  # how far beyond a frame the convolutions hear
MEL_PER_FRAME = 4


class FrontEnd:
    """The front-end of a MuQ, with weights as they are when it is made; its products are of `numbers`."""

    def __init__(self, conv: Any, numbers: Numbers = "float32") -> None:
        self.blocks = [_Block(block, f"block {place}", numbers) for place, block in enumerate(conv.conv)]
        weight = conv.linear.weight  # (dim, C * bands), channels first
        weight = weight.unflatten(1, (self.blocks[-1].channels, -1)).transpose(1, 2).flatten(1).contiguous()
        self.linear = linear(weight, conv.linear.bias, numbers)
        self._scratches = Scratches()

    @staticmethod
    def suits(conv: Any, device: str) -> bool:
        """Whether it is worth it: on a CPU, for many channels."""
        return torch.device(device).type == "cpu" and conv.conv[0].conv1.out_channels >= MIN_CHANNELS

    def forget(self) -> None:
        """Give back the memory that is kept to be used again; the next call takes it anew."""
        self._scratches.forget()

    def __call__(self, mel: Tensor) -> Tensor:
        """Shape: mel [B, bands, M], 100 a second -> [B, ceil(M / 4), dim]."""
        with self._scratches.one() as scratch:
            return torch.stack([torch.cat([self._piece(*part, scratch) for part in _pieces(one.T)]) for one in mel])

    def _piece(self, mel: Tensor, first: int, count: int, scratch: Scratch) -> Tensor:
        """Shape: mel [M, bands] -> `count` frames from `first` on, [count, dim]."""
        values = mel[:, :, None]
        for block in self.blocks:
            values = block(values, scratch)
        made: Tensor = self.linear(values[first : first + count].flatten(1))
        return made


def _pieces(mel: Tensor) -> "Iterator[tuple[Tensor, int, int]]":
    """Overlapping pieces of a spectrogram, the first of each piece's frames that count, and how many do.

    Shape: mel [M, bands].
    """
    frames = -(-len(mel) // MEL_PER_FRAME)
    count = -(-frames // PIECE_FRAMES)
    for place in range(count):
        start, end = frames * place // count, frames * (place + 1) // count
        before, after = max(0, start - REACH_FRAMES), min(frames, end + REACH_FRAMES)
        yield mel[before * MEL_PER_FRAME : after * MEL_PER_FRAME], start - before, end - start


class _Block:
    """relu(norm(conv(relu(norm(conv(x))))) + norm(conv(x))), the two convolutions of x being one of stride 2."""

    def __init__(self, block: Any, name: str, numbers: Numbers) -> None:
        self.channels = int(block.conv2.out_channels)
        self.name = name
        inner, beside = _bands_last(block.conv1, block.bn1), _bands_last(block.conv3, block.bn3)
        weight = torch.cat([inner[0], beside[0]])
        self.bias = torch.cat([inner[1], beside[1]])
        # Of one channel, the patches are so small that a plain matrix product is best.
        self.matrix = weight.flatten(1).T.contiguous()
        self.halving = None if weight.shape[1] == 1 else WinogradConv(weight, self.bias, stride=2, numbers=numbers)
        self.conv = WinogradConv(*_bands_last(block.conv2, block.bn2), numbers=numbers)

    def __call__(self, values: Tensor, scratch: Scratch) -> Tensor:
        """Shape: values [T, bands, C] -> [ceil(T / 2), bands / 2, channels], in `scratch`."""
        return self.conv.joined(self._halve(values, scratch, f"{self.name} halved"), scratch, self.name)

    def _halve(self, values: Tensor, scratch: Scratch, name: str) -> Tensor:
        """Shape: values [T, bands, C] -> [ceil(T / 2), bands / 2, 2 * channels], in `scratch`."""
        if self.halving is not None:
            return self.halving(values, scratch, name)
        padded = F.pad(values[..., 0], (1, 1, 1, 1))
        patches = padded.unfold(0, 3, 2).unfold(1, 3, 2).flatten(2)  # (T / 2, bands / 2, 9)
        out = scratch.take(name, *patches.shape[:2], 2 * self.channels)
        torch.addmm(self.bias, patches.flatten(0, 1), self.matrix, out=out.flatten(0, 1))
        return out


def fold_norm(conv: Any, norm: Any) -> tuple[Tensor, Tensor]:
    """A convolution and the batch normalisation behind it in one: weight and bias, shaped as the convolution's."""
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    weight = conv.weight.double() * scale.reshape(-1, *[1] * (conv.weight.dim() - 1))
    before = 0.0 if conv.bias is None else conv.bias.double()
    bias = (before - norm.running_mean.double()) * scale + norm.bias.double()
    return weight.to(conv.weight.dtype), bias.to(conv.weight.dtype)


def _bands_last(conv: Any, norm: Any) -> tuple[Tensor, Tensor]:
    """A convolution and its normalisation in one, bands and time changing places as in the input.

    Shape: -> [O, C, 3 in time, 3 in bands], [O].
    """
    weight, bias = fold_norm(conv, norm)
    return weight.transpose(2, 3).contiguous(), bias
