"""MuQ's conformer layers for inference on a CPU: equal frames but for rounding, with less work between the products.

Channels are innermost throughout, so nothing is transposed and copied; attention never stores its weights; batch
normalization is folded into the convolution over time; activations are computed in place.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audioscore.encoders.muq_layers import conformer_layer
from audioscore.muq_cpu.front_end import fold_norm
from audioscore.muq_cpu.matmul import MIN_WIDTH, FastDtype, linear

MIN_CHANNELS = MIN_WIDTH  # below, calls cost more than what they compute


class Conformer:
    """A MuQ's conformer with the weights it has when this is built; its products are in `dtype`.

    Layers with other than plain linear layers, for example with adapters, are computed as transformers does.
    """

    def __init__(self, conformer: Any, dtype: FastDtype = "float32") -> None:
        self._positions_of = conformer.embed_positions
        self._layers = [
            _Layer(layer, dtype) if _is_plain(layer) else partial(conformer_layer, layer, real=None)
            for layer in conformer.layers
        ]

    @staticmethod
    def suits(conformer: Any, device: str) -> bool:
        """Whether this is possible and faster: on a CPU, with many channels and rotary positions."""
        config = conformer.config
        wide = torch.device(device).type == "cpu" and config.hidden_size >= MIN_CHANNELS
        return wide and config.position_embeddings_type == "rotary"

    def __call__(self, states: Tensor, layer: int) -> Tensor:
        """Run the layers below `layer` on the front-end's output. Shape: [B, F, dim] -> the same."""
        positions = self._positions_of(states)
        for part in self._layers[:layer]:
            states = part(states, positions)
        return states


def _is_plain(layer: Any) -> bool:
    attention = layer.self_attn
    linear = (
        *(attention.linear_q, attention.linear_k, attention.linear_v, attention.linear_out),
        *(dense for part in (layer.ffn1, layer.ffn2) for dense in (part.intermediate_dense, part.output_dense)),
    )
    swish = (layer.ffn1.intermediate_act_fn, layer.ffn2.intermediate_act_fn, layer.conv_module.activation)
    return all(type(one) is nn.Linear for one in linear) and all(isinstance(one, nn.SiLU) for one in swish)


class _Layer:
    """Shape: states [B, F, dim], positions [2, >= F, 1, 1, head] -> [B, F, dim]. Source: see `conformer_layer`."""

    def __init__(self, layer: Any, dtype: FastDtype) -> None:
        self.first = _FeedForward(layer.ffn1_layer_norm, layer.ffn1, dtype)
        self.attention = _Attention(layer.self_attn_layer_norm, layer.self_attn, dtype)
        self.convolution = _Convolution(layer.conv_module, dtype)
        self.second = _FeedForward(layer.ffn2_layer_norm, layer.ffn2, dtype)
        self.norm = layer.final_layer_norm

    def __call__(self, states: Tensor, positions: Tensor) -> Tensor:
        states = torch.add(states, self.first(states), alpha=0.5)
        states += self.attention(states, positions)
        states += self.convolution(states)
        states.add_(self.second(states), alpha=0.5)
        output: Tensor = self.norm(states)
        return output


class _FeedForward:
    def __init__(self, norm: nn.LayerNorm, part: Any, dtype: FastDtype) -> None:
        self.norm = norm
        self.inner, self.outer = (_linear(dense, dtype) for dense in (part.intermediate_dense, part.output_dense))

    def __call__(self, states: Tensor) -> Tensor:
        return self.outer(F.silu(self.inner(self.norm(states)), inplace=True))


class _Attention:
    def __init__(self, norm: nn.LayerNorm, attention: Any, dtype: FastDtype) -> None:
        self.norm = norm
        self.heads = (attention.num_heads, attention.head_size)
        self.query, self.key, self.value, self.out = (
            _linear(linear, dtype)
            for linear in (attention.linear_q, attention.linear_k, attention.linear_v, attention.linear_out)
        )

    def __call__(self, states: Tensor, positions: Tensor) -> Tensor:
        states = self.norm(states)
        rotated = self._rotate(states, positions)
        query, key, value = (
            linear(given).unflatten(-1, self.heads).transpose(1, 2)  # (B, H, F, head)
            for linear, given in ((self.query, rotated), (self.key, rotated), (self.value, states))
        )
        return self.out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))

    def _rotate(self, states: Tensor, positions: Tensor) -> Tensor:
        """Apply rotary positions. Shape: states [B, F, dim] -> the same."""
        cos, sin = positions[:, : states.shape[1], 0]  # (F, 1, head)
        parts = states.unflatten(-1, self.heads)
        rotated: Tensor = parts * cos
        low, high = parts.chunk(2, dim=-1)
        size = low.shape[-1]
        rotated[..., :size].addcmul_(high, sin[..., :size], value=-1)
        rotated[..., size:].addcmul_(low, sin[..., size:])
        return rotated.flatten(2)


class _Convolution:
    def __init__(self, module: Any, dtype: FastDtype) -> None:
        self.norm = module.layer_norm
        self.inner, self.outer = (_linear(conv, dtype) for conv in (module.pointwise_conv1, module.pointwise_conv2))
        weight, self.bias = fold_norm(module.depthwise_conv, module.batch_norm)
        # As an image of one row, a pixel per frame: only convolutions over images accept innermost channels.
        self.weight = weight.unsqueeze(2).contiguous(memory_format=torch.channels_last)
        self.padding = (0, weight.shape[-1] // 2)

    def __call__(self, states: Tensor) -> Tensor:
        gated = F.glu(self.inner(self.norm(states)), dim=-1)
        image = gated.transpose(1, 2).unsqueeze(2)  # (B, dim, 1, F)
        image = F.conv2d(image, self.weight, self.bias, padding=self.padding, groups=len(self.weight))
        output: Tensor = self.outer(F.silu(image.squeeze(2).transpose(1, 2), inplace=True))
        return output


def _linear(part: Any, dtype: FastDtype) -> Callable[[Tensor], Tensor]:
    """A linear layer [..., C] -> [..., O], from a linear layer or a 1 x 1 convolution."""
    return linear(part.weight.flatten(1), part.bias, dtype)
