"""Attention with keyed dropout of its weights: torch's functions with puredrop's dropout inside."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from puredrop import ops
from puredrop._torch import safe_softmax
from puredrop.functional.element import dropout
from puredrop.ops import KeySource, Window
from puredrop.rng import Key

__all__ = ["multi_head_attention_forward", "scaled_dot_product_attention"]


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float | Tensor = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    dropout_key: Key | Tensor | KeySource | None = None,
    window: Window | None = None,
    sample_ids: Tensor | None = None,
    sample_dim: int = 0,
) -> Tensor:
    """Compute attention whose weights are dropped under a key.

    Use it in place of torch's function of the same name. Without dropout it calls torch's function. With dropout it
    computes the weights, as torch's math path does: backward keeps two tensors of (..., L, S) numbers, the weights and
    the dropped weights, where torch keeps its mask too.

    Args:
        query: float tensor (..., H, L, E).
        key: float tensor (..., H, S, E), the attention keys; the mask's key is `dropout_key`.
        value: float tensor (..., H, S, Ev).
        attn_mask: bool (True takes part) or float (added), of a shape that broadcasts to (..., L, S).
        dropout_p: drop probability of a weight. As in torch it acts in every mode, so pass 0 in eval mode.
        is_causal: mask the weights above the diagonal; excludes attn_mask.
        scale: factor of the products; None is 1/sqrt(E).
        enable_gqa: let groups of query heads share a head of key and value.
        dropout_key: the key that determines the mask; None draws a key from torch's generator.
        window, sample_ids, sample_dim: as in `dropout`, of the weights' shape.

    Returns:
        float tensor (..., H, L, Ev).

    Raises:
        TypeError, ValueError: for an argument outside of the ranges above; the message names the argument.
        RuntimeError: as torch's function.

    Reference: Vaswani et al.: Attention is all you need (NeurIPS 2017).

    >>> query = torch.ones(1, 2, 4, 8)
    >>> scaled_dot_product_attention(query, query, query, dropout_p=0.5, dropout_key=Key(0)).shape
    torch.Size([1, 2, 4, 8])
    """
    rate = ops.as_rate(dropout_p)
    if not isinstance(rate, Tensor) and rate == 0:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, 0.0, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    if is_causal and attn_mask is not None:
        raise ValueError("is_causal is True and attn_mask is given; expected one of them (merge them into attn_mask)")
    if enable_gqa:
        key, value = (t.repeat_interleave(query.size(-3) // t.size(-3), dim=-3) for t in (key, value))
    scores = query @ key.transpose(-2, -1) * (1 / math.sqrt(query.size(-1)) if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None:
        scores = scores + _additive(attn_mask, query.dtype)
    # Rows in which every key is masked become zeros, as in torch. Compilers know the operator, not torch._safe_softmax.
    weights: Tensor = safe_softmax(scores)
    dropped = dropout(weights, rate, key=dropout_key, window=window, sample_ids=sample_ids, sample_dim=sample_dim)
    return dropped @ value


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a mask as numbers to add; a bool mask is True where a key takes part."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, -math.inf)


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
        ValueError: for static_k and static_v, which only TorchScript's quantised attention uses.
    """
    if static_k is not None or static_v is not None:
        raise ValueError("static_k or static_v is given; expected None: they are for quantised models, without dropout")
    batched = query.dim() == 3
    if not batched:
        query, key, value = (t.unsqueeze(1) for t in (query, key, value))
        key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
    length, batch = query.shape[:2]
    if use_separate_proj_weight:
        projections: tuple[Tensor | None, ...] = (q_proj_weight, k_proj_weight, v_proj_weight)
    else:
        assert in_proj_weight is not None
        projections = in_proj_weight.chunk(3)
    biases = (None,) * 3 if in_proj_bias is None else in_proj_bias.chunk(3)
    q, k, v = (
        F.linear(t, w, b)  # type: ignore[arg-type]
        for t, w, b in zip((query, key, value), projections, biases, strict=True)
    )
    if bias_k is not None and bias_v is not None:
        k, v = (torch.cat([t, b.repeat(1, batch, 1)]) for t, b in ((k, bias_k), (v, bias_v)))
    if add_zero_attn:
        k, v = (F.pad(t, (0, 0, 0, 0, 0, 1)) for t in (k, v))
    q, k, v = (t.unflatten(-1, (num_heads, -1)).permute(1, 2, 0, 3) for t in (q, k, v))  # (N, H, L or S, E/H)
    mask = _merged(attn_mask, key_padding_mask, k.size(2), q)
    if is_causal and attn_mask is None:
        raise RuntimeError("Need attn_mask if specifying the is_causal hint.")  # torch's words
    rate = dropout_p if training else 0.0
    if need_weights:
        weights = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))
        weights = dropout((weights if mask is None else weights + mask).softmax(-1), rate, key=dropout_key)
        output = weights @ v
    else:
        output = scaled_dot_product_attention(q, k, v, mask, rate, dropout_key=dropout_key)
    output = F.linear(output.permute(2, 0, 1, 3).reshape(length, batch, -1), out_proj_weight, out_proj_bias)
    output = output if batched else output.squeeze(1)
    if not need_weights:
        return output, None
    weights = weights.mean(1) if average_attn_weights else weights
    return output, weights if batched else weights.squeeze(0)


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
        masks.append(padding.view(batch, 1, 1, -1))
    added = [_additive(~mask if mask.dtype == torch.bool else mask, query.dtype) for mask in masks]
    added = [F.pad(mask, (0, length - mask.size(-1))) for mask in added]
    return sum(added[1:], added[0]) if added else None
