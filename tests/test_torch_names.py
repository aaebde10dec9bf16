"""Private names of torch: three files have them all, and puredrop works, or fails by name, where this torch lacks one."""

import ast
import functools
import re
import subprocess
import sys
from pathlib import Path

import torch
import torch.distributed.fsdp  # so that the names in it can be found
import torch.distributed.tensor

SOURCES = Path(__file__).parents[1] / "src" / "puredrop"
PRIVATE = ("_torch.py", "_torch_transforms.py", "_torch_modes.py")
KNOWN = {"_getframe", "_exit", "_ActionsContainer", "_exchanged_for"}  # of Python, and in dictionaries of ours
MODULES = {name for name in vars(torch.nn.Module()) if name.startswith("_")}

# Scopes below torch in which the file looks for names that it gives by a string or on an object.
SCOPES = [
    "_C",
    "autograd.forward_ad",
    "Tensor",
    "ops.aten",
    "nn.TransformerEncoderLayer",
    "nn.TransformerDecoderLayer",
    "distributed.device_mesh.DeviceMesh",
    "distributed.fsdp.FSDPModule",
    "fx._symbolic_trace",
    "utils.checkpoint",
]
# Attributes that torch gives its objects when it makes them: there is nothing to delete. The last is of torch 2.6.
STATE = {name for name in vars(torch.nn.LSTM(1, 1)) if name.startswith("_")}
STATE |= {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_compiled_call_impl"}
STATE |= {"_cdata", "_fsdp_param_group", "skip_code"}
if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 7):  # names of later versions than the oldest
    STATE |= {"set_code_exec_strategy", "_FrameExecStrategy", "_FrameAction", "SKIP"}
if not hasattr(torch.fx._symbolic_trace, "_is_fx_tracing_flag"):  # torch 2.15 keeps it for each thread
    STATE |= {"_is_fx_tracing_flag"}
# Uses that are refused in words of their own: a layer without the method is one whose forward cannot be followed.
REFUSED = {("nn.TransformerEncoderLayer._ff_block", "feed_forward"): "nothing to compact"}
# Torch itself does not trace without this name.
REFUSED |= {
    ("fx._symbolic_trace._is_fx_tracing_flag", use): "cannot be followed" for use in ("batchwise", "feed_forward")
}

# Torch's own operators are not registered without this class.
REFUSED |= {("_subclasses.fake_tensor.FakeTensorMode", "import"): "cannot import name 'FakeTensorMode'"}

SCRIPT = """
import contextlib, os, sys, tempfile, torch
import torch._C._dynamo.eval_frame, torch._dynamo, torch.distributed.fsdp, torch.distributed.tensor
from torch.utils.checkpoint import checkpoint

def delete(name):
    owner, _, attribute = name.rpartition(".")
    holder = eval(f"torch.{owner}".rstrip("."))
    if holder is torch.ops.aten:  # finds its operators by name
        find = type(holder).__getattr__
        vars(holder).pop(attribute, None)
        type(holder).__getattr__ = lambda self, key: refuse() if key == attribute else find(self, key)
    elif attribute in vars(holder):
        delattr(holder, attribute)
    else:  # of a base in C, which cannot be changed
        setattr(holder, attribute, Refused(refuse))

class Refused(property):
    __name__ = "refused"  # which torch.fx reads of every attribute of tensors

def refuse(*_):
    raise AttributeError(attribute_of_this)

def net(*middle):
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), *middle, torch.nn.Linear(16, 2))

def step(model, *inputs):
    torch.manual_seed(1)
    output = model(*inputs)
    output = output[0] if isinstance(output, tuple) else output
    output.square().sum().backward()
    return [output.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]

class Checkpointed(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = net(torch.nn.Dropout(0.5), torch.nn.Linear(16, 16), torch.nn.Dropout(0.5))

    def forward(self, x):
        return checkpoint(self.inner, x, use_reentrant=False)

def uses():
    import puredrop
    key, x = puredrop.Key(0), torch.randn(6, 8, generator=torch.Generator().manual_seed(2))

    def functional():
        y = x.clone().requires_grad_()
        output = puredrop.functional.dropout(y, 0.5, key=key)
        output.sum().backward()
        assert torch.equal(output != 0, puredrop.keep_mask(x.shape, 0.5, key))
        return [output.detach(), y.grad, torch.func.vmap(lambda row: puredrop.functional.dropout(row, 0.5, key=key))(x)]

    def batchwise():
        model = puredrop.batchwise(net(torch.nn.Dropout(0.5)), 2)
        with puredrop.reproducible(model, seed=1):
            return step(model, x)

    def feed_forward():
        torch.manual_seed(0)
        model = puredrop.batchwise(torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)
        with puredrop.reproducible(model, seed=1):
            return step(model, x.view(2, 3, 8))

    def pinned(model=None):
        model = model or puredrop.convert(net(torch.nn.Dropout(0.5)))
        with puredrop.reproducible(model, seed=1) as run:
            first = step(model, x)
            run.advance()
            return first + step(model, x)

    def checkpointed():
        return pinned(Checkpointed())

    def attention():
        torch.manual_seed(0)
        rows = x.view(2, 3, 8)
        return step(puredrop.nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True, key=key), rows, rows, rows)

    def recurrent():
        torch.manual_seed(0)
        model = puredrop.nn.LSTM(8, 4, num_layers=2, dropout=0.5, key=key)
        return step(model, x.view(3, 2, 8))

    def weight_drop():
        torch.manual_seed(0)
        return step(puredrop.nn.WeightDrop(torch.nn.LSTM(8, 4), 0.5, key=key), x.view(3, 2, 8))

    def survey():
        model = net(torch.nn.BatchNorm1d(16), torch.nn.Dropout(0.95))
        return [str(puredrop.sites(model, x)), str(puredrop.check(model, x))]

    def ensemble():
        found = puredrop.DropoutEnsemble(net(torch.nn.Dropout(0.5)).eval(), seed=1).predict(x, members=4)
        return [found.mean, found.variance]

    return [functional, batchwise, feed_forward, pinned, checkpointed, attention, recurrent, weight_drop, survey, ensemble]

def run(name, path):
    torch.set_num_threads(1)
    if name:
        global attribute_of_this
        attribute_of_this = name
        delete(name)
    expected = torch.load(path) if name else {}
    for use in uses():
        try:
            values = use()
        except Exception as error:
            import traceback
            of_torch = os.path.dirname(torch.__file__) in traceback.extract_tb(error.__traceback__)[-1].filename
            print(name, use.__name__, "torch" if of_torch else "ours", repr(error).replace(chr(10), " "), flush=True)
            continue
        if name:
            try:
                if use.__name__ == "survey":
                    assert values == expected["survey"], values
                else:
                    torch.testing.assert_close(values, expected[use.__name__])
            except AssertionError as error:
                print(name, use.__name__, "other", repr(error).replace(chr(10), " "), flush=True)
        expected[use.__name__] = values
    if not name:
        torch.save(expected, path)

with tempfile.TemporaryDirectory() as folder:
    for name in ("", *sys.argv[1:]):
        sys.stdout.flush()
        child = os.fork()
        if not child:
            try:
                run(name, folder + "/expected")
            except BaseException as error:
                print(name, "import", "ours", repr(error), flush=True)
            print(name or "-", "end", flush=True)
            os._exit(0)
        os.waitpid(child, 0)
"""


def chain(node, modules):
    """Return the dotted path below torch, with a dot after it, of an expression such as `torch._C._x`, or None."""
    if isinstance(node, ast.Name):
        return modules.get(node.id)
    if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        name = node.args[0].value
        return f"{name.removeprefix('torch.')}." if str(name).startswith("torch.") else None
    above = chain(node.value, modules) if isinstance(node, ast.Attribute) else None
    return None if above is None else f"{above}{node.attr}."


def mentioned(text):
    """Return the names with a private part that a text gives: attributes, imports, strings; below torch where told."""
    tree = ast.parse(text)
    modules = {"torch": "", "nn": "nn.", "forward_ad": "autograd.forward_ad."}
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.AnnAssign)
            and isinstance(node.value, ast.Call)
            and (path := chain(node.value, modules))
        ):
            modules[node.target.id] = path
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and id(node) not in inner:
            above = chain(node.value, modules)
            names.add(node.attr if above is None else f"{above}{node.attr}")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch."):
            names |= {f"{node.module.removeprefix('torch.')}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "hasattr"):
            above = chain(node.args[0], modules) or ""
            names |= {f"{above}{node.args[1].value}"} if isinstance(node.args[1], ast.Constant) else set()
        elif (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and re.fullmatch(r"[\w.]*[a-zA-Z]", node.value)
        ):
            names.add(node.value.removeprefix("torch."))
    private = {name for name in names if re.search(r"(^|\.)_(?!_)", name)}
    return private - {name for name in private if isinstance(found_below_torch(name), type(torch))}


def found_below_torch(name):
    """Return the object that a dotted path below torch names, or None."""
    return functools.reduce(lambda value, part: getattr(value, part, None), name.split("."), torch)


def paths(name):
    """Return the paths below torch, as far as this torch has them, that a mentioned name stands for."""
    name = re.sub(r"(\._[A-Z]\w+)\.\w+$", r"\1", name)  # the class, not its attribute
    names = [name, *(f"{scope}.{name}" for scope in SCOPES)]
    return [] if name in STATE else [path for path in names if found_below_torch(path) is not None]


def test_where_torch_lacks_a_name():
    """Without a name each use of puredrop works with the same masks, or fails with an error that has the name."""
    defined = set().union(*(defined_names((SOURCES / file).read_text()) for file in PRIVATE))
    private = set().union(*(mentioned((SOURCES / file).read_text()) for file in PRIVATE))
    names = {name: paths(name) for name in private if name not in defined}
    assert {name.rpartition(".")[2] for name, where in names.items() if not where} <= STATE
    deleted = sorted({path for where in names.values() for path in where})
    assert len(deleted) > 20
    done = subprocess.run([sys.executable, "-c", SCRIPT, *deleted], capture_output=True, text=True, check=True)
    lines = [line.split(" ", 3) for line in done.stdout.splitlines()]
    assert {line[0] for line in lines if line[1] == "end"} == {"-", *deleted}, done.stderr
    for name, use, whose, error in (line for line in lines if line[1] != "end"):
        says = [f"torch {torch.__version__} has no torch.{name},", f"no attribute '{name.rpartition('.')[2]}'"]
        says += [name.rpartition(".")[2]] * (whose == "torch") + [REFUSED.get((name, use), name)]
        assert whose in ("ours", "torch"), (name, use, error)
        assert any(text in error for text in says), (name, use, error)


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
    texts = {path: path.read_text() for path in SOURCES.rglob("*.py") if path.name not in PRIVATE}
    ours = set().union(*map(defined_names, texts.values())) - MODULES
    used = {str(path.relative_to(SOURCES)): private_names(text) - ours - KNOWN for path, text in texts.items()}
    assert {path: names for path, names in used.items() if names} == {}


def test_private_names_can_be_found():
    text = "from torch._a import b\nfrom torch.c import _d\nimport torch._e\ntorch._C._f(x._g)\nfind('torch._h')"
    assert private_names(text) == {"_a", "_d", "_e", "_C", "_f", "_g", "torch._h"}
