"""The import law, and what else keeps the tree readable."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "puredrop"
FILES = sorted(SOURCE.rglob("*.py"))

# A file imports from its own folder or from the left only; a top-level file is a level of its own.
LAW = [
    "_torch",
    "_text",
    "_files",
    "_backend",
    "rng",
    "ops",
    "functional",
    "nn",
    "schedules",
    "inspection",
    "conversion",
    "compact",
    "pinning",
    "callbacks",
    "thinning",
    "members",
    "ensemble",
    "report",
    "explanation",
    "linting",
    "testing",
    "compare",
    "cli",
]
# The package's face and its command come after everything.
FACE = ("__init__", "__main__")


def level(module):
    """The level of a dotted module name below puredrop."""
    first = module.split(".")[0] if module else "__init__"
    return len(LAW) if first in FACE else LAW.index(first)


def name_of(path):
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def imports(text):
    """The puredrop modules a source imports, relative to the package; deferred imports too."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "write imports in full"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {name.removeprefix("puredrop").removeprefix(".") for name in names if name.split(".")[0] == "puredrop"}
    return found


def violations(module, text):
    own = module.split(".")[0]
    return [
        target
        for target in imports(text)
        if target.split(".")[0] != own
        and (not target or target.split(".")[0] not in LAW or level(target) >= level(module))
    ]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_the_import_law(path):
    if path == SOURCE / "__init__.py":
        return  # the face re-exports names of every level
    assert violations(name_of(path), path.read_text()) == []


def test_the_law_can_be_broken():
    assert violations("ops._reference", "from puredrop.functional import dropout") == ["functional.dropout"]
    assert violations("ops", "def f():\n    import puredrop.nn") == ["nn"]
    assert violations("nn.element", "from puredrop import Key") == ["Key"]
    assert violations("nn.element", "from puredrop import functional, ops\nfrom puredrop.nn.path import x") == []


def cycle(graph):
    """A cycle of a graph as a list of its nodes, or None."""
    done, trail = set(), []

    def visit(node):
        if node in trail:
            return trail[trail.index(node) :]
        if node in done:
            return None
        trail.append(node)
        found = next((c for c in map(visit, graph.get(node, ())) if c), None)
        trail.pop()
        done.add(node)
        return found

    return next((c for c in map(visit, graph) if c), None)


def test_no_cycles_between_files():
    modules = {name_of(path): path.read_text() for path in FILES}

    def files(target):
        # `from puredrop.a import b` names the file a.b if there is one, else the file a.
        return target if target in modules else target.rpartition(".")[0]

    graph = {name: {files(target) for target in imports(text)} - {name, ""} for name, text in modules.items()}
    graph.pop("__init__")
    assert sum(map(len, graph.values())) > 20
    assert cycle(graph) is None
    assert cycle({"a": ["b"], "b": ["c"], "c": ["a"]}) == ["a", "b", "c"]


@pytest.mark.parametrize("path", [*FILES, *sorted((ROOT / "csrc").glob("*.[ch]"))], ids=lambda path: path.name)
def test_files_are_short(path):
    assert len(path.read_text().splitlines()) < 400


def loaded_by(code):
    text = f"import sys\n{code}\nprint(*sorted(sys.modules))"
    return set(subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True).stdout.split())


def test_import_is_light():
    new = loaded_by("import puredrop") - loaded_by("import torch")
    assert {name for name in new if not name.startswith("puredrop")} <= {
        "importlib.metadata",
        *loaded_by("import importlib.metadata"),
    }
    assert not {name for name in new if name.startswith(("puredrop.compare", "puredrop.cli", "puredrop.explanation"))}
    heavy = ("triton", "plotly", "sklearn", "scipy", "pandas", "matplotlib", "rich")
    assert not {name for name in loaded_by("import puredrop") if name.split(".")[0] in heavy}


def test_import_has_no_side_effects():
    code = (
        "import warnings, logging, torch\n"
        "before = (list(warnings.filters), list(logging.getLogger().handlers), torch.get_rng_state().sum().item())\n"
        "import puredrop\n"
        "after = (list(warnings.filters), list(logging.getLogger().handlers), torch.get_rng_state().sum().item())\n"
        "assert before == after and not torch.cuda.is_initialized()\n"
        "maps = open('/proc/self/maps').read() if sys.platform == 'linux' else ''\n"
        "assert 'puredrop_cpu' not in maps"
    )
    loaded_by(code)


def test_public_names_are_declared():
    import puredrop

    for module in (puredrop, puredrop.functional, puredrop.nn):
        assert all(hasattr(module, name) for name in module.__all__)
        assert list(module.__all__) == sorted(module.__all__)
