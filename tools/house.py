"""Measure how readable the source is: the table of CONTRIBUTING, and what offends the laws that tests hold.

python tools/house.py                        # the table for src
python tools/house.py --offenders            # each offender with file and line
python tools/house.py --source OTHER/src     # the table for another checkout
"""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import io
import re
import statistics
import subprocess
import sys
import tempfile
import tokenize
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]

# Pronouns, participles and fillers: names that do not say what they hold.
FILLERS = """one ones other others found rest own left given done told said seen made taken asked meant wanted used
known which what that those these them it some several each every more most again beside behind thing things stuff"""
# First words that postpone the verb, and those that repeat the kind of what follows.
BANNED_FIRST_WORDS = """of as what that which those whether with for on in by where how it its
class func function method module"""
STOPWORDS = "a an the of to is are be in for on this that its it"


def sources(root: Path) -> dict[str, Path]:
    """Return the files of the package by their dotted names below it; `a/__init__.py` is `a`."""
    names = {}
    for path in sorted((root / "puredrop").rglob("*.py")):
        parts = path.relative_to(root / "puredrop").with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)] = path
    return names


def imports(text: str) -> set[str]:
    """Return the modules and names of puredrop that a source imports, relative to it; deferred imports too."""
    targets = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        targets |= {
            name.removeprefix("puredrop").removeprefix(".") for name in names if name.split(".")[0] == "puredrop"
        }
    return targets


def private_imports(name: str, text: str) -> list[str]:
    """Return the imports of other packages' private files and names; a private file of the top level is its own."""
    return [
        target
        for target in sorted(imports(text))
        if target.split(".")[0] != name.split(".")[0]
        and any(part.startswith("_") and not part.endswith("__") for part in target.split(".")[1:])
    ]


def definitions(tree: ast.AST, inside: str = "") -> Iterator[tuple[str, str, int]]:
    """Yield (kind, name, line) of each class, function, argument, field and module-level name."""
    for node in ast.iter_child_nodes(tree):
        kind = inside
        if isinstance(node, ast.ClassDef):
            kind = "class"
            yield "class", node.name, node.lineno
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            kind = "function"
            yield "function", node.name, node.lineno
            arguments = node.args
            for argument in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]:
                yield "argument", argument.arg, argument.lineno
            for starred in (arguments.vararg, arguments.kwarg):
                if starred:
                    yield "argument", starred.arg, starred.lineno
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                for leaf in target.elts if isinstance(target, ast.Tuple) else [target]:
                    if isinstance(leaf, ast.Name) and inside in ("module", "class"):
                        yield "field" if inside == "class" else "name", leaf.id, node.lineno
                    elif (
                        isinstance(leaf, ast.Attribute) and isinstance(leaf.value, ast.Name) and leaf.value.id == "self"
                    ):
                        yield "field", leaf.attr, node.lineno
        yield from definitions(node, kind)


def names(text: str) -> list[tuple[str, str, int]]:
    """Return what a source defines, without `self` and `cls`."""
    return [each for each in definitions(ast.parse(text), "module") if each[1] not in ("self", "cls")]


def fillers(text: str) -> list[tuple[str, int]]:
    """Return the names and lines of definitions that are called by a pronoun, a participle or a filler."""
    return [(name, line) for _, name, line in names(text) if name.strip("_").lower() in FILLERS.split()]


def docstrings(text: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the text of each docstring."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and (doc := ast.get_docstring(node)):
            yield getattr(node, "lineno", 1), doc


def postponed(text: str) -> list[tuple[int, str]]:
    """Return line and first line of the docstrings that begin with a banned word."""
    return [
        (line, doc.splitlines()[0])
        for line, doc in docstrings(text)
        if re.split(r"\W+", doc.strip().lower(), maxsplit=1)[0] in BANNED_FIRST_WORDS.split()
    ]


def class_names(files: dict[str, Path]) -> dict[str, list[str]]:
    """Return the files by the names of the module-level classes that several of them define."""
    homes: dict[str, list[str]] = defaultdict(list)
    for name, path in files.items():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef):
                homes[node.name].append(name)
    return {name: where for name, where in homes.items() if len(where) > 1}


def code_and_comments(text: str) -> tuple[int, int, int]:
    """Return the lines that hold code (docstrings and comments are none), the lines with a comment, and all lines."""
    code: set[int] = set()
    comments: set[int] = set()
    silent = {tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER, tokenize.COMMENT}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            comments.add(token.start[0])
        elif token.type not in silent:
            code.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            code -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(code), len(comments), len(text.splitlines())


def public() -> dict[str, Any]:
    """Return every public function and class that users reach from `import puredrop`, by its name."""
    package = importlib.import_module("puredrop")
    names = {f".{name}": getattr(package, name) for name in package.__all__}
    names |= {f"explain.{name}": getattr(package.explain, name) for name in dir(package.explain) if name[0] != "_"}
    for folder in ("functional", "nn", "schedules", "testing"):
        module = importlib.import_module(f"puredrop.{folder}")
        names |= {f"{folder}.{name}": getattr(module, name) for name in module.__all__}
    returning = ("conversion", "ensemble", "inspection", "linting", "pinning", "thinning", "training_watch")
    for folder in returning:  # of what calls return
        module = importlib.import_module(f"puredrop.{folder}")
        names |= {f"{folder}.{name}": kind for name in module.__all__ if inspect.isclass(kind := getattr(module, name))}
    return {name: thing for name, thing in names.items() if inspect.isfunction(thing) or inspect.isclass(thing)}


def methods(kind: type) -> Iterator[tuple[str, Any]]:
    """Yield the public methods and properties that our own classes among the bases of a class define."""
    for base in kind.__mro__:
        if base.__module__.startswith("puredrop"):
            for name, member in vars(base).items():
                if not name.startswith("_") and (inspect.isfunction(member) or isinstance(member, property)):
                    yield name, getattr(kind, name)


def arguments(thing: Any) -> list[str]:
    """Return the names of what a function or a class is called with, unless another library defines that."""
    if inspect.isclass(thing) and not getattr(thing.__init__, "__module__", "").startswith("puredrop"):
        return []
    try:
        parameters = inspect.signature(thing).parameters
    except (TypeError, ValueError):
        return []
    return [name for name in parameters if name not in ("self", "cls")]


def documented(doc: str) -> dict[str, str]:
    """Return the text of each entry below Args or Attributes by the names that it explains."""
    entries: dict[str, str] = {}
    for section in re.findall(r"^(?:Args|Attributes):\n((?:[ \t]+.*\n?|\n(?=[ \t]))+)", doc, re.MULTILINE):
        lines = inspect.cleandoc(section).split("\n")
        for line in lines:
            head = re.match(r"([\w*, `]+?)(?: \([^)]*\))?: ?(.*)", line)
            if head and not line.startswith(" "):
                labels = [name.strip(" *`") for name in head[1].split(",")]
                entries.update(dict.fromkeys(labels, head[2]))
            elif line.strip():
                entries.update({name: f"{entries[name]} {line.strip()}" for name in labels})
    return entries


def hollow(name: str, text: str) -> bool:
    """Return whether an argument's text says no more than its name."""
    words = {word.rstrip("s") for word in re.findall(r"[a-z]+", text.lower())} - set(STOPWORDS.split())
    return words <= {word.rstrip("s") for word in name.lower().split("_")}


def undocumented() -> list[str]:
    """Return what is missing from public docstrings, a line for each."""
    lines = []
    for name, thing in public().items():
        doc = inspect.cleandoc(vars(thing).get("__doc__") or "" if inspect.isclass(thing) else thing.__doc__ or "")
        where = f"{thing.__module__}: {name}"
        entries = documented(doc)
        result = inspect.isclass(thing) and "__dataclass_fields__" in vars(thing)
        if not doc:
            lines.append(f"{where} has no docstring")
        elif arguments(thing) and not entries and not result:
            lines.append(f"{where} has no Args")
        lines += [f"{where}: `{argument}` is not explained" for argument in _missing(thing, entries, result)]
        lines += [
            f"{where}: the text of `{argument}` repeats its name"
            for argument, text in entries.items()
            if hollow(argument, text)
        ]
        if inspect.isclass(thing):
            lines += [
                f"{where}.{method} has no sentence"
                for method, member in methods(thing)
                if not re.search(r"[.:]$", (inspect.getdoc(member) or "").split("\n\n")[0].strip())
            ]
    return lines


def _missing(thing: Any, entries: dict[str, str], result: bool) -> list[str]:
    """Return the arguments that Args does not name; fields of a result may be explained where they are declared."""
    if not entries and not result:
        return []
    source = inspect.getsource(thing) if result else ""
    return [
        name
        for name in arguments(thing)
        if name not in entries and not re.search(rf'^\s+{name}\b.*\n\s+"""', source, re.MULTILINE)
    ]


def lengths() -> list[int]:
    """Return the lines of each public docstring of the module level."""
    return [len((thing.__doc__ or "").strip().splitlines()) for thing in public().values()]


def method_lengths() -> list[int]:
    """Return the lines of the docstrings of public functions, classes and their methods."""
    members = [
        getattr(each, "__doc__", None) for t in public().values() if inspect.isclass(t) for _, each in methods(t)
    ]
    return [len((doc or "").strip().splitlines()) for doc in [*(t.__doc__ for t in public().values()), *members]]


def files_entered(run: Callable[[], object], root: Path) -> dict[str, int]:
    """Return the calls of functions by file of the package, in the second of two runs: the first one imports."""
    run()
    calls: dict[str, int] = defaultdict(int)
    inside = str(root / "puredrop")

    def record(frame: Any, event: str, _: object) -> None:
        if event == "call" and (path := frame.f_code.co_filename).startswith(inside):
            calls[path] += 1
            calls["surveys"] += frame.f_code.co_name in SURVEYS and path.endswith("members/survey.py")

    sys.setprofile(record)
    try:
        run()
    finally:
        sys.setprofile(None)
    return calls


SURVEYS = ("look", "survey", "inspect")


def paths(root: Path) -> Iterator[tuple[str, str]]:
    """Yield what users run most, and the files that it enters, its calls of functions and its surveys of a model."""
    import torch

    import puredrop

    torch.manual_seed(0)
    nn = torch.nn

    def net(p: float) -> Any:
        first = [nn.Linear(784, 512), nn.ReLU(), nn.Dropout(p), nn.Linear(512, 256), nn.ReLU(), nn.Dropout(p * 0.6)]
        return nn.Sequential(*first, nn.Linear(256, 10)).eval()

    model, x, y = net(0.5), torch.randn(64, 784), torch.randint(10, (64,))
    ensemble = puredrop.DropoutEnsemble(model)
    with tempfile.TemporaryDirectory() as folder:
        options = ["--hidden", "16", "--rates", "0.5", "--seeds", "2", "--epochs", "1", "--out", f"{folder}/run"]
        runs: dict[str, Callable[[], object]] = {
            "DropoutEnsemble.predict": lambda: ensemble.predict(x),
            "DropoutEnsemble.survey": lambda: ensemble.survey(x),
            "explain of two models": lambda: puredrop.explain(model, x, y, undropped=net(0.0), members=16, draws=2000),
            "compare digits": lambda: _command("compare", "digits", *options, "--rows", "200"),
        }
        for name, run in runs.items():
            calls = files_entered(run, root)
            surveys = calls.pop("surveys", 0)
            yield name, f"{len(calls)} files, {sum(calls.values())} calls, {surveys} surveys"


def _command(*line: str) -> None:
    """Run a command line without its output."""
    import contextlib

    from puredrop.cli import main

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as errors:
        if main(list(line)):
            raise RuntimeError(errors.getvalue())


def table(root: Path) -> list[tuple[str, object]]:
    """Return the rows of the table: what is measured, and its value."""
    files = sources(root)
    texts = {name: path.read_text() for name, path in files.items()}
    counts = [code_and_comments(text) for text in texts.values()]
    code, comments, lines = (sum(column) for column in zip(*counts, strict=True))
    total = sum(len(names(text)) for text in texts.values())
    share = 100 * sum(len(fillers(text)) for text in texts.values()) / total
    return [
        ("private imports across packages", sum(len(private_imports(*item)) for item in texts.items())),
        ("class names with several meanings", len(class_names(files))),
        ("pronouns and fillers among names, %", f"{share:.1f}"),
        ("docstrings that begin with a banned word", sum(len(postponed(text)) for text in texts.values())),
        ("public docstring of the module level, median lines", statistics.median(lengths())),
        ("public docstring with methods, median lines", statistics.median(method_lengths())),
        ("comments per 100 lines", f"{100 * comments / lines:.1f}"),
        ("lines of code without docstrings and comments", code),
        ("files", len(files)),
        *paths(root),
    ]


def offenders(root: Path) -> Iterator[str]:
    """Yield each offender against the laws, a line with file and line number."""
    files = sources(root)
    for name, path in files.items():
        text, where = path.read_text(), path.relative_to(root / "puredrop")
        yield from (f"{where}: imports the private {target}" for target in private_imports(name, text))
        yield from (f"{where}:{line}: `{filler}` is a filler as a name" for filler, line in fillers(text))
        yield from (f"{where}:{line}: docstring begins with a banned word: {first}" for line, first in postponed(text))
        if len(text.splitlines()) >= 400:
            yield f"{where}: {len(text.splitlines())} lines"
    yield from (f"class {name} is defined in {', '.join(where)}" for name, where in class_names(files).items())
    yield from undocumented()


def main() -> None:
    """Print the table, or the offenders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, default=ROOT / "src", help="the folder that holds the package")
    parser.add_argument("--offenders", action="store_true", help="list what offends the laws")
    options = parser.parse_args()
    root = options.source.resolve()
    if str(root) not in sys.path[:2]:
        # Measure the package of this folder, whichever is installed: before anything imports it.
        arguments_of_this = [sys.executable, __file__, *sys.argv[1:]]
        code = "import runpy, sys; sys.path.insert(0, sys.argv.pop(1)); sys.argv.pop(0); "
        code += "runpy.run_path(sys.argv[0], run_name='__main__')"
        raise SystemExit(
            subprocess.run([sys.executable, "-c", code, str(root), *arguments_of_this[1:]], check=False).returncode
        )
    if options.offenders:
        print(*offenders(root), sep="\n")
        return
    print("| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in table(root)), sep="\n")


if __name__ == "__main__":
    main()
