"""MuQ cut in two: a prefix that never changes, heard once and kept on disk, and a suffix that is trained on it.

Layers count from 0. The prefix from layer j is the convolutional front-end and the layers below j; what it hears is
hidden state j. The suffix is layer j up to the last one kept; what it makes of that is the encoder's own output.
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
    """Hidden state `from_layer`, in the encoder's windows joined in time; `split_windows` takes them apart.

    Shape: wave [T] at 24 kHz, float32 -> [F, dim], 25 frames a second.
    Raises ModelError for a layer that is not kept and a wave that is too short.
    """
    check_layer(encoder, from_layer)

    def hear(part: Tensor) -> Tensor:
        return _hidden_state(encoder.module.model, part[None].to(encoder.device), from_layer)[0].cpu()

    return encoder.by_window(wave, hear)


def prefix_reference(reference: EncoderReference, from_layer: int) -> EncoderReference:
    """What the feature store keeps prefix frames under: the same weights, read at hidden state `from_layer`.

    For 1 and up these are also the frames of an encoder that is loaded to read that layer, and are shared with it.
    """
    return replace(reference, layer=from_layer)


def split_windows(frames: Tensor, samples: int, window: float | None = WINDOW_SECONDS) -> tuple[Tensor, ...]:
    """The windows in which a recording of so many samples at 24 kHz was heard; no layer hears beyond its window.

    `window` is the encoder's (`MuQEncoder.window`). Each window's samples decide its frames, and differ by one at most,
    the longer ones first: so do the frames.

    Shape: frames [F, dim] of a recording -> window_count(samples, window) times [F_i, dim], F_i together F.
    """
    return torch.tensor_split(frames, window_count(samples, window))


class MuQSuffix(nn.Module):
    """The layers of a MuQ encoder from `from_layer` on, shared with it: what is trained here changes the encoder.

    Which of its parameters are trained is for `adapters` to say, before or after. Parameters keep MuQ's layer numbers
    in their names. With `checkpointing`, each layer is computed again in the backward pass instead of remembered.
    A pass that will have gradients attends by torch's fused kernel, equal but for rounding; without, as scoring does.

    Shape: frames [B, F, dim] and lengths [B] -> [B, F, dim], zero beyond each clip's length.
    Raises ModelError for a layer that is not kept, and for clips longer than a window.
    """

    def __init__(self, encoder: "MuQEncoder", from_layer: int, *, checkpointing: bool = False) -> None:
        super().__init__()
        check_layer(encoder, from_layer)
        conformer = encoder.module.model.conformer
        if conformer.config.position_embeddings_type != "rotary":
            raise ModelError(
                f"MuQ with {conformer.config.position_embeddings_type} positions cannot be trained. Use one with "
                "rotary positions, as published."
            )
        self.layers = nn.ModuleDict({str(index): conformer.layers[index] for index in range(from_layer, encoder.layer)})
        self.norm = conformer.layer_norm  # nothing, unless the model's own last layer is the one that is read
        self.checkpointing = checkpointing
        self._positions_of: Callable[[Tensor], Tensor] = conformer.embed_positions.forward
        self.positions: Tensor | None
        nothing = torch.zeros(1, 1, encoder.dim, device=next(self.parameters()).device)
        # Of an encoder that hears recordings whole there is no longest one: each pass computes its own.
        table = None if encoder.window is None else self._positions_of(nothing)
        self.register_buffer("positions", table, persistent=False)

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        return self.hidden_states(frames, lengths)[-1]

    def hidden_states(self, frames: Tensor, lengths: Tensor) -> list[Tensor]:
        """Every hidden state from `from_layer` (the frames themselves) to the encoder's output, for a `LayerMix`.

        Shape: frames [B, F, dim], lengths [B] -> 1 + layers times [B, F, dim], zero beyond each clip's length.
        """
        positions = self._positions_for(frames)
        real = _real_frames(lengths, frames)
        states = [_silence(frames, real)]
        for layer in self.layers.values():
            states.append(_silence(self._through(layer, states[-1], positions, real), real))
        states[-1] = _silence(self.norm(states[-1]), real)
        return states

    def _positions_for(self, frames: Tensor) -> Tensor:
        """Shape: frames [B, F, dim] -> [2, >= F, 1, 1, head]."""
        if self.positions is None:
            return self._positions_of(frames)
        if frames.shape[1] > self.positions.shape[1]:
            raise ModelError(
                f"MuQ hears at most {self.positions.shape[1]} frames at once; got {frames.shape[1]}. Give it the "
                "windows that split_windows makes of a recording."
            )
        return self.positions

    def _through(self, layer: nn.Module, states: Tensor, positions: Tensor, real: Tensor | None) -> Tensor:
        if not (self.training and torch.is_grad_enabled()):
            return conformer_layer(layer, states, positions, real)
        if not self.checkpointing:
            return conformer_layer(layer, states, positions, real, fused=True)
        made: Tensor = checkpoint(conformer_layer, layer, states, positions, real, fused=True, use_reentrant=False)
        return made


class LayerMix(nn.Module):
    """A weighted sum of `count` hidden states, with weights that are learned, positive and sum to one.

    All weights are equal at first. Source: SUPERB, arXiv 2105.01051.
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(count))

    def forward(self, states: list[Tensor]) -> Tensor:
        """Shape: `count` times [..., F, dim] -> [..., F, dim]."""
        if len(states) != len(self.logits):
            raise ValueError(f"this mix is of {len(self.logits)} hidden states; got {len(states)}")
        mixed: Tensor = torch.tensordot(self.logits.softmax(dim=0), torch.stack(states), dims=1)
        return mixed


def _hidden_state(model: Any, waves: Tensor, layer: int) -> Tensor:
    """Shape: waves [B, T] of equal length -> [B, F, dim]."""
    return through_layers(model.conformer, model.conv(mel_of(model, waves)), layer)


def mel_of(model: Any, waves: Tensor) -> Tensor:
    """The spectrogram that the front-end is given. Shape: waves [B, T] of equal length -> [B, bands, T // 240]."""
    mel: Tensor = model.normalize(model.preprocessing(waves, features=[MEL]))[MEL]
    return mel


def through_layers(conformer: Any, states: Tensor, layer: int) -> Tensor:
    """The hidden state that the layers below `layer` make of the front-end's. Shape: [B, F, dim] -> the same."""
    positions = None if conformer.embed_positions is None else conformer.embed_positions(states)
    for part in conformer.layers[:layer]:
        states = conformer_layer(part, states, positions, None)
    return states


def conformer_layer(
    layer: Any, states: Tensor, positions: Tensor | None, real: Tensor | None, *, fused: bool = False
) -> Tensor:
    """One layer as transformers computes it, bit for bit, but that padding is heard by no real frame.

    Attention is easily told what is padding; the convolution over time is not, and is given zeros there, which is what
    it finds beyond the end of a clip that is alone. With `fused`, attention is no longer equal to the last bit.

    Shape: states [B, F, dim], positions [2, >= F, 1, 1, head], real [B, F] or None where all are -> [B, F, dim].
    Source: Conformer, arXiv 2005.08100; rotary positions, arXiv 2104.09864.
    """
    states = layer.ffn1(layer.ffn1_layer_norm(states)) * 0.5 + states
    attending = layer.self_attn_layer_norm(states)
    if fused and positions is not None:
        heard = _attend(layer.self_attn, attending, positions, real)
    else:
        bias = None if real is None else _bias(real, states.dtype)
        heard, _ = layer.self_attn(attending, attention_mask=bias, relative_position_embeddings=positions)
    states = layer.self_attn_dropout(heard) + states
    states = states + _convolve(layer.conv_module, states, real)
    states = layer.ffn2(layer.ffn2_layer_norm(states)) * 0.5 + states
    made: Tensor = layer.final_layer_norm(states)
    return made


def _attend(attention: Any, states: Tensor, positions: Tensor, real: Tensor | None) -> Tensor:
    """Self-attention with rotary positions that never writes its F x F weights down, nor keeps them for the gradient.

    Shape: states [B, F, dim], positions [2, >= F, 1, 1, head], real [B, F] or None -> [B, F, dim].
    """
    turned = attention._apply_rotary_embedding(states, positions)
    query, key, value = (
        linear(given).unflatten(-1, (attention.num_heads, attention.head_size)).transpose(1, 2)  # (B, H, F, head)
        for linear, given in ((attention.linear_q, turned), (attention.linear_k, turned), (attention.linear_v, states))
    )
    dropped = attention.dropout.p if attention.dropout.training else 0.0
    mask = None if real is None else real[:, None, None]
    heard = scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropped)
    out: Tensor = attention.linear_out(heard.transpose(1, 2).flatten(2))
    return out


def _convolve(module: Any, states: Tensor, real: Tensor | None) -> Tensor:
    """Shape: states [B, F, dim], real [B, F] or None -> [B, F, dim]."""
    channels = module.glu(module.pointwise_conv1(module.layer_norm(states).transpose(1, 2)))  # (B, dim, F)
    if real is not None:
        channels = channels.masked_fill(~real[:, None], 0.0)
    channels = module.activation(module.batch_norm(module.depthwise_conv(channels)))
    out: Tensor = module.dropout(module.pointwise_conv2(channels)).transpose(1, 2)
    return out


def _bias(real: Tensor, dtype: torch.dtype) -> Tensor:
    """Added to attention scores: nothing where the frame heard is real, the lowest number where it is padding.

    Shape: real [B, F] -> [B, 1, 1, F].
    """
    nothing = torch.zeros(real.shape, dtype=dtype, device=real.device)
    return nothing.masked_fill(~real, torch.finfo(dtype).min)[:, None, None]


def _real_frames(lengths: Tensor, frames: Tensor) -> Tensor | None:
    """True where a frame is real; None where all are, which needs no masking.

    Lengths are best left on the CPU: what is on a GPU must be waited for.

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


def _silence(states: Tensor, real: Tensor | None) -> Tensor:
    """Zero where there is padding. Shape: states [B, F, dim], real [B, F] or None -> [B, F, dim]."""
    return states if real is None else states.masked_fill(~real[..., None], 0.0)


def check_layer(encoder: "MuQEncoder", from_layer: int) -> None:
    """Raise ModelError for a hidden state that is none below the encoder's own output."""
    if not 0 <= from_layer < encoder.layer:
        raise ModelError(
            f"MuQ cut at layer {from_layer}: the layers up to the one that is read are 0 to {encoder.layer - 1}. "
            "Choose one of these."
        )
