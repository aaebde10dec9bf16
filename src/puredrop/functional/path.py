"""Stochastic depth: dropout of whole samples of a residual branch."""

from __future__ import annotations

import torch
from torch import Tensor

from puredrop import ops
from puredrop.functional.element import drop, kept, passes
from puredrop.functional.nested import special_call
from puredrop.ops import KeySource, Window
from puredrop.rng import Key

__all__ = ["drop_path"]


def drop_path(
    input: Tensor,
    p: float | Tensor = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    mode: str = "row",
    scale_by_keep: bool = True,
    key: Key | Tensor | KeySource | None = None,
    window: Window | None = None,
    sample_ids: Tensor | None = None,
    sample_dim: int = 0,
) -> Tensor:
    """Zero a residual branch with probability p, for each sample or for the whole batch.

    Use it on the branch that a residual block adds to its input (DropPath in timm, StochasticDepth in torchvision).

    Args:
        input: float tensor (N, ...), the output of the branch.
        p: drop probability in [0, 1], a number or a 0-d tensor.
        training: drop samples; with False the input itself is returned.
        inplace: write the result into the input and return the input.
        mode: "row" decides for each sample, "batch" decides once for the whole batch (torchvision's terms).
        scale_by_keep: scale kept samples by 1/(1-p), so that the expectation is the input (timm's term).
        key, window, sample_ids, sample_dim: as in `dropout`.

    Returns:
        A tensor like the input, as `dropout`.

    Raises:
        ValueError: for another mode; and as `dropout`.
        TypeError, RuntimeError: as `dropout`.

    Reference: Huang et al.: Deep networks with stochastic depth (ECCV 2016).

    >>> drop_path(torch.ones(4, 2), 0.5, key=Key(3)).tolist()
    [[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [2.0, 2.0]]
    """
    if not isinstance(input, Tensor) or input.is_nested:
        return special_call(drop_path, locals())
    if mode not in ("row", "batch"):
        raise ValueError(f"mode is {mode!r}; expected 'row' (each sample for itself) or 'batch' (all together)")
    rate = ops.as_rate(p)
    rank = ops.check_tensor("input", input)
    place = ops.place_of(input.shape, range(1 if mode == "row" else 0, rank), window, sample_ids, sample_dim)
    if scale_by_keep:
        return drop(input, rate, training, inplace, key, place)
    if passes(input, rate, training):
        return input
    ops.check_dtype(input)
    output = torch.where(kept(input, rate, key, place), input, torch.zeros((), dtype=input.dtype, device=input.device))
    return input.copy_(output) if inplace else output
