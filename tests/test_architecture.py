"""The import law, and what else keeps the tree readable."""

import re
import subprocess
import sys
from pathlib import Path

import house

ROOT = Path(__file__).parents[1]
FILES = house.sources(ROOT / "src")
TEXTS = {name: path.read_text() for name, path in FILES.items()}

# A file imports from its own folder or from the left only; a top-level file is a level of its own.
LAW = [
    "_torch",
    "_torch_transforms",
    "_torch_modes",
    "_text",
    "_files",
    "_folders",
    "_options",
    "_hints",
    "_records",
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
    "thinning",
    "members",
    "ensemble",
    "report",
    "explanation",
    "linting",
    "training_watch",
    "callbacks",
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


def violations(module, text):
    own = module.split(".")[0]
    return [
        target
        for target in house.imports(text)
        if target.split(".")[0] != own
        and (not target or target.split(".")[0] not in LAW or level(target) >= level(module))
    ]


def offenders(law):
    """What a law of a module's name and text finds, by module."""
    return {name: broken for name, text in TEXTS.items() if (broken := law(name, text))}


def test_the_import_law():
    assert set(offenders(violations)) <= {"__init__"}  # the face re-exports names of every level


def test_the_law_is_written_where_people_look():
    assert " → ".join(LAW) in " ".join((ROOT / "CONTRIBUTING.md").read_text().split())


def test_the_law_can_be_broken():
    assert violations("ops._reference", "from puredrop.functional import dropout") == ["functional.dropout"]
    assert violations("ops", "def f():\n    import puredrop.nn") == ["nn"]
    assert violations("nn.element", "from puredrop import Key") == ["Key"]
    assert violations("nn.element", "from puredrop import functional, ops\nfrom puredrop.nn.path import x") == []


def test_no_package_imports_what_is_private_to_another():
    assert offenders(house.private_imports) == {}
    assert house.private_imports("nn.path", "from puredrop.ops import _eager\nimport puredrop.rng._words") == [
        "ops._eager",
        "rng._words",
    ]
    assert house.private_imports("nn.path", "from puredrop._torch import x\nfrom puredrop.nn._y import z") == []


def test_imports_are_written_in_full():
    assert offenders(lambda name, text: re.findall(r"^\s*from \..*", text, re.MULTILINE)) == {}


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


def test_files_of_tests_have_names_of_their_own():
    """Pytest imports them by name alone, from folders that are no packages."""
    names = [path.name for path in (ROOT / "tests").rglob("*.py") if "_bad" not in path.name]
    assert sorted(names) == sorted(set(names))


def test_no_cycles_between_files():
    def files(target):
        # `from puredrop.a import b` names the file a.b if there is one, else the file a.
        return target if target in TEXTS else target.rpartition(".")[0]

    graph = {name: {files(target) for target in house.imports(text)} - {name, ""} for name, text in TEXTS.items()}
    graph.pop("__init__")
    assert sum(map(len, graph.values())) > 20
    assert cycle(graph) is None
    assert cycle({"a": ["b"], "b": ["c"], "c": ["a"]}) == ["a", "b", "c"]


def test_files_are_short():
    files = [path for folder in ("src", "csrc", "tests", "tools") for path in (ROOT / folder).rglob("*.[pch]*")]
    lengths = {path: len(path.read_text().splitlines()) for path in files if path.suffix in (".py", ".c", ".h")}
    assert len(lengths) > 250
    assert {str(path.relative_to(ROOT)): n for path, n in lengths.items() if n >= 400} == {}


LATER = tuple(f"puredrop.{name}" for name in ("cli", "compare", "explanation", "linting", "testing", "training_watch"))
"""Packages that are loaded at first use."""


def test_import_is_light_and_has_no_side_effects():
    code = """
import importlib.metadata, logging, sys, warnings, torch

def state():
    return list(warnings.filters), list(logging.getLogger().handlers), torch.get_rng_state().sum().item()

loaded, before = set(sys.modules), state()
import puredrop
assert state() == before and not torch.cuda.is_initialized()
assert "puredrop_cpu" not in (open("/proc/self/maps").read() if sys.platform == "linux" else "")
print(*set(sys.modules) - loaded, "|", *sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    new, loaded = (set(part.split()) for part in done.stdout.split("|"))
    assert not {name for name in new if not name.startswith("puredrop")}
    assert not {name for name in new if name.startswith(LATER)}
    heavy = ("triton", "plotly", "sklearn", "scipy", "pandas", "matplotlib", "rich")
    assert not {name for name in loaded if name.split(".")[0] in heavy}


def test_public_names_are_declared():
    import puredrop

    for module in (puredrop, puredrop.functional, puredrop.nn):
        assert all(hasattr(module, name) for name in module.__all__)
        assert list(module.__all__) == sorted(module.__all__)
