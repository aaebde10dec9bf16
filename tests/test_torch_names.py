"""Private names of torch: one file has them all, and puredrop works, or fails by name, where this torch lacks one."""

import ast
import subprocess
import sys
from pathlib import Path

import torch

SOURCES = Path(__file__).parents[1] / "src" / "puredrop"
KNOWN = {"_getframe", "_exit", "_ActionsContainer", "_exchanged_for"}  # of Python, and in dictionaries of ours
MODULES = {name for name in vars(torch.nn.Module()) if name.startswith("_")}

# A name below torch -> whether masks need it, so that without it an error names it.
NAMES = {
    "_C._has_storage": False,
    "_C._len_torch_dispatch_stack": False,
    "_C._len_torch_function_stack": False,
    "_C._are_functorch_transforms_active": False,
    "_C._get_tracing_state": False,
    "_C._autograd._profiler_enabled": False,
    "_C._functorch.is_functorch_wrapped_tensor": False,
    "_C._AutoDispatchBelowAutograd": True,
    "_C.DisableTorchFunctionSubclass": False,
    "_C.DisableTorchFunction": False,
    "_C._storage_Use_Count": False,
    "_assert_async": False,
    "_C._current_graph_task_id": True,
    "autograd.forward_ad._current_level": False,
    "nn.modules.batchnorm._BatchNorm": False,
    "nn.modules.conv._ConvNd": False,
    "nn.modules.dropout._DropoutNd": False,
    "nn.TransformerEncoderLayer._ff_block": False,
    "utils.checkpoint._CheckpointFrame": False,
    "utils._python_dispatch.TorchDispatchMode": False,
}

SCRIPT = """
import os, sys, torch, traceback
import torch._dynamo, torch.utils.checkpoint
from torch.autograd import forward_ad

def use():
    import puredrop
    key = puredrop.Key(0)
    kept = puredrop.functional.dropout(torch.ones(64), 0.5, key=key) != 0
    assert torch.equal(kept, puredrop.keep_mask((64,), 0.5, key))
    x = torch.ones(8, requires_grad=True)
    puredrop.functional.dropout(x, 0.5, key=key).sum().backward()
    model = puredrop.convert(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.5), torch.nn.Linear(4, 2)))
    assert "dropout" in str(puredrop.sites(model, torch.ones(2, 4)))
    with puredrop.reproducible(model):
        model(torch.ones(2, 4)).sum().backward()
    ensemble = puredrop.DropoutEnsemble(model.eval())
    assert ensemble.predict(torch.ones(3, 4), members=4).mean.shape == (3, 2)

for name in sys.argv[1:]:
    sys.stdout.flush()
    child = os.fork()
    if not child:
        owner, _, attribute = name.rpartition(".")
        try:
            holder = eval(f"torch.{owner}" if owner else "torch")
            value = getattr(holder, attribute)
            delattr(holder, attribute)
            import puredrop
        except BaseException as error:
            print(name, "import", repr(error), flush=True)
            os._exit(1)
        try:
            use()
            print(name, "works", flush=True)
        except BaseException as error:
            where = traceback.extract_tb(error.__traceback__)[-1].filename
            whose = "torch" if where.startswith(os.path.dirname(torch.__file__)) else "ours"
            print(name, "fails in", whose, str(error).replace(chr(10), " "), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


def test_where_torch_lacks_a_name():
    done = subprocess.run([sys.executable, "-c", SCRIPT, *NAMES], capture_output=True, text=True, check=True)
    answers = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert answers.keys() == NAMES.keys()
    for name, is_needed in NAMES.items():
        answer = answers[name]
        if answer.startswith("fails in torch"):
            continue  # torch does not run without the name
        if is_needed:
            assert answer.startswith(f"fails in ours torch {torch.__version__} has no torch.{name},"), (name, answer)
        else:
            assert answer == "works", (name, answer)


def private_names(text):
    """Private attributes of other objects than self that a text reads, and what it imports from private modules."""
    names = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            names.add(node.attr)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch"):
            names |= {part for part in node.module.split(".") if part.startswith("_")}
            names |= {alias.name for alias in node.names if alias.name.startswith("_")}
        if isinstance(node, ast.Import):
            names |= {p for a in node.names if a.name.startswith("torch") for p in a.name.split(".") if p[0] == "_"}
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("torch._"):
            names.add(node.value)
    return names


def defined_names(text):
    """Names that a text defines itself: functions, classes, variables and attributes that it sets."""
    nodes = list(ast.walk(ast.parse(text)))
    names = {node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    names |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    set_on_self = (n for n in nodes if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store))
    return names | {n.attr for n in set_on_self if isinstance(n.value, ast.Name) and n.value.id in ("self", "cls")}


def test_no_other_file_uses_a_private_name_of_torch():
    texts = {path: path.read_text() for path in SOURCES.rglob("*.py") if path.name != "_torch.py"}
    ours = set().union(*map(defined_names, texts.values())) - MODULES
    used = {str(path.relative_to(SOURCES)): private_names(text) - ours - KNOWN for path, text in texts.items()}
    assert {path: names for path, names in used.items() if names} == {}


def test_private_names_can_be_found():
    text = "from torch._a import b\nfrom torch.c import _d\nimport torch._e\ntorch._C._f(x._g)\nfind('torch._h')"
    assert private_names(text) == {"_a", "_d", "_e", "_C", "_f", "_g", "torch._h"}
