"""A user's network in place of the built-in one: imported, checked, and run for all seeds."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from puredrop._text import first_line
from puredrop._torch import DropoutNd
from puredrop.compare.data import Data
from puredrop.compare.network import Parameters
from puredrop.conversion import convert
from puredrop.inspection import sites
from puredrop.inspection.load import find
from puredrop.rng import Key
from puredrop.thinning import batchwise

__all__ = ["UserModel", "load_model"]

# Attributes that hold the rate of a module which drops by itself; nn.Dropout's family, attention and recurrent
# layers, and the names that stochastic depth goes by.
_RATES: dict[type[nn.Module], str] = {
    DropoutNd: "p",
    nn.MultiheadAttention: "dropout",
    nn.RNNBase: "dropout",
}
_RATE_NAMES = ("drop_prob", "drop_rate")


@dataclass(frozen=True)
class UserModel:
    """One copy of a model per seed.

    Args:
        factory: makes a model.
        dropping: the model with its dropout, our layers in the place of torch's.
        plain: the same with every rate 0.
        sites: paths of the modules that drop.
        batched: whether all seeds run as one call.
        thinned: the model with dropout, run batchwise; None where no arm asks for it.
    """

    factory: Callable[[], nn.Module]
    dropping: nn.Module
    plain: nn.Module
    sites: tuple[str, ...]
    batched: bool = True
    thinned: nn.Module | None = None

    @property
    def splits(self) -> bool:
        """Return whether seeds run one after the other: as one call they share a generator."""
        return not self.batched

    def initial(self, seeds: Sequence[int]) -> Parameters:
        """Return fresh parameters and buffers, a pure function of each seed, stacked: (seeds, ...)."""
        models = []
        with torch.random.fork_rng(devices=[]):
            for seed in seeds:
                torch.manual_seed(int(Key(seed).fold_in("init")))
                models.append(self.factory())
        parameters, buffers = stack_module_state(models)
        return {name: value.detach() for name, value in {**parameters, **buffers}.items()}

    def digest(self) -> str:
        """Return a hash of the model's text and first initial values: other code is another run."""
        state = hashlib.blake2b(repr(self.dropping).encode(), digest_size=16)
        for name, value in self.initial(range(1)).items():
            state.update(name.encode() + value.contiguous().numpy().tobytes())
        return state.hexdigest()

    def trainable(self, parameters: Parameters) -> Parameters:
        """Return the parameters that are trained: no buffers, and nothing that the factory has frozen."""
        names = {name for name, value in self.plain.named_parameters() if value.requires_grad}
        return {name: value for name, value in parameters.items() if name in names}

    def module(self, parameters: Parameters, copy: int, *, dropout: bool = True) -> nn.Module:
        """Return one copy by itself, in eval mode; without dropout its dropout layers have rate 0."""
        model = deepcopy(self.dropping if dropout else self.plain)
        model.load_state_dict({name: value[copy] for name, value in parameters.items()})
        return model.eval()

    def outputs(
        self,
        parameters: Parameters,
        x: Tensor,
        key: Key | None = None,
        *,
        one_mask: bool = False,
        training: bool = False,
        first: int = 0,
        groups: int | None = None,
    ) -> Tensor:
        """Run every copy on its own rows.

        Args:
            parameters: as `initial` gives them.
            x: (seeds, rows, features).
            key: draw masks from a generator seeded by it; None drops nothing.
            one_mask: without effect: a user's model draws a mask per row, also as a member.
            training: put the whole model in training mode; else dropout alone is active, and BatchNorm is not.
            first: number of seeds before these.
            groups: run batchwise, in the groups that the model was loaded for; in a batch of fewer rows each row has a
                mask of its own, and no unit is left out.

        Returns:
            (seeds, rows, outputs).
        """
        model = self.plain if key is None else self.dropping
        is_thin = key is not None and groups is not None and x.shape[1] >= groups
        if is_thin:
            assert self.thinned is not None
            model = self.thinned
        model.train(training)
        if key is not None:
            for path in self.sites:
                model.get_submodule(path).train()
        if key is None and not training:
            return self._run(model, parameters, x, None, first, self.batched)
        with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
            return self._run(model, parameters, x, key, first, self.batched and not is_thin)

    def _run(
        self, model: nn.Module, parameters: Parameters, x: Tensor, key: Key | None, first: int, batched: bool
    ) -> Tensor:
        if batched:
            if key is not None:
                torch.manual_seed(int(key))
            run = vmap(lambda seed, rows: functional_call(model, seed, (rows,)), randomness="different")
            output: Tensor = run(parameters, x)
        else:
            outputs = []
            for seed, rows in enumerate(x):
                if key is not None:
                    torch.manual_seed(int(key.fold_in(first + seed)))
                # Views, so that what a layer writes into its buffers arrives in the stack.
                outputs.append(functional_call(model, {name: v[seed] for name, v in parameters.items()}, (rows,)))
            output = torch.stack(outputs)
        return output.unsqueeze(-1) if output.dim() == 2 else output


def load_model(spec: str, data: Data, groups: int | None = None) -> tuple[UserModel, tuple[str, ...]]:
    """Import a factory and check its model against the data.

    Args:
        spec: "module:factory", the module importable from the working folder.
        data: the data that the model has to fit.
        groups: groups of a batch in the arm batchwise; None where that arm is not trained.

    Returns:
        The model, and notes on it.

    Raises:
        ValueError: with one line that names what is wrong.
    """
    factory: Callable[[], nn.Module] = find(spec, "--model")
    model = _make(spec, factory)
    x = data.train.x[:2]
    model = model.to(x.device, x.dtype)
    dropping, plain = convert(deepcopy(model)), deepcopy(model)
    silenced = _silence(plain)
    if not silenced:
        raise ValueError(f"--model {spec}: no module with a dropout rate above 0; there is nothing to compare")
    _check_output(spec, plain, x, data)
    _check_silence(spec, plain, x)
    thinned = None if groups is None else _thin(spec, dropping, groups)
    user = UserModel(factory, dropping, plain, silenced, thinned=thinned)
    reason = _unbatchable(user, x)
    if reason is not None:
        user = replace(user, batched=False)
    count = sum(value.numel() for value in model.parameters())
    notes = [f"model {spec}: {count} parameters, dropout in {', '.join(silenced)}"]
    if reason is not None:
        notes.append(f"seeds train one after the other, since the model cannot be batched ({reason})")
    return user, tuple(notes)


def _thin(spec: str, dropping: nn.Module, groups: int) -> nn.Module:
    model = deepcopy(dropping)
    try:
        batchwise(model, groups)
    except ValueError as error:
        raise ValueError(f"--model {spec}, --arms batchwise: {error}") from error
    return model


def _make(spec: str, factory: Callable[[], nn.Module]) -> nn.Module:
    try:
        with torch.random.fork_rng(devices=[]):
            model = factory()
    except TypeError as error:
        if "argument" not in str(error):
            raise
        raise ValueError(f"--model {spec}: {error}; expected a factory that needs no arguments") from error
    if not isinstance(model, nn.Module):
        raise ValueError(f"--model {spec}: the factory gave {type(model).__name__}; expected a torch.nn.Module")
    return model


def _silence(model: nn.Module) -> tuple[str, ...]:
    """Set every rate to 0 and return the paths of the modules whose rate was above 0."""
    sites = []
    for path, module in model.named_modules():
        names = [name for kind, name in _RATES.items() if isinstance(module, kind)]
        names += [name for name in _RATE_NAMES if isinstance(getattr(module, name, None), float)]
        for name in names:
            if getattr(module, name) > 0:
                sites.append(path)
            setattr(module, name, 0.0)
    return tuple(dict.fromkeys(sites))


def _check_output(spec: str, model: nn.Module, x: Tensor, data: Data) -> None:
    try:
        with torch.no_grad():
            output = model.eval()(x)
    except Exception as error:
        raise ValueError(f"--model {spec}: fails on input of shape {tuple(x.shape)} ({first_line(error)})") from error
    shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    expected = [(len(x), data.task.outputs)] + ([(len(x),)] if data.task.outputs == 1 else [])
    if shape not in expected:
        raise ValueError(
            f"--model {spec}: {data.task.name} needs an output of shape {expected[0]} for input {tuple(x.shape)}, "
            f"got {shape}"
        )


def _check_silence(spec: str, plain: nn.Module, x: Tensor) -> None:
    """Refuse a model that still drops with every rate at 0: its undropped arm would have dropout."""
    active = [site for site in sites(plain, x) if site.is_reached and (site.p is None or site.p > 0)]
    functional = [f"{site.kind}(p={site.p:g}) at {site.where}" for site in active if site.p is not None]
    if functional:
        raise ValueError(
            f"--model {spec}: functional dropout cannot be switched off for the arm without it: "
            f"{'; '.join(functional)}; make it a torch.nn.Dropout layer"
        )
    if active:
        raise ValueError(
            f"--model {spec}: draws random numbers with every known rate at 0; "
            "a dropout of its own cannot be switched off"
        )


def _unbatchable(user: UserModel, x: Tensor) -> str | None:
    """Return why two seeds cannot run as one call, forward and backward, in training; None if they can."""
    parameters = {
        name: value.to(x.device, x.dtype if value.is_floating_point() else None)
        for name, value in user.initial(range(2)).items()
    }
    for value in user.trainable(parameters).values():
        value.requires_grad_()
    try:
        user.outputs(parameters, x.expand(2, -1, -1), Key(0), training=True).sum().backward()
    except Exception as error:  # any refusal of vmap's has the same answer: one seed after the other
        return first_line(error, 100)
    return None
