"""Attention with keyed dropout of its weights."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import attention

from puredrop import ops
from puredrop._torch import safe_softmax
from puredrop.functional.element import dropout
from puredrop.functional.nested import refuse_nested
from puredrop.ops import KeySource, Window
from puredrop.rng import Key

__all__ = ["additive", "scaled_dot_product_attention"]


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
        attn_mask: bool (True takes part) or float (added), of a shape that broadcasts to (..., L, S); or a causal
            bias of `torch.nn.attention.bias`.
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
    if not isinstance(query, Tensor):
        return ops.recorded_call(scaled_dot_product_attention, locals())
    rate = ops.as_rate(dropout_p)
    if not isinstance(rate, Tensor) and rate == 0:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, 0.0, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    attn_mask, is_causal = _without_causal_bias(attn_mask, is_causal, query)
    _check(query, key, value, attn_mask, is_causal)
    if enable_gqa:
        key, value = (_spread_over_heads(name, t, query) for name, t in (("key", key), ("value", value)))
    if scale is None:
        scale = 1 / math.sqrt(query.size(-1)) if query.size(-1) else math.inf
    scores = query @ key.transpose(-2, -1) * scale
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None:
        sizes = zip(reversed(attn_mask.shape), reversed(scores.shape), strict=False)
        if attn_mask.dim() > scores.dim() or any(size not in (1, whole) for size, whole in sizes):
            raise RuntimeError(
                f"attn_mask has shape {tuple(attn_mask.shape)}; expected one that broadcasts to the weights', "
                f"{tuple(scores.shape)}"
            )
        scores = scores + additive(attn_mask, query.dtype)
    # Rows in which every key is masked become zeros, as in torch. Compilers know the operator, not torch._safe_softmax.
    weights: Tensor = safe_softmax(scores)
    dropped = dropout(weights, rate, key=dropout_key, window=window, sample_ids=sample_ids, sample_dim=sample_dim)
    return dropped @ value


def _without_causal_bias(mask: Tensor | None, is_causal: bool, query: Tensor) -> tuple[Tensor | None, bool]:
    """Return a mask and the switch in place of a `CausalBias`, which is a tensor whose own elements mean nothing."""
    bias = getattr(attention, "bias", None)  # whoever has made such a bias has imported it
    if bias is None or not isinstance(mask, bias.CausalBias):
        return mask, is_causal
    if is_causal:
        raise ValueError("is_causal is True and attn_mask is a CausalBias; expected one of them (leave is_causal out)")
    queries, keys = mask.seq_len_q, mask.seq_len_kv
    if mask.variant == bias.CausalVariant.UPPER_LEFT or queries == keys:
        return None, True
    return torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril(keys - queries), False


def _check(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, is_causal: bool) -> None:
    """Check what torch's function checks, with its classes of errors; its products check the sizes."""
    refuse_nested("scaled_dot_product_attention", query)
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if ops.check_tensor(name, tensor) < 2:
            raise RuntimeError(f"{name} has shape {tuple(tensor.shape)}; expected two or more dimensions, (..., L, E)")
        if tensor.dtype != query.dtype:
            raise RuntimeError(f"{name} has dtype {tensor.dtype}; expected the query's, {query.dtype}")
    ops.check_dtype(query)
    ops.check_switch("is_causal", is_causal)
    if attn_mask is None:
        return
    ops.check_tensor("attn_mask", attn_mask)
    if is_causal:
        raise RuntimeError(
            "is_causal is True and attn_mask is given: Explicit attn_mask should not be set when is_causal=True; "
            "expected one of them (merge them into attn_mask)"
        )
    if attn_mask.dtype not in (torch.bool, query.dtype, torch.float32):
        raise RuntimeError(f"attn_mask has dtype {attn_mask.dtype}; expected bool or the query's, {query.dtype}")


def _spread_over_heads(name: str, tensor: Tensor, query: Tensor) -> Tensor:
    """Repeat each head of a key or a value for its group of query heads."""
    if not tensor.size(-3) or query.size(-3) % tensor.size(-3):
        raise RuntimeError(
            f"{name} has shape {tuple(tensor.shape)}; expected heads in dimension -3 whose number divides the query's, "
            f"of shape {tuple(query.shape)}"
        )
    return tensor.repeat_interleave(query.size(-3) // tensor.size(-3), dim=-3)


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a mask as numbers to add; a bool mask is True where a key takes part."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, -math.inf)
