"""Private names of torch that puredrop uses; those of torch.func are in `_torch_transforms`.

Importing this file fails for none of them. Where this torch lacks a name, a public stand-in serves; where there is no
stand-in, the first use raises an error that names what is missing.
"""

from __future__ import annotations

import copy
import importlib
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import Module

if TYPE_CHECKING:
    from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
    from torch.nn.modules.conv import _ConvNd as ConvNd
    from torch.nn.modules.dropout import _DropoutNd as DropoutNd

__all__ = [
    "COMPILED",
    "FEED_FORWARD",
    "WRAPPERS",
    "BatchNorm",
    "ConvNd",
    "DropoutNd",
    "assert_on_device",
    "backward_number",
    "below_autograd",
    "checkpoint_frame",
    "children",
    "flat_group",
    "forward_pre_hooks",
    "dynamo_exports",
    "fsdp_mesh",
    "has_hooks",
    "is_batched",
    "is_exporting",
    "is_recorded",
    "is_sole_reference",
    "is_view",
    "local_part",
    "operator_tracers",
    "missing",
    "plain_checks",
    "recurrent_weights",
    "remove_hooks",
    "safe_softmax",
    "set_recurrent_weights",
    "share_parameters",
    "show_no_tracing",
    "skip_alone",
    "transforms_active",
    "watch_operators",
    "with_parameters",
    "without_modes",
    "without_subclass",
]

COMPILED = "_orig_mod"
"""The name under which torch.compile holds the module that it wraps."""

WRAPPERS = (COMPILED, "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""The names under which torch.compile, FSDP 1 and checkpoint_wrapper hold the module that they wrap."""

FEED_FORWARD: dict[type[Module], str] = {
    kind: "_ff_block" for kind in (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer) if hasattr(kind, "_ff_block")
}
"""Methods that hold the feed-forward block of torch's modules whose whole forward cannot be traced."""


def _find(path: str) -> Any:
    """Return the object that a dotted path below torch names, or None."""
    value: Any = torch
    for name in path.split("."):
        value = getattr(value, name, None)
    return value


def missing(path: str, task: str) -> RuntimeError:
    """Return the error for a name that this torch lacks."""
    return RuntimeError(
        f"torch {torch.__version__} has no torch.{path}, which {task} needs; install a torch that puredrop was tested "
        "with, from 2.6.0 on (CONTRIBUTING.md lists them)"
    )


if not TYPE_CHECKING:
    # isinstance takes a tuple of public classes as well as their common base; our layers derive from DropoutNd.
    BatchNorm = _find("nn.modules.batchnorm._BatchNorm") or (
        *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),
        nn.SyncBatchNorm,
    )
    ConvNd = _find("nn.modules.conv._ConvNd") or (
        *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
        *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    )
    DropoutNd = _find("nn.modules.dropout._DropoutNd") or nn.Dropout.__base__


# Calls of operators.


def show_no_tracing() -> None:
    """Hide that torch.fx traces, which would be an error for whatever compiled code another thread runs meanwhile."""
    try:
        tracing: Any = importlib.import_module("torch.fx._symbolic_trace")
    except ImportError:
        return
    if hasattr(tracing, "_is_fx_tracing_flag"):
        tracing._is_fx_tracing_flag = False


def plain_checks() -> tuple[Any, ...]:
    """Return the checks of `ops._eager.is_plain` in its order; if torch lacks a check, the first refuses all tensors.

    The last two are a namespace and the name in it that holds the level of forward-mode derivatives: reading the level
    so costs no call.
    """
    paths: tuple[str, ...] = ("_has_storage", "_len_torch_dispatch_stack", "_len_torch_function_stack")
    paths += ("_are_functorch_transforms_active", "_get_tracing_state", "_autograd._profiler_enabled")
    checks = [_find(f"_C.{path}") for path in paths]
    if None in checks or not hasattr(forward_ad, "_current_level"):
        return (lambda tensor: False, *checks[1:], {}, "")
    return (*checks, vars(forward_ad), "_current_level")


def transforms_active() -> bool:
    """Return whether a transform of torch.func is open."""
    try:
        return bool(torch._C._are_functorch_transforms_active())
    except AttributeError:
        stack = _find("_C._functorch.peek_interpreter_stack")
        if stack is None:
            raise missing("_C._are_functorch_transforms_active", "telling transforms of torch.func") from None
        return stack() is not None


def is_batched(tensor: Tensor) -> bool:
    """Return whether a transform of torch.func has wrapped a tensor; True where only the transform can be seen."""
    try:
        return bool(torch._C._functorch.is_functorch_wrapped_tensor(tensor))
    except AttributeError:
        return transforms_active()


def is_recorded() -> bool:
    """Return whether torch.jit.trace or make_fx records the calls being made."""
    if torch.compiler.is_compiling():
        return False  # a compiler that follows this reads no further
    state = _find("_C._get_tracing_state")
    if _find("jit.is_tracing")() if state is None else state() is not None:
        return True
    tracer = getattr(sys.modules.get("torch.fx.experimental.proxy_tensor"), "get_proxy_mode", None)
    return tracer is not None and tracer() is not None


def operator_tracers() -> tuple[type[Any], ...]:
    """Return the class of torch.fx's tracers that run a model and record operators, if it has been imported."""
    tracer = getattr(sys.modules.get("torch.fx.experimental.proxy_tensor"), "PythonKeyTracer", None)
    return () if tracer is None else (tracer,)


def assert_on_device(condition: Tensor, message: str) -> None:
    """Raise a RuntimeError with the message if a 0-d bool tensor is False: on a GPU at its next synchronisation.

    Without the name in torch the check synchronises.
    """
    check = getattr(torch, "_assert_async", None)
    if check is not None:
        check(condition, message)
    elif not condition:
        raise RuntimeError(message)


def is_view(tensor: Tensor) -> bool:
    """Return whether a tensor is a view of another; True where this cannot be told."""
    check = getattr(tensor, "_is_view", None)
    return check is None or bool(check())


def below_autograd(operator: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """Call an operator past its autograd kernel, from within which it is called."""
    guard = getattr(torch._C, "_AutoDispatchBelowAutograd", None)
    if guard is None:
        raise missing("_C._AutoDispatchBelowAutograd", "an operator with a gradient")
    with guard():
        return operator(*arguments)


def without_subclass() -> AbstractContextManager[Any]:
    """Return a context in which tensors of a subclass are treated as plain ones."""
    guard = getattr(torch._C, "DisableTorchFunctionSubclass", None) or getattr(torch._C, "DisableTorchFunction", None)
    if guard is None:
        raise missing("_C.DisableTorchFunctionSubclass", "a batchwise model")
    context: AbstractContextManager[Any] = guard()
    return context


def without_modes() -> AbstractContextManager[Any]:
    """Return a context in which no mode of functions sees calls; without the name in torch they see them, slower."""
    guard = getattr(torch._C, "DisableTorchFunction", None)
    context: AbstractContextManager[Any] = nullcontext() if guard is None else guard()
    return context


def watch_operators(see: Callable[[Any, tuple[Any, ...]], None]) -> AbstractContextManager[Any]:
    """Return a context that shows each operator that this thread runs, with its arguments and output.

    Args:
        see: called after each operator with it, and with its positional arguments and, last, what it returned.
    """
    try:
        base: Any = importlib.import_module("torch.utils._python_dispatch").TorchDispatchMode
    except (ImportError, AttributeError):
        raise missing("utils._python_dispatch.TorchDispatchMode", "watching operators") from None

    def dispatch(mode: Any, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        see(func, (*args, output))
        return output

    # Defined here, since the base class may be missing when this file is imported.
    mode: AbstractContextManager[Any] = type("WatchOperators", (base,), {"__torch_dispatch__": dispatch})()
    return mode


def safe_softmax(scores: Tensor) -> Tensor:
    """Return the softmax over the last dimension, 0 where every score is -inf, as torch's attention has it."""
    operator: Any = getattr(torch.ops.aten, "_safe_softmax", None)
    if operator is not None:
        weights: Tensor = operator.default(scores, -1)
        return weights
    is_masked = (scores == -torch.inf).all(-1, keepdim=True)
    return torch.softmax(scores.masked_fill(is_masked, 0), -1).masked_fill(is_masked, 0)


def is_sole_reference(storage: torch.UntypedStorage) -> bool:
    """Return whether no tensor uses a storage; False where this cannot be told."""
    try:
        return bool(torch._C._storage_Use_Count(storage._cdata) == 1)
    except AttributeError:
        return False


# Modules and what they hold.


def children(module: Module) -> dict[str, Module]:
    """Return a module's direct children by name; unlike `named_children`, a child under two names twice."""
    held: dict[str, Module | None] | None = getattr(module, "_modules", None)
    named = module.named_children() if held is None else held.items()
    return {name: child for name, child in named if child is not None}


def with_parameters(module: Module, parameters: dict[str, nn.Parameter | None]) -> Module:
    """Return a shallow copy of a module with other parameters; the original keeps its parameters."""
    if "_parameters" in vars(module):
        new = copy.copy(module)
        vars(new)["_parameters"] = parameters  # setting them one by one would write into the shared dict
        return new
    new = copy.deepcopy(module)
    for name, parameter in parameters.items():
        new.register_parameter(name, parameter)
    return new


def share_parameters(module: Module, new: Module, shares_table: bool) -> None:
    """Give a copy of a module a forward that is not compiled and, if asked, the module's own table of parameters."""
    vars(new).pop("_compiled_call_impl", None)
    if shares_table:
        vars(new)["_parameters"] = vars(module)["_parameters"]


def is_exporting() -> bool:
    """Return whether torch.export traces this code."""
    if hasattr(torch.compiler, "is_exporting"):
        return torch.compiler.is_exporting()
    # Torch 2.6: only torch.export compiles without Dynamo.
    return dynamo_exports() if torch.compiler.is_dynamo_compiling() else torch.compiler.is_compiling()


def dynamo_exports() -> bool:
    """Return whether Dynamo, which takes the answer for a constant (`pinning._compilers`), traces for torch.export."""
    translator = _find("_dynamo.symbolic_convert.InstructionTranslator.current_tx")
    return translator is not None and getattr(translator(), "export", False) is True


def has_hooks(module: Module) -> bool:
    """Return whether hooks see what goes into a module or comes out of it."""
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, name, None) for name in names)


def forward_pre_hooks(module: Module) -> list[Any]:
    """Return the hooks that run before a module's forward."""
    return list(getattr(module, "_forward_pre_hooks", {}).values())


def remove_hooks(module: Module, is_ours: Callable[[Any], bool]) -> None:
    """Remove a module's forward hooks that a predicate names: a copied module has hooks without their handles."""
    tables = [getattr(module, f"_forward_{kind}", {}) for kind in ("pre_hooks", "hooks")]
    marks = [f"_forward_{kind}" for kind in ("hooks_always_called", "pre_hooks_with_kwargs", "hooks_with_kwargs")]
    for table in tables:
        for number in [number for number, hook in table.items() if is_ours(hook)]:
            del table[number]
            for mark in marks:
                getattr(module, mark, {}).pop(number, None)


def recurrent_weights(module: nn.RNNBase) -> dict[str, Tensor | None]:
    """Return the tensors that a recurrent network's kernel reads, by name."""
    try:
        return dict(zip(module._flat_weights_names, module._flat_weights, strict=True))
    except AttributeError:
        raise missing("nn.RNNBase()._flat_weights", "dropping the weights of a recurrent network") from None


def set_recurrent_weights(module: nn.RNNBase, weights: dict[str, Tensor | None]) -> None:
    """Replace the tensors that a recurrent network's kernel reads, in the order of `recurrent_weights`."""
    module._flat_weights = list(weights.values())


# Processes.


def local_part(shape: torch.Size, mesh: Any, placements: Sequence[Any]) -> tuple[Sequence[int], Sequence[int]]:
    """Return sizes and offset of the part that this process holds of a DTensor."""
    try:
        from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
    except ImportError:
        path = "distributed.tensor._utils.compute_local_shape_and_global_offset"
        raise missing(path, "dropout on a DTensor") from None
    part: tuple[Sequence[int], Sequence[int]] = compute_local_shape_and_global_offset(shape, mesh, placements)
    return part


def flat_group(mesh: Any) -> Any:
    """Return the process group of all processes of a DeviceMesh of several dimensions."""
    if hasattr(mesh, "_flatten"):
        return mesh._flatten().get_group()
    return torch.distributed.new_group(mesh.mesh.flatten().tolist(), use_local_synchronization=True)


def fsdp_mesh(module: Module) -> Any:
    """Return the mesh over which FSDP 2 shards a module's parameters, None for a module that it does not shard."""
    state = getattr(module, "_get_fsdp_state", None)
    if state is not None:
        group = getattr(state(), "_fsdp_param_group", None)
        return None if group is None else group.mesh_info.mesh
    kind = getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", None)
    if kind is None or not isinstance(module, kind):
        return None
    meshes = (getattr(parameter, "device_mesh", None) for parameter in module.parameters())
    return next((mesh for mesh in meshes if mesh is not None), None)


# Backward, checkpoints and compilers.


def backward_number() -> int:
    """Return the number of the backward that this thread runs, -1 for none."""
    try:
        return torch._C._current_graph_task_id()
    except AttributeError:
        raise missing("_C._current_graph_task_id", "a pinned model") from None


def checkpoint_frame() -> type[Any] | None:
    """Return the class of a region of torch.utils.checkpoint that is not reentrant.

    None where there is no such class: pinned sites then refuse to be run in backward, rather than repeat another use.
    """
    importlib.import_module("torch.utils.checkpoint")
    frame: type[Any] | None = _find("utils.checkpoint._CheckpointFrame")
    return frame


def skip_alone(function: Any) -> None:
    """Run a function uncompiled where compilers meet it alone, as hooks of compiled modules, and follow it elsewhere.

    `torch.compiler.disable` would break the graphs of the callers. Where this torch has no such setting, compilers
    only compile more often.
    """
    try:
        eval_frame: Any = importlib.import_module("torch._C._dynamo.eval_frame")
        if hasattr(eval_frame, "set_code_exec_strategy"):
            skip = eval_frame._FrameAction.SKIP
            eval_frame.set_code_exec_strategy(function.__code__, eval_frame._FrameExecStrategy(skip, skip))
        else:  # torch 2.6
            eval_frame.skip_code(function.__code__)
    except (ImportError, AttributeError):
        pass
