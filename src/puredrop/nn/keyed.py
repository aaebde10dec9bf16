"""The base classes of every layer: a key, a rate, and a representation that shows both."""

from __future__ import annotations

from typing import Any, NoReturn

from torch import Tensor, nn

from puredrop import ops
from puredrop._hints import hints
from puredrop._torch import DropoutNd
from puredrop.rng import Key, check_key

__all__ = ["HasKey", "Keyed"]


_refuse_seed = hints(
    seed="one key would freeze one mask: call puredrop.reproducible(model, seed=1) for a new mask in each step, "
    "or pass key=puredrop.Key(1) for the same mask in each forward"
)


class HasKey(nn.Module):
    """Abstract: a key, None to draw one per forward from torch's default generator of the input's device."""

    key: Key | ops.SiteKeySource | None = None
    """The key of every mask, set by `set_key`; None draws a key per forward. `puredrop.reproducible` and ensembles
    store a `SiteKeySource` here, past `set_key`: it gives each call the key of the current step or member."""

    def __init_subclass__(cls, **named: Any) -> None:
        super().__init_subclass__(**named)
        if "__init__" in vars(cls):
            type.__setattr__(cls, "__init__", _refuse_seed(vars(cls)["__init__"]))

    def set_key(self, key: Key | None) -> None:
        """Set the key of every mask from now on; None draws a key per forward from torch's default generator.

        Args:
            key: a `Key`, or None.

        Raises:
            TypeError: if the key is neither.
        """
        check_key(key)
        self.key = key

    def samples_in(self, dim: int) -> int | None:
        """Return the samples' dimension in the tensor that this layer drops from; None where masks belong to no sample.

        Args:
            dim: the dimension of the samples in the model.
        """
        return dim

    def recorded(self, *arguments: Any, **named: Any) -> Any:
        """Record a call with symbols of torch.fx as one node, which follows `train()` and `eval()` as torch's do.

        Args:
            arguments, named: the arguments of the forward.

        Returns:
            The symbol of the result; None where there is nothing to record, so that the forward goes on.

        Raises:
            RuntimeError: if the layer belongs to a pinned model.
        """
        return ops.recorded_module(self, self.key, arguments, named)

    shown: tuple[str, ...] = ()
    """Attributes that the representation shows; empty where torch's own text serves."""

    def _get_name(self) -> str:
        # Torch's hook for the first word of a representation: a converted model shows which layers are puredrop's.
        is_ours = type(self).__module__.startswith("puredrop.nn.")
        return f"puredrop.nn.{type(self).__name__}" if is_ours else type(self).__name__

    def extra_repr(self) -> str:
        """Return the shown attributes and the key if there is one."""
        text = ", ".join(f"{name}={getattr(self, name)}" for name in self.shown) or super().extra_repr()
        return ", ".join(filter(None, (text, "" if self.key is None else f"key={self.key}")))

    def __prepare_scriptable__(self) -> NoReturn:
        """Refuse TorchScript's request for a replacement: TorchScript knows neither keys nor our operator."""
        raise RuntimeError(
            f"TorchScript cannot hold puredrop's {type(self).__name__}; call puredrop.revert(model) first, which puts "
            "torch's own layer back (or use torch.export on the model in eval mode, where nothing of dropout is left)"
        )


class Keyed(HasKey, DropoutNd):
    """Abstract: a layer with a checked rate and a key, whose `forward` decides what is dropped.

    Derive your own dropout layer from it, and test the layer with `puredrop.testing.LayerConformance`.

    Args:
        p: drop probability in [0, 1]. A 0-d tensor is data, so that a scheduled rate needs no recompilation; it stays
            on its device and is not part of the state_dict, like torch's p.
        inplace: write the result into the input.
        key: the key of every mask, so that each forward drops the same units; None draws a key per forward from torch's
            default generator of the input's device.

    Raises:
        TypeError, ValueError: if p is no rate in [0, 1], or the key is no `Key`.
    """

    def __init__(self, p: float | Tensor = 0.5, inplace: bool = False, *, key: Key | None = None) -> None:
        rate: Any = ops.as_rate(p)  # torch declares its p a float
        super().__init__(rate, inplace)
        self.set_key(key)
