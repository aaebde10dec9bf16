"""What every layer here adds to torch's own."""

from __future__ import annotations

from typing import Any, NoReturn

from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from puredrop import ops
from puredrop.rng import Key, check_key

__all__ = ["HasKey", "Keyed"]


class HasKey(nn.Module):
    """Abstract: a key, None to draw one per forward from torch's default generator of the input's device."""

    key: Key | None = None

    def set_key(self, key: Key | None) -> None:
        """Draw every mask from a key from now on.

        Raises:
            TypeError: if the key is no `Key`.
        """
        check_key(key)
        self.key = key

    def samples_in(self, dim: int) -> int | None:
        """Where samples lie in what this layer drops from; None for what belongs to no sample.

        Args:
            dim: the dimension of the samples in the model.
        """
        return dim

    shown: tuple[str, ...] = ()
    """Attributes that a layer shows; none for the text of torch's class beside this one."""

    def extra_repr(self) -> str:
        """What is shown, then the key if there is one."""
        text = ", ".join(f"{name}={getattr(self, name)}" for name in self.shown) or super().extra_repr()
        return ", ".join(filter(None, (text, "" if self.key is None else f"key={self.key}")))

    def __prepare_scriptable__(self) -> NoReturn:
        """TorchScript asks for a stand-in here; there is none, since it knows neither keys nor our operator."""
        raise RuntimeError(
            f"TorchScript cannot hold puredrop's {type(self).__name__}; call puredrop.revert(model) first, which puts "
            "torch's own layer back (or use torch.export on the model in eval mode, where nothing of dropout is left)"
        )


class Keyed(HasKey, _DropoutNd):
    """Abstract: a checked rate and a key; what is dropped is said by the layer's `forward`.

    Args:
        p: probability of a drop, in [0, 1]; a 0-d tensor is data, so that a scheduled rate costs no recompilation (it
            is no part of the state_dict and stays on its device, as torch's p does).
        inplace: write the result into the input.
        key: draw every mask from this key, so that the layer drops the same in each forward; None draws one key per
            forward from torch's default generator of the input's device.

    Raises:
        TypeError, ValueError: if p is no rate in [0, 1], or the key is no `Key`.
    """

    def __init__(self, p: float | Tensor = 0.5, inplace: bool = False, *, key: Key | None = None) -> None:
        rate: Any = ops.as_rate(p)  # torch declares its p a float
        super().__init__(rate, inplace)
        self.set_key(key)
