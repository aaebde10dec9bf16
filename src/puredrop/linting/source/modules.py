"""Modules of a source tree: their imports, functions and classes, and what a name in them refers to."""

from __future__ import annotations

import ast
import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from puredrop.linting.source.calls import CALLS, WORDS, canonical, is_layer
from puredrop.linting.source.syntax import parse

__all__ = ["Class", "Function", "Project", "Source", "last_name"]

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
_USUAL = {
    "F": "torch.nn.functional",
    "nn": "torch.nn",
    "torch": "torch",
    "functional": "torch.nn.functional",
}
"""Meaning of these names where nothing in the file binds them."""
_FRAMEWORKS = ("tensorflow.", "tf.", "keras.", "flax.", "paddle.", "mxnet.", "jax.", "chainer.", "mindspore.")
"""Other frameworks, with modules of their own."""
_MODULES = ("Module", "Model", "Layer", "Mixin", "Net", "Block", "Base")


@dataclass(frozen=True, eq=False)
class Function:
    """A function or method of a source.

    Args:
        node: its syntax tree.
        source: the source that it stands in.
        owner: the class that it is a method of.
    """

    node: FunctionNode
    source: Source
    owner: Class | None = None

    @property
    def name(self) -> str:
        """Name of the function; "lambda" for one without."""
        return getattr(self.node, "name", "lambda")

    @cached_property
    def decorators(self) -> frozenset[str]:
        """Names of the function's decorators, without the modules they come from."""
        every = getattr(self.node, "decorator_list", [])
        return frozenset(str(getattr(one, "attr", getattr(one, "id", ""))) for one in every)

    @property
    def is_static(self) -> bool:
        """Return whether the function takes no instance."""
        return "staticmethod" in self.decorators

    @property
    def is_property(self) -> bool:
        """Return whether the function is a property."""
        return bool(self.decorators & {"property", "cached_property"})

    @cached_property
    def parameters(self) -> dict[str, ast.expr | None]:
        """Names of the parameters that can be given by position or keyword, with their defaults."""
        arguments = self.node.args
        positional = [*arguments.posonlyargs, *arguments.args]
        padding: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults))
        named = dict(zip((one.arg for one in positional), [*padding, *arguments.defaults], strict=True))
        keywords = zip((one.arg for one in arguments.kwonlyargs), arguments.kw_defaults, strict=True)
        return {**named, **dict(keywords)}

    @cached_property
    def every_parameter(self) -> dict[str, ast.expr | None]:
        """Names of all parameters with their defaults, also of those that collect others."""
        return {**self.parameters, **dict.fromkeys(self.collecting)}

    @property
    def arguments(self) -> list[str]:
        """Names of all parameters but the instance."""
        return list(self.every_parameter)[1 if self.owner is not None and not self.is_static else 0 :]

    @property
    def collecting(self) -> frozenset[str]:
        """Names of the parameters that collect others, *args and **kwargs."""
        arguments = self.node.args
        return frozenset(one.arg for one in (arguments.vararg, arguments.kwarg) if one is not None)

    @cached_property
    def assigned(self) -> frozenset[str]:
        """Return the attributes of `self` that a method assigns."""
        return frozenset(
            node.attr
            for node in ast.walk(self.node)
            if isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store)
            and isinstance(node.value, ast.Name)
            and node.value.id == "self"
        )


@dataclass(eq=False)
class Class:
    """A class of a source.

    Args:
        node: its syntax tree.
        source: the source that it stands in.
    """

    node: ast.ClassDef
    source: Source
    methods: dict[str, Function] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for node in self.node.body:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                self.methods[node.name] = self.source.function(node, self)

    @property
    def text(self) -> str:
        """The lines of the class."""
        return self.source.segment(self.node)

    @cached_property
    def bases(self) -> list[Class | str]:
        """The classes that it is derived from: those of the tree, and dotted names of others."""
        found = []
        for base in self.node.bases:
            target = self.source.refers_to(base)
            found.append(
                target if isinstance(target, Class) else target if isinstance(target, str) else ast.unparse(base)
            )
        return found

    @cached_property
    def lineage(self) -> list[Class]:
        """The class and its ancestors within the tree, nearest first."""
        every: list[Class] = [self]
        for one in every:
            every += [base for base in one.bases if isinstance(base, Class) and base not in every]
        return every

    @cached_property
    def is_module(self) -> bool:
        """Return whether the class is a torch module, as far as its bases tell."""
        names = [base for one in self.lineage for base in one.bases if isinstance(base, str)]
        if any(name.startswith(_FRAMEWORKS) for name in names):
            return False
        return any(name.rpartition(".")[2].endswith(_MODULES) or name.startswith("torch.nn") for name in names)

    @cached_property
    def writers(self) -> dict[str, list[Function]]:
        """Attributes of instances, with the methods of the class and its ancestors that assign them."""
        found: dict[str, list[Function]] = {}
        for one in self.lineage:
            for method in one.methods.values():
                for name in method.assigned:
                    found.setdefault(name, []).append(method)
        return found

    @cached_property
    def own_constants(self) -> dict[str, ast.expr]:
        """Attributes that the class body assigns."""
        found: dict[str, ast.expr] = {}
        for node in self.node.body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            value = getattr(node, "value", None)
            found.update({t.id: value for t in targets if isinstance(t, ast.Name) and isinstance(value, ast.expr)})
        return found

    @cached_property
    def constants(self) -> dict[str, ast.expr]:
        """Attributes that the bodies of the class and its ancestors assign."""
        return {name: value for one in reversed(self.lineage) for name, value in one.own_constants.items()}

    def method(self, name: str) -> Function | None:
        """Return a method of the class or of its nearest ancestor."""
        return next((one.methods[name] for one in self.lineage if name in one.methods), None)


class Source:
    """One file: its tree and what its names refer to.

    Args:
        file: name of the file.
        text: Python source.
        project: the tree that the file belongs to.

    Raises:
        SyntaxError: if the text is not Python.
    """

    def __init__(self, file: str, text: str, project: Project) -> None:
        self.file, self.text, self.project = file, text, project
        parsed = parse(text)
        self.tree, self.old_names = parsed.tree, parsed.old
        self.lines = text.split("\n")
        self.imports: dict[str, str] = {}
        self.stars: list[str] = []
        self.functions: dict[str, Function] = {}
        self.classes: dict[str, Class] = {}
        self.globals: dict[str, list[ast.expr]] = {}
        self._functions: dict[ast.AST, Function] = {}
        self._classes: dict[ast.AST, Class] = {}
        self.nodes = list(ast.walk(self.tree))
        for node in self.nodes:
            self._import(node)
        self._collect(self.tree.body)

    def _collect(self, body: list[ast.stmt]) -> None:
        for node in body:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                self.functions[node.name] = self.function(node)
            elif isinstance(node, ast.ClassDef):
                self.classes[node.name] = self.class_(node)
            elif isinstance(node, ast.Assign):
                for target in node.targets:
                    if isinstance(target, ast.Name):
                        self.globals.setdefault(target.id, []).append(node.value)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
                self.globals.setdefault(node.target.id, []).append(node.value)
            for block in ("body", "orelse", "finalbody"):
                if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                    self._collect(getattr(node, block, []))
            for handler in getattr(node, "handlers", []):
                self._collect(handler.body)

    def _import(self, node: ast.AST) -> None:
        if isinstance(node, ast.Import):
            for alias in node.names:
                name = alias.asname or alias.name.partition(".")[0]
                self.imports[name] = alias.name if alias.asname else name
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            for alias in node.names:
                if alias.name == "*":
                    self.stars.append(module)
                else:
                    between = "" if module.endswith(".") else "."
                    self.imports[alias.asname or alias.name] = module + between + alias.name

    @cached_property
    def aliases(self) -> frozenset[str]:
        """Names that imports and variables of the file give to functions and layers that drop."""
        imported = {alias for alias, name in self.imports.items() if canonical(name) in CALLS or is_layer(name)}
        assigned = {
            name
            for name, values in self.globals.items()
            if any(word in ast.unparse(value) for value in values for word in WORDS)
        }
        return frozenset(imported | assigned)

    def function(self, node: FunctionNode, owner: Class | None = None) -> Function:
        """Return the function of a node, the same one each time."""
        return self._functions.setdefault(node, Function(node, self, owner))

    def class_(self, node: ast.ClassDef) -> Class:
        """Return the class of a node, the same one each time."""
        if node not in self._classes:
            self._classes[node] = Class(node, self)
        return self._classes[node]

    @cached_property
    def every_class(self) -> list[Class]:
        """All classes of the file, also those within functions and classes."""
        return [self.class_(node) for node in self.nodes if isinstance(node, ast.ClassDef)]

    def segment(self, node: ast.AST) -> str:
        """Return the lines that a node stands on."""
        first, last = getattr(node, "lineno", 1), getattr(node, "end_lineno", None) or 1
        return "\n".join(self.lines[first - 1 : last])

    def dotted(self, node: ast.expr) -> str | None:
        """Return the dotted name that an expression means after imports, such as "torch.nn.functional.dropout"."""
        if isinstance(node, ast.Attribute):
            base = self.dotted(node.value)
            return None if base is None else f"{base}.{node.attr}"
        return self._name(node.id) if isinstance(node, ast.Name) else None

    def _name(self, name: str) -> str | None:
        if name in self.imports:
            return self.imports[name]
        if name in self.functions or name in self.classes or name in self.globals:
            return None
        for module in self.stars:
            if module in ("torch.nn", "torch.nn.functional", "torch") and (
                f"{module}.{name}" in CALLS or is_layer(f"{module}.{name}")
            ):
                return f"{module}.{name}"
        return _USUAL.get(name)

    def refers_to(self, node: ast.expr) -> Function | Class | str | None:
        """Return the function or class that an expression names, in this tree; else a dotted name; else None."""
        if isinstance(node, ast.Name):
            own = self.functions.get(node.id) or self.classes.get(node.id)
            if own is not None:
                return own
            for module in self.stars if len(self.stars) <= _STARS else ():
                found = self.project.find(self, f"{module}.{node.id}" if not module.endswith(".") else module + node.id)
                if found is not None:
                    return found
        name = self.dotted(node)
        if name is None:
            return None
        return self.project.find(self, name) or canonical(name)


def last_name(node: ast.AST) -> str:
    """Return the last name of a dotted expression; "" for another expression."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


_STARS = 8
"""Star imports of a file that are followed; packages that gather hundreds of modules would load them all."""
_IMPORTS = 12
"""Imports of imports that are followed."""


class Project:
    """The files that are checked together, each parsed when a name first leads to it.

    Args:
        files: names of all files of the tree.
    """

    def __init__(self, files: list[str]) -> None:
        self.files = frozenset(files)
        self.roots = {str(parent) for file in files for parent in Path(file).parents}
        self._sources: dict[str, Source | None] = {}
        self._imports = 0
        self._found: dict[tuple[str, str], Function | Class | None] = {}

    def add(self, source: Source) -> None:
        """Keep a source that was read already."""
        self._sources[source.file] = source

    def find(self, source: Source, name: str) -> Function | Class | None:
        """Return the function or class that an imported dotted name means, if it is in this tree."""
        key = source.file, name
        if key not in self._found and self._imports < _IMPORTS:
            self._found[key] = None  # an import in a circle finds nothing
            self._imports += 1
            self._found[key] = self._find(source, name)
            self._imports -= 1
        return self._found.get(key)

    def _find(self, source: Source, name: str) -> Function | Class | None:
        level = len(name) - len(name.lstrip("."))
        parts = name.lstrip(".").split(".")
        folder = Path(source.file).parent
        if level:
            for _ in range(level - 1):
                folder = folder.parent
            return self._below(folder, parts)
        while str(folder) in self.roots:
            found = self._below(folder, parts)
            if found is not None or folder == folder.parent:
                return found
            folder = folder.parent
        return None

    def _below(self, folder: Path, parts: list[str]) -> Function | Class | None:
        """Return what dotted parts mean, with modules below a folder."""
        for count in range(len(parts) - 1, -1, -1):
            # A file is known as it was named, without "./".
            stem = os.path.normpath(os.path.join(folder, *parts[:count]))  # noqa: PTH118, a hundred thousand a tree
            for file in (f"{stem}.py", os.path.join(stem, "__init__.py")):  # noqa: PTH118
                if file in self.files:
                    return self._in(file, parts[count:])
        return None

    def _in(self, file: str, parts: list[str]) -> Function | Class | None:
        source = self.load(file)
        if source is None or not parts:
            return None
        expression: ast.expr = ast.Name(parts[0], ast.Load())
        target = source.refers_to(expression)
        if isinstance(target, Class) and len(parts) == 2:
            return target.method(parts[1])
        return target if len(parts) == 1 and not isinstance(target, str) else None

    def source(self, file: str) -> Source | None:
        """Return a source that was read already; None if it was not."""
        return self._sources.get(file)

    def load(self, file: str) -> Source | None:
        """Return a file's source; None if it cannot be read."""
        if file not in self._sources:
            self._sources[file] = None
            try:
                self._sources[file] = Source(file, Path(file).read_text(encoding="utf-8"), self)
            except (OSError, SyntaxError, UnicodeDecodeError):
                return None
        return self._sources[file]
