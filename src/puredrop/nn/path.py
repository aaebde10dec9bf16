"""Stochastic depth: layers that drop residual branches of samples, and whole layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from puredrop import functional
from puredrop.nn.keyed import Keyed
from puredrop.rng import Key, draw_key

__all__ = ["DropPath", "LayerDrop"]


class DropPath(Keyed):
    """Zero a residual branch with probability p, for each sample or for the whole batch.

    Use it as `x = x + drop_path(block(x))` (DropPath in timm, StochasticDepth in torchvision).

    Args:
        p: drop probability in [0, 1], a number or a 0-d tensor (timm: drop_prob).
        mode: "row" decides for each sample, "batch" decides once for the whole batch (torchvision's terms).
        scale_by_keep: scale kept samples by 1/(1-p), so that the expectation is the input (timm's term).
        inplace: write the result into the input.
        key: the key of every mask; None draws a key per forward from torch's default generator.

    Shape: (N, ...); the output has the input's shape.

    Raises:
        TypeError, ValueError: if p is no rate in [0, 1], the mode is another, or the key is no `Key`.

    Reference: Huang et al.: Deep networks with stochastic depth (ECCV 2016).

    >>> DropPath(0.5, key=Key(3))(torch.ones(4, 2)).tolist()
    [[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [2.0, 2.0]]
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
        if not isinstance(input, Tensor) and (node := self.recorded(input)) is not None:
            return node
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
        """Return the rate and the arguments that differ from their defaults."""
        changed = [f"mode={self.mode!r}"] * (self.mode != "row") + ["scale_by_keep=False"] * (not self.scale_by_keep)
        return ", ".join([super().extra_repr(), *changed])


class LayerDrop(Keyed):
    """Skip a layer with probability p and pass its input on; a skipped layer computes nothing.

    Use it on layers whose output replaces their input: residual blocks, encoder layers. Nothing is rescaled, as in the
    paper. The parameters of a skipped layer have no gradient in that step, which DistributedDataParallel accepts only
    with find_unused_parameters=True. Compiled code breaks its graph here.

    Args:
        layer: the module to skip.
        p: probability of skipping the layer, in [0, 1], a number or a 0-d tensor.
        key: the key of every decision; None draws a key per forward from torch's default CPU generator, where the
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
        """Return None, since one decision skips the layer for all samples.

        Args:
            dim: the dimension of the samples in the model; not used.
        """

    def forward(self, input: Any, *arguments: Any, **named: Any) -> Any:
        """Return the layer's output, or in training mode with probability p the input."""
        if not isinstance(input, Tensor) and (node := self.recorded(input, *arguments, **named)) is not None:
            return node
        if self.training:
            key = draw_key(torch.device("cpu")) if self.key is None else self.key
            if not functional.keep_mask((1,), self.p, key, device="cpu").item():
                return input
        return self.layer(input, *arguments, **named)
