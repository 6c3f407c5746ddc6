"""MuQ's conformer layers for inference on a CPU: the same frames but for rounding, and less between the products.

Channels lie innermost throughout, so that nothing is turned round and copied; attention never writes its weights down;
normalisation is folded into the convolution over time; what a feed-forward holds is changed in place.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audioscore.encoders.muq_layers import conformer_layer
from audioscore.muq_cpu.front_end import fold_norm
from audioscore.muq_cpu.matmul import MIN_WIDTH, Numbers, linear

MIN_CHANNELS = MIN_WIDTH  # below, calls cost more than what they compute


class Conformer:
    """A MuQ's conformer with weights as they are when it is made; its products are of `numbers`.

    Layers with anything but plain linear layers in them, adapters for one, are computed as transformers does.
    """

    def __init__(self, conformer: Any, numbers: Numbers = "float32") -> None:
        self._positions_of = conformer.embed_positions
        self._layers = [
            _Layer(layer, numbers) if _is_plain(layer) else partial(conformer_layer, layer, real=None)
            for layer in conformer.layers
        ]

    @staticmethod
    def suits(conformer: Any, device: str) -> bool:
        """Whether it is worth it, and can be done: on a CPU, for many channels, with rotary positions."""
        config = conformer.config
        wide = torch.device(device).type == "cpu" and config.hidden_size >= MIN_CHANNELS
        return wide and config.position_embeddings_type == "rotary"

    def __call__(self, states: Tensor, layer: int) -> Tensor:
        """The hidden state that the layers below `layer` make of the front-end's. Shape: [B, F, dim] -> the same."""
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
    """Shape: states [B, F, dim], positions [2, >= F, 1, 1, head] -> [B, F, dim]. Source: as `conformer_layer`."""

    def __init__(self, layer: Any, numbers: Numbers) -> None:
        self.first = _FeedForward(layer.ffn1_layer_norm, layer.ffn1, numbers)
        self.attention = _Attention(layer.self_attn_layer_norm, layer.self_attn, numbers)
        self.convolution = _Convolution(layer.conv_module, numbers)
        self.second = _FeedForward(layer.ffn2_layer_norm, layer.ffn2, numbers)
        self.norm = layer.final_layer_norm

    def __call__(self, states: Tensor, positions: Tensor) -> Tensor:
        states = torch.add(states, self.first(states), alpha=0.5)
        states += self.attention(states, positions)
        states += self.convolution(states)
        states.add_(self.second(states), alpha=0.5)
        made: Tensor = self.norm(states)
        return made


class _FeedForward:
    def __init__(self, norm: nn.LayerNorm, part: Any, numbers: Numbers) -> None:
        self.norm = norm
        self.inner, self.outer = (_linear(dense, numbers) for dense in (part.intermediate_dense, part.output_dense))

    def __call__(self, states: Tensor) -> Tensor:
        return self.outer(F.silu(self.inner(self.norm(states)), inplace=True))


class _Attention:
    def __init__(self, norm: nn.LayerNorm, attention: Any, numbers: Numbers) -> None:
        self.norm = norm
        self.heads = (attention.num_heads, attention.head_size)
        self.query, self.key, self.value, self.out = (
            _linear(linear, numbers)
            for linear in (attention.linear_q, attention.linear_k, attention.linear_v, attention.linear_out)
        )

    def __call__(self, states: Tensor, positions: Tensor) -> Tensor:
        states = self.norm(states)
        turned = self._turn(states, positions)
        query, key, value = (
            linear(given).unflatten(-1, self.heads).transpose(1, 2)  # (B, H, F, head)
            for linear, given in ((self.query, turned), (self.key, turned), (self.value, states))
        )
        return self.out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))

    def _turn(self, states: Tensor, positions: Tensor) -> Tensor:
        """Rotary positions. Shape: states [B, F, dim] -> the same."""
        cos, sin = positions[:, : states.shape[1], 0]  # (F, 1, head)
        parts = states.unflatten(-1, self.heads)
        turned: Tensor = parts * cos
        low, high = parts.chunk(2, dim=-1)
        size = low.shape[-1]
        turned[..., :size].addcmul_(high, sin[..., :size], value=-1)
        turned[..., size:].addcmul_(low, sin[..., size:])
        return turned.flatten(2)


class _Convolution:
    def __init__(self, module: Any, numbers: Numbers) -> None:
        self.norm = module.layer_norm
        self.inner, self.outer = (_linear(conv, numbers) for conv in (module.pointwise_conv1, module.pointwise_conv2))
        weight, self.bias = fold_norm(module.depthwise_conv, module.batch_norm)
        # A row of pixels, a frame each: convolutions over images know channels that lie innermost.
        self.weight = weight.unsqueeze(2).contiguous(memory_format=torch.channels_last)
        self.padding = (0, weight.shape[-1] // 2)

    def __call__(self, states: Tensor) -> Tensor:
        gated = F.glu(self.inner(self.norm(states)), dim=-1)
        image = gated.transpose(1, 2).unsqueeze(2)  # (B, dim, 1, F)
        heard = F.conv2d(image, self.weight, self.bias, padding=self.padding, groups=len(self.weight))
        made: Tensor = self.outer(F.silu(heard.squeeze(2).transpose(1, 2), inplace=True))
        return made


def _linear(part: Any, numbers: Numbers) -> Callable[[Tensor], Tensor]:
    """A linear layer, or a convolution over single frames, of [..., C] -> [..., O]."""
    return linear(part.weight.flatten(1), part.bias, numbers)
