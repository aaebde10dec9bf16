"""Check that weights are finite, for outputs that are not."""

from __future__ import annotations

from torch import Tensor
from torch.nn import Module

from puredrop._text import listed

__all__ = ["check_weights"]

_SHOWN = 4


def check_weights(model: Module, outputs: Tensor) -> None:
    """Raise ValueError if a model's outputs are not finite and its weights are not, and name these.

    Finite outputs need no check: a weight of minus infinity may be a mask.
    """
    if bool(outputs.isfinite().all()):
        return
    every = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    bad = [
        f"{name} ({int(value.isnan().sum())} NaN and {int(value.isinf().sum())} infinite of {value.numel()})"
        for name, value in every.items()
        if value.is_floating_point() and not bool(value.isfinite().all())
    ]
    if bad:
        raise ValueError(
            f"the model's weights are not finite: {listed(bad, _SHOWN)}; expected numbers (did the training diverge?)"
        )
