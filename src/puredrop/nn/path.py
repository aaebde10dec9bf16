"""Stochastic depth: residual branches of samples, and whole layers, left out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from puredrop import functional
from puredrop.nn.keyed import Keyed
from puredrop.rng import Key, draw_key

__all__ = ["DropPath", "LayerDrop"]


class DropPath(Keyed):
    """Zeroes a residual branch for each sample with probability p: x = x + drop_path(block(x)).

    Args:
        p: probability of a drop, in [0, 1], a number or a 0-d tensor (timm: drop_prob).
        mode: "row" decides for each sample, "batch" once for all (torchvision's StochasticDepth).
        scale_by_keep: scale what is kept by 1/(1-p), so that the expectation is the input (timm).
        inplace: write the result into the input.
        key: draw every mask from this key; None draws one key per forward from torch's default generator.

    Shape: (N, ...), input and output alike.

    Raises:
        TypeError, ValueError: if p is no rate in [0, 1], the mode is another, or the key is no `Key`.

    Reference: Huang et al.: Deep networks with stochastic depth (ECCV 2016).
    """

    def __init__(
        self,
        p: float | Tensor = 0.5,
        mode: str = "row",
        scale_by_keep: bool = True,
        inplace: bool = False,
        *,
        key: Key | None = None,
    ) -> None:
        super().__init__(p, inplace, key=key)
        if mode not in ("row", "batch"):
            raise ValueError(f"mode is {mode!r}; expected 'row' (each sample for itself) or 'batch' (all together)")
        self.mode = mode
        self.scale_by_keep = scale_by_keep

    def forward(self, input: Tensor) -> Tensor:
        """Drop samples of the input in training mode; in eval mode return it untouched."""
        return functional.drop_path(
            input,
            self.p,
            self.training,
            self.inplace,
            mode=self.mode,
            scale_by_keep=self.scale_by_keep,
            key=self.key,
        )

    def extra_repr(self) -> str:
        """Rate, and what differs from the defaults."""
        changed = [f"mode={self.mode!r}"] * (self.mode != "row") + ["scale_by_keep=False"] * (not self.scale_by_keep)
        return ", ".join([super().extra_repr(), *changed])


class LayerDrop(Keyed):
    """Leaves out a layer with probability p: its computation is really skipped, and its input goes on.

    For layers that return what they are given, changed: residual blocks, encoder layers. Nothing is rescaled, as in
    the paper. A skipped layer's parameters have no gradient in that step, which DistributedDataParallel accepts with
    find_unused_parameters=True only. Compiled code breaks its graph here.

    Args:
        layer: the module that may be left out.
        p: probability of leaving it out, in [0, 1], a number or a 0-d tensor.
        key: decide from this key; None draws one key per forward from torch's default CPU generator, where the
            decision is needed.

    Shape: as the layer's.

    Raises:
        TypeError, ValueError: if p is no rate in [0, 1], or the key is no `Key`.

    Reference: Fan, Grave and Joulin: Reducing transformer depth on demand with structured dropout (ICLR 2020).

    >>> LayerDrop(torch.nn.Linear(2, 2), p=1.0)(torch.ones(2))
    tensor([1., 1.])
    """

    shown = ("p",)

    def __init__(self, layer: torch.nn.Module, p: float | Tensor = 0.5, *, key: Key | None = None) -> None:
        super().__init__(p, key=key)
        self.layer = layer

    def samples_in(self, dim: int) -> None:
        """In none: the layer is left out for all of them."""

    def forward(self, input: Any, *arguments: Any, **named: Any) -> Any:
        """What the layer returns, or in training mode, with probability p, the input."""
        if self.training:
            key = draw_key(torch.device("cpu")) if self.key is None else self.key
            if not functional.keep_mask((1,), self.p, key, device="cpu").item():
                return input
        return self.layer(input, *arguments, **named)
