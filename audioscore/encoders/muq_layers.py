"""MuQ in two parts: a frozen prefix, whose output is computed once and stored, and a suffix that is trained on it.

Layers count from 0. The prefix up to layer j is the convolutional front-end and the layers below j; its output is
hidden state j. The suffix is layer j and all later loaded layers; its output is the encoder's own.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from audioscore.encoders.features import WINDOW_SECONDS, EncoderReference
from audioscore.encoders.muq import window_count
from audioscore.errors import ModelError

if TYPE_CHECKING:
    from audioscore.encoders.muq import MuQEncoder

MEL = "melspec_2048"  # the one spectrogram that MuQ's front-end reads


def prefix_frames(encoder: "MuQEncoder", wave: Tensor, from_layer: int) -> Tensor:
    """Compute hidden state `from_layer` in the encoder's windows, joined in time; `split_windows` separates them.

    Shape: wave [T] at 24 kHz, float32 -> [F, dim], 25 frames per second.
    Raises: ModelError for a layer that was not loaded and a wave that is too short.
    """
    check_layer(encoder, from_layer)
    model = encoder.module.model

    def encode(window: Tensor) -> Tensor:
        mel = mel_spectrogram(model, window[None].to(encoder.device))
        return run_layers(model.conformer, model.conv(mel), from_layer)[0].cpu()

    return encoder.by_window(wave, encode)


def prefix_reference(reference: EncoderReference, from_layer: int) -> EncoderReference:
    """Return the reference of prefix frames in the feature store: the same weights, with hidden state `from_layer`.

    From layer 1 on, it equals the reference of an encoder loaded with that layer, which gives the same frames.
    """
    return replace(reference, layer=from_layer)


def split_windows(frames: Tensor, samples: int, window: float | None = WINDOW_SECONDS) -> tuple[Tensor, ...]:
    """Split the frames of a recording of `samples` samples at 24 kHz into its windows; layers run on one at a time.

    `window` is `MuQEncoder.window`. Windows differ by one sample at most, longer ones first, and so do their frames.

    Shape: frames [F, dim] -> window_count(samples, window) times [F_i, dim], where the F_i add up to F.
    """
    return torch.tensor_split(frames, window_count(samples, window))


class MuQSuffix(nn.Module):
    """The layers of a MuQ encoder from `from_layer` on, shared with the encoder: training this changes the encoder.

    `adapters` decides which parameters are trained, before or after this is built. Parameter names keep MuQ's layer
    numbers. With `checkpointing`, activations are computed again in the backward pass to save memory. Passes with
    gradients use torch's fused attention, equal but for rounding; others compute as scoring does.

    Shape: frames [B, F, dim] and lengths [B] -> [B, F, dim], zero beyond each clip's length.
    Raises: ModelError for a layer that was not loaded, and for clips longer than a window.
    """

    def __init__(self, encoder: "MuQEncoder", from_layer: int, *, checkpointing: bool = False) -> None:
        super().__init__()
        check_layer(encoder, from_layer)
        conformer = encoder.module.model.conformer
        if conformer.config.position_embeddings_type != "rotary":
            raise ModelError(
                f"MuQ with {conformer.config.position_embeddings_type} positions: cannot be trained. Use one with "
                "rotary positions, as published."
            )
        self.layers = nn.ModuleDict({str(index): conformer.layers[index] for index in range(from_layer, encoder.layer)})
        self.norm = conformer.layer_norm  # the identity, unless the output is the model's own last layer
        self.checkpointing = checkpointing
        self._positions_of: Callable[[Tensor], Tensor] = conformer.embed_positions.forward
        self.positions: Tensor | None
        states = torch.zeros(1, 1, encoder.dim, device=next(self.parameters()).device)
        # Without windows there is no longest clip, and each pass computes its own table.
        table = None if encoder.window is None else self._positions_of(states)
        self.register_buffer("positions", table, persistent=False)

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        return self.hidden_states(frames, lengths)[-1]

    def hidden_states(self, frames: Tensor, lengths: Tensor) -> list[Tensor]:
        """Return all hidden states from `from_layer` (the frames) to the encoder's output, for a `LayerMix`.

        Shape: frames [B, F, dim], lengths [B] -> 1 + layers times [B, F, dim], zero beyond each clip's length.
        """
        positions = self._positions_for(frames)
        real = _real_frames(lengths, frames)
        states = [_zero_padding(frames, real)]
        for layer in self.layers.values():
            states.append(_zero_padding(self._run(layer, states[-1], positions, real), real))
        states[-1] = _zero_padding(self.norm(states[-1]), real)
        return states

    def _positions_for(self, frames: Tensor) -> Tensor:
        """Shape: frames [B, F, dim] -> [2, >= F, 1, 1, head]."""
        if self.positions is None:
            return self._positions_of(frames)
        if frames.shape[1] > self.positions.shape[1]:
            raise ModelError(
                f"MuQ: takes at most {self.positions.shape[1]} frames at once; got {frames.shape[1]}. Use the windows "
                "of split_windows."
            )
        return self.positions

    def _run(self, layer: nn.Module, states: Tensor, positions: Tensor, real: Tensor | None) -> Tensor:
        if not (self.training and torch.is_grad_enabled()):
            return conformer_layer(layer, states, positions, real)
        if not self.checkpointing:
            return conformer_layer(layer, states, positions, real, fused=True)
        output: Tensor = checkpoint(conformer_layer, layer, states, positions, real, fused=True, use_reentrant=False)
        return output


class LayerMix(nn.Module):
    """A weighted sum of `count` hidden states with learned, positive weights that sum to one, equal at first.

    Source: SUPERB, arXiv 2105.01051.
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(count))

    def forward(self, states: list[Tensor]) -> Tensor:
        """Shape: `count` times [..., F, dim] -> [..., F, dim]."""
        if len(states) != len(self.logits):
            raise ValueError(f"mix of {len(self.logits)} hidden states; got {len(states)}")
        mixed: Tensor = torch.tensordot(self.logits.softmax(dim=0), torch.stack(states), dims=1)
        return mixed


def mel_spectrogram(model: Any, waves: Tensor) -> Tensor:
    """Compute the spectrogram, the input of the front-end.

    Shape: waves [B, T] of equal length -> [B, bands, T // 240].
    """
    mel: Tensor = model.normalize(model.preprocessing(waves, features=[MEL]))[MEL]
    return mel


def run_layers(conformer: Any, states: Tensor, layer: int) -> Tensor:
    """Run the layers below `layer` on the front-end's output. Shape: [B, F, dim] -> the same."""
    positions = None if conformer.embed_positions is None else conformer.embed_positions(states)
    for part in conformer.layers[:layer]:
        states = conformer_layer(part, states, positions, None)
    return states


def conformer_layer(
    layer: Any, states: Tensor, positions: Tensor | None, real: Tensor | None, *, fused: bool = False
) -> Tensor:
    """Compute one layer as transformers does, bit for bit, except that padding does not affect real frames.

    Attention masks the padding. The convolution over time has no mask; its input is zero there, as it is beyond the
    end of a clip alone. With `fused`, attention is equal but for rounding.

    Shape: states [B, F, dim], positions [2, >= F, 1, 1, head], real [B, F] or None if all are -> [B, F, dim].
    Source: Conformer, arXiv 2005.08100; rotary positions, arXiv 2104.09864.
    """
    states = layer.ffn1(layer.ffn1_layer_norm(states)) * 0.5 + states
    normed = layer.self_attn_layer_norm(states)
    if fused and positions is not None:
        attended = _attend(layer.self_attn, normed, positions, real)
    else:
        bias = None if real is None else _attention_bias(real, states.dtype)
        attended, _ = layer.self_attn(normed, attention_mask=bias, relative_position_embeddings=positions)
    states = layer.self_attn_dropout(attended) + states
    states = states + _convolve(layer.conv_module, states, real)
    states = layer.ffn2(layer.ffn2_layer_norm(states)) * 0.5 + states
    output: Tensor = layer.final_layer_norm(states)
    return output


def _attend(attention: Any, states: Tensor, positions: Tensor, real: Tensor | None) -> Tensor:
    """Self-attention with rotary positions that never stores its F x F weights, not even for the gradient.

    Shape: states [B, F, dim], positions [2, >= F, 1, 1, head], real [B, F] or None -> [B, F, dim].
    """
    rotated = attention._apply_rotary_embedding(states, positions)
    given = ((attention.linear_q, rotated), (attention.linear_k, rotated), (attention.linear_v, states))
    query, key, value = (
        linear(values).unflatten(-1, (attention.num_heads, attention.head_size)).transpose(1, 2)  # (B, H, F, head)
        for linear, values in given
    )
    dropout = attention.dropout.p if attention.dropout.training else 0.0
    mask = None if real is None else real[:, None, None]
    attended = scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
    out: Tensor = attention.linear_out(attended.transpose(1, 2).flatten(2))
    return out


def _convolve(module: Any, states: Tensor, real: Tensor | None) -> Tensor:
    """Shape: states [B, F, dim], real [B, F] or None -> [B, F, dim]."""
    channels = module.glu(module.pointwise_conv1(module.layer_norm(states).transpose(1, 2)))  # (B, dim, F)
    if real is not None:
        channels = channels.masked_fill(~real[:, None], 0.0)
    channels = module.activation(module.batch_norm(module.depthwise_conv(channels)))
    out: Tensor = module.dropout(module.pointwise_conv2(channels)).transpose(1, 2)
    return out


def _attention_bias(real: Tensor, dtype: torch.dtype) -> Tensor:
    """Added to attention scores: zero for real frames, the lowest finite number for padding.

    Shape: real [B, F] -> [B, 1, 1, F].
    """
    zeros = torch.zeros(real.shape, dtype=dtype, device=real.device)
    return zeros.masked_fill(~real, torch.finfo(dtype).min)[:, None, None]


def _real_frames(lengths: Tensor, frames: Tensor) -> Tensor | None:
    """True for real frames; None if all are, which needs no masking.

    Keep lengths on the CPU: reading them from a GPU waits for it.

    Shape: lengths [B], frames [B, F, dim] -> [B, F], on the frames' device.
    """
    count = frames.shape[1]
    shortest, longest = int(lengths.min()), int(lengths.max())
    if lengths.shape != frames.shape[:1] or shortest < 1 or longest > count:
        raise ValueError(
            f"{len(frames)} clips padded to {count} frames need as many lengths from 1 to {count}; got "
            f"{len(lengths)} from {shortest} to {longest}"
        )
    return None if shortest == count else (torch.arange(count) < lengths.cpu()[:, None]).to(frames.device)


def _zero_padding(states: Tensor, real: Tensor | None) -> Tensor:
    """Set padding to zero. Shape: states [B, F, dim], real [B, F] or None -> [B, F, dim]."""
    return states if real is None else states.masked_fill(~real[..., None], 0.0)


def check_layer(encoder: "MuQEncoder", from_layer: int) -> None:
    """Raise ModelError unless the hidden state is below the encoder's own output."""
    if not 0 <= from_layer < encoder.layer:
        raise ModelError(
            f"MuQ cut at layer {from_layer}: the layers below its output are 0 to {encoder.layer - 1}. Use one of "
            "these."
        )
