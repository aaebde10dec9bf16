"""Torch's multi-head attention with keyed dropout of its weights."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from puredrop.functional.attention import additive, scaled_dot_product_attention
from puredrop.functional.element import dropout
from puredrop.ops import KeySource
from puredrop.rng import Key

__all__ = ["multi_head_attention_forward"]


def multi_head_attention_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float | Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None,
    static_k: Tensor | None = None,
    static_v: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
    *,
    dropout_key: Key | Tensor | KeySource | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Compute `torch.nn.functional.multi_head_attention_forward` with keyed dropout of the attention weights.

    Args:
        dropout_key: the key that determines the mask, whose logical index is that of the weights, (N, num_heads, L, S).
        query, key, value and all others: as torch's.

    Returns:
        The output (L, N, E), and the weights (N, L, S) with zeros for dropped weights, or None without need_weights.

    Raises:
        AssertionError, RuntimeError: as torch's, for shapes and dtypes that do not fit.
        ValueError: for static_k and static_v, which only TorchScript's quantised attention uses.
    """
    if static_k is not None or static_v is not None:
        raise ValueError("static_k or static_v is given; expected None: they are for quantised models, without dropout")
    batched = query.dim() == 3
    _check_ranks(query, key, value, key_padding_mask, attn_mask)
    if is_causal and attn_mask is None:
        raise RuntimeError("Need attn_mask if specifying the is_causal hint.")  # torch's words
    if not batched:
        query, key, value = (t.unsqueeze(1) for t in (query, key, value))
        key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
    length, batch = query.shape[:2]
    _check_sizes(query, key, value, embed_dim_to_check, num_heads, use_separate_proj_weight)
    _check_masks(attn_mask, key_padding_mask, (batch, num_heads, length, key.size(0)), batched)
    separate = (q_proj_weight, k_proj_weight, v_proj_weight) if use_separate_proj_weight else None
    q, k, v = _projected((query, key, value), separate, in_proj_weight, in_proj_bias)
    if (bias_k is None) != (bias_v is None):
        raise AssertionError("one of bias_k and bias_v is None; expected both or none")
    if bias_k is not None and bias_v is not None:
        k, v = (torch.cat([t, b.repeat(1, batch, 1)]) for t, b in ((k, bias_k), (v, bias_v)))
    if add_zero_attn:
        k, v = (F.pad(t, (0, 0, 0, 0, 0, 1)) for t in (k, v))
    q, k, v = (
        t.unflatten(-1, (num_heads, embed_dim_to_check // num_heads)).permute(1, 2, 0, 3) for t in (q, k, v)
    )  # (N, H, L or S, E/H)
    is_hint = is_causal and key_padding_mask is None and not need_weights  # then torch reads no mask
    mask = None if is_hint else _merged(attn_mask, key_padding_mask, k.size(2), q)
    rate = dropout_p if training else 0.0
    if need_weights:
        if mask is not None and mask.dtype != q.dtype:
            raise RuntimeError(f"attn_mask or key_padding_mask has dtype {mask.dtype}; expected bool or {q.dtype}")
        weights = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))
        weights = dropout((weights if mask is None else weights + mask).softmax(-1), rate, key=dropout_key)
        output = weights @ v
    else:
        output = scaled_dot_product_attention(q, k, v, mask, rate, is_hint, dropout_key=dropout_key)
    output = F.linear(output.permute(2, 0, 1, 3).flatten(2), out_proj_weight, out_proj_bias)
    output = output if batched else output.squeeze(1)
    if not need_weights:
        return output, None
    weights = weights.mean(1) if average_attn_weights else weights
    return output, weights if batched else weights.squeeze(0)


def _projected(
    inputs: tuple[Tensor, Tensor, Tensor],
    separate: tuple[Tensor | None, Tensor | None, Tensor | None] | None,
    packed: Tensor | None,
    bias: Tensor | None,
) -> list[Tensor]:
    """Project query, key and value, by weights of their own or by the thirds of one."""
    weights: Sequence[Tensor | None] = separate or ((None,) * 3 if packed is None else packed.chunk(3))
    biases: Sequence[Tensor | None] = (None,) * 3 if bias is None else bias.chunk(3)
    projected = []
    for name, tensor, weight, part in zip(("query", "key", "value"), inputs, weights, biases, strict=True):
        if weight is None or (separate is not None and tensor.size(2) != weight.size(1)):
            expected = "a weight" if weight is None else f"an embedding dimension of {weight.size(1)}"
            raise AssertionError(f"{name} has shape {tuple(tensor.shape)}; its projection expects {expected}")
        projected.append(F.linear(tensor, weight, part))
    return projected


def _merged(attn_mask: Tensor | None, padding: Tensor | None, length: int, query: Tensor) -> Tensor | None:
    """Merge torch's two masks, True where a key is left out, into one to add to (N, H, L, S); None if there is none.

    Appended keys (biases, zeros) take part.
    """
    batch, heads = query.shape[:2]
    masks = []
    if attn_mask is not None:
        attn_mask = attn_mask.view(batch, heads, *attn_mask.shape[1:]) if attn_mask.dim() == 3 else attn_mask
        masks.append(attn_mask)
    if padding is not None:
        masks.append(padding[:, None, None])
    added = [additive(~mask if mask.dtype == torch.bool else mask, query.dtype) for mask in masks]
    added = [F.pad(mask, (0, length - mask.size(-1))) for mask in added]
    return sum(added[1:], added[0]) if added else None


def _check_ranks(query: Tensor, key: Tensor, value: Tensor, padding: Tensor | None, attn_mask: Tensor | None) -> None:
    """Check the numbers of dimensions, with torch's class of error."""
    rank = query.dim()
    expected = {"key": (rank,), "value": (rank,), "key_padding_mask": (rank - 1,), "attn_mask": (2, 3)}
    tensors = {"key": key, "value": value, "key_padding_mask": padding, "attn_mask": attn_mask}
    if rank not in (2, 3):
        raise AssertionError(f"query has shape {tuple(query.shape)}; expected (L, N, E) or, without a batch, (L, E)")
    for name, tensor in tensors.items():
        if tensor is not None and tensor.dim() not in expected[name]:
            ranks = " or ".join(map(str, expected[name]))
            raise AssertionError(
                f"{name} has shape {tuple(tensor.shape)}; expected {ranks} dimensions for a query of {rank}"
            )


def _check_sizes(query: Tensor, key: Tensor, value: Tensor, width: int, heads: int, are_separate: bool) -> None:
    """Check the sizes of query (L, N, E), key and value (S, N, E), with torch's class of error."""
    if query.size(2) != width:
        raise AssertionError(f"query has shape {tuple(query.shape)}; expected an embedding dimension of {width}")
    if width % heads:
        raise AssertionError(f"embed_dim is {width}, num_heads {heads}; expected a multiple of the number of heads")
    if key.shape[:2] != value.shape[:2] or (not are_separate and key.shape != value.shape):
        raise AssertionError(
            f"key has shape {tuple(key.shape)}, value {tuple(value.shape)}; expected the same sequence and batch"
        )


def _check_masks(
    attn_mask: Tensor | None, padding: Tensor | None, sizes: tuple[int, int, int, int], batched: bool
) -> None:
    """Check the dtypes and shapes of masks for weights of sizes (N, H, L, S), with torch's classes of errors."""
    batch, heads, length, source = sizes
    masks = {"key_padding_mask": padding, "attn_mask": attn_mask}
    for name, mask in masks.items():
        if mask is not None and mask.dtype != torch.bool and not mask.is_floating_point():
            raise AssertionError(f"{name} has dtype {mask.dtype}; only bool and floating types are supported")
    if attn_mask is not None:
        expected = (length, source) if attn_mask.dim() == 2 else (batch * heads, length, source)
        if attn_mask.shape != expected:
            kind = RuntimeError if batched or attn_mask.dim() == 2 else AssertionError
            raise kind(f"attn_mask has shape {tuple(attn_mask.shape)}; expected {expected}")
    if padding is not None and padding.shape != (batch, source):
        raise AssertionError(
            f"key_padding_mask has shape {tuple(padding.shape)}; expected {(batch, source)}, one entry per sample and "
            "key (is it transposed?)"
        )
