"""MuQ's convolutional front-end for inference on a CPU: equal frames but for rounding, in under half the time.

The front-end takes most of MuQ's time on a CPU. It is two residual blocks of 3 x 3 convolutions, each halving time and
bands, then a linear layer. Here normalization is folded into the weights, convolutions of the same input are one, all
but the first use Winograd's algorithm, and channels are innermost. Time is cut into pieces that overlap by the
convolutions' reach, so memory does not grow with the length.
"""

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from audioscore.muq_cpu.matmul import FastDtype, linear
from audioscore.muq_cpu.winograd import Scratch, ScratchPool, WinogradConv

if TYPE_CHECKING:
    from collections.abc import Iterator

MIN_CHANNELS = 128  # below, moving values takes longer than multiplying them
PIECE_FRAMES = 240  # computed at once, 25 frames per second: about 340 MB at 512 channels
REACH_FRAMES = 3  # how far the convolutions read beyond a frame
MEL_PER_FRAME = 4


class FrontEnd:
    """The front-end of a MuQ with the weights it has when this is built; its products are in `dtype`."""

    def __init__(self, conv: Any, dtype: FastDtype = "float32") -> None:
        self.blocks = [_Block(block, f"block {index}", dtype) for index, block in enumerate(conv.conv)]
        weight = conv.linear.weight  # (dim, C * bands), channels first
        weight = weight.unflatten(1, (self.blocks[-1].channels, -1)).transpose(1, 2).flatten(1).contiguous()
        self.linear = linear(weight, conv.linear.bias, dtype)
        self._pool = ScratchPool()

    @staticmethod
    def suits(conv: Any, device: str) -> bool:
        """Whether this is faster: on a CPU, with many channels."""
        return torch.device(device).type == "cpu" and conv.conv[0].conv1.out_channels >= MIN_CHANNELS

    def release_memory(self) -> None:
        """Free the memory that is kept for the next call."""
        self._pool.release()

    def __call__(self, mel: Tensor) -> Tensor:
        """Shape: mel [B, bands, M], 100 per second -> [B, ceil(M / 4), dim]."""
        with self._pool.scratch() as scratch:
            return torch.stack([torch.cat([self._piece(*part, scratch) for part in _pieces(one.T)]) for one in mel])

    def _piece(self, mel: Tensor, first: int, count: int, scratch: Scratch) -> Tensor:
        """Shape: mel [M, bands] -> `count` frames from frame `first` on, [count, dim]."""
        values = mel[:, :, None]
        for block in self.blocks:
            values = block(values, scratch)
        output: Tensor = self.linear(values[first : first + count].flatten(1))
        return output


def _pieces(mel: Tensor) -> "Iterator[tuple[Tensor, int, int]]":
    """Overlapping pieces of a spectrogram; for each, its first frame without overlap, and the number of such frames.

    Shape: mel [M, bands].
    """
    frames = -(-len(mel) // MEL_PER_FRAME)
    count = -(-frames // PIECE_FRAMES)
    for index in range(count):
        start, end = frames * index // count, frames * (index + 1) // count
        before, after = max(0, start - REACH_FRAMES), min(frames, end + REACH_FRAMES)
        yield mel[before * MEL_PER_FRAME : after * MEL_PER_FRAME], start - before, end - start


class _Block:
    """relu(norm(conv(relu(norm(conv(x))))) + norm(conv(x))); the two convolutions of x are one of stride 2."""

    def __init__(self, block: Any, name: str, dtype: FastDtype) -> None:
        self.channels = int(block.conv2.out_channels)
        self.name = name
        inner, residual = _bands_last(block.conv1, block.bn1), _bands_last(block.conv3, block.bn3)
        weight = torch.cat([inner[0], residual[0]])
        self.bias = torch.cat([inner[1], residual[1]])
        # With one channel, the patches are so small that a plain matrix product is fastest.
        self.matrix = weight.flatten(1).T.contiguous()
        self.halving = None if weight.shape[1] == 1 else WinogradConv(weight, self.bias, stride=2, dtype=dtype)
        self.conv = WinogradConv(*_bands_last(block.conv2, block.bn2), dtype=dtype)

    def __call__(self, values: Tensor, scratch: Scratch) -> Tensor:
        """Shape: values [T, bands, C] -> [ceil(T / 2), bands / 2, channels], in `scratch`."""
        return self.conv.residual(self._halve(values, scratch, f"{self.name} halved"), scratch, self.name)

    def _halve(self, values: Tensor, scratch: Scratch, name: str) -> Tensor:
        """Shape: values [T, bands, C] -> [ceil(T / 2), bands / 2, 2 * channels], in `scratch`."""
        if self.halving is not None:
            return self.halving(values, scratch, name)
        padded = F.pad(values[..., 0], (1, 1, 1, 1))
        patches = padded.unfold(0, 3, 2).unfold(1, 3, 2).flatten(2)  # (T / 2, bands / 2, 9)
        out = scratch.tensor(name, *patches.shape[:2], 2 * self.channels)
        torch.addmm(self.bias, patches.flatten(0, 1), self.matrix, out=out.flatten(0, 1))
        return out


def fold_norm(conv: Any, norm: Any) -> tuple[Tensor, Tensor]:
    """Merge a batch normalization into the convolution before it; weight and bias are shaped as the convolution's."""
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    weight = conv.weight.double() * scale.reshape(-1, *[1] * (conv.weight.dim() - 1))
    before = 0.0 if conv.bias is None else conv.bias.double()
    bias = (before - norm.running_mean.double()) * scale + norm.bias.double()
    return weight.to(conv.weight.dtype), bias.to(conv.weight.dtype)


def _bands_last(conv: Any, norm: Any) -> tuple[Tensor, Tensor]:
    """Merge the normalization and swap bands and time, as in the input.

    Shape: -> [O, C, 3 in time, 3 in bands], [O].
    """
    weight, bias = fold_norm(conv, norm)
    return weight.transpose(2, 3).contiguous(), bias
