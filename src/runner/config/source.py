"""Reading python source without running it: where a dotted path is defined, and what a class says as plain constants.

Importing a component would import torch. Its source says all that the preflight needs: the keyword-only parameters
with their annotations, the base classes, and class constants written as literals.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from runner.errors import UserError, suggest


@dataclass(frozen=True, eq=False)
class Module:
    """A parsed module and what its names stand for.

    Attributes:
        name: dotted name.
        path: the file.
        names: top-level name → its class, function or assigned expression.
        imports: top-level name → the dotted path it was imported from.
    """

    name: str
    path: Path
    names: dict[str, ast.AST] = field(default_factory=dict)
    imports: dict[str, str] = field(default_factory=dict)


def module_file(name: str) -> Path | None:
    """The source file of a module, found without importing it or its parents; None where there is none."""
    first, *rest = parts = name.split(".")
    if not all(part.isidentifier() for part in parts):
        return None
    try:
        spec = importlib.util.find_spec(first)  # a top-level name: finds, does not execute
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    folders = [Path(p) for p in spec.submodule_search_locations or []]
    if not rest:
        return Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None
    for depth, part in enumerate(rest):
        last = depth == len(rest) - 1
        files = [c for f in folders for c in (f / part / "__init__.py", f / f"{part}.py") if c.is_file()]
        if last and files:
            return files[0]
        folders = [f / part for f in folders if (f / part).is_dir()]
    return None


@cache
def read_module(name: str) -> Module | None:
    """Parse a module; None where it has no source file. Syntax errors are reported as the user's."""
    path = module_file(name)
    if path is None:
        return None
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    except SyntaxError as error:
        raise UserError(f"{path}:{error.lineno}: {error.msg}", "the module has a syntax error") from error
    module = Module(name, path)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in _top_level(tree.body):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            module.names[node.name] = node
        elif isinstance(node, ast.Assign):
            module.names.update({t.id: node.value for t in node.targets if isinstance(t, ast.Name)})
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            module.names[node.target.id] = node.value
        elif isinstance(node, ast.Import):
            for alias in node.names:  # `import a.b` binds a, `import a.b as c` binds c to a.b
                bound = alias.asname or alias.name.split(".")[0]
                module.imports[bound] = alias.name if alias.asname else bound
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            base = parents[: len(parents) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            module.imports.update({a.asname or a.name: f"{source}.{a.name}" for a in node.names})
    return module


def _top_level(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run at import, looking into `if` (such as TYPE_CHECKING) and `try`."""
    for node in body:
        if isinstance(node, ast.If):
            yield from _top_level(node.body + node.orelse)
        elif isinstance(node, ast.Try):
            yield from _top_level(node.body + [s for h in node.handlers for s in h.body] + node.orelse)
        else:
            yield node


def lookup(module: Module, name: str) -> tuple[Module, ast.AST] | None:
    """What a name (dotted, as written in the module) stands for, following imports and aliases; None if unknown."""
    for _ in range(16):  # a chain of re-exports is short; a circular one must end
        first, _, rest = name.partition(".")
        if not rest and first in module.names:
            node = module.names[first]
            if isinstance(node, ast.Name) and node.id != first:
                name = node.id
                continue
            return module, node
        if first not in module.imports:
            return None
        source = module.imports[first] + (f".{rest}" if rest else "")
        parent, _, attribute = source.rpartition(".")
        found = read_module(parent) if parent else None
        if found is None:
            return None
        module, name = found, attribute
    return None


def define(target: str) -> tuple[Module, ast.ClassDef | ast.FunctionDef]:
    """The class or function that a `_target_` names, and the module that holds its source.

    Raises:
        UserError: no such module, or no class or function of that name in it.
    """
    module_name, _, attribute = target.rpartition(".")
    module = read_module(module_name) if module_name else None
    if module is None:
        raise UserError(f"there is no module '{module_name or target}'", _closest_module(module_name))
    found = lookup(module, attribute)
    if found is not None and isinstance(found[1], ast.ClassDef | ast.FunctionDef):
        return found[0], found[1]
    public = [n for n, node in module.names.items() if isinstance(node, ast.ClassDef) and not n.startswith("_")]
    public += [n for n, node in module.names.items() if isinstance(node, ast.FunctionDef) and not n.startswith("_")]
    raise UserError(f"'{module_name}' has no class or function '{attribute}'", suggest(attribute, public))


def _closest_module(name: str) -> str:
    """Suggestions among the files beside a mistyped last part."""
    parent, _, leaf = name.rpartition(".")
    file = module_file(parent) if parent else None
    if file is None or file.name != "__init__.py":
        return "write the full dotted path: package.module.Class"
    return suggest(
        leaf, [p.stem for p in file.parent.iterdir() if (p.suffix == ".py" or p.is_dir()) and p.stem[0] != "_"]
    )


def bases(module: Module, node: ast.ClassDef) -> Iterator[tuple[Module, ast.ClassDef]]:
    """A class and its base classes, nearest first, as far as their source can be found."""
    queue, seen = [(module, node)], set()
    while queue:
        current = queue.pop(0)
        if id(current[1]) in seen:
            continue
        seen.add(id(current[1]))
        yield current
        for base in current[1].bases:
            found = lookup(current[0], ast.unparse(base.value if isinstance(base, ast.Subscript) else base))
            if found is not None and isinstance(found[1], ast.ClassDef):
                queue.append((found[0], found[1]))


def derives(target: str, base: str) -> bool:
    """Whether a class has `base` among its ancestors, as far as can be seen: True where one of them cannot be read.

    Args:
        target, base: dotted paths of classes.

    Raises:
        UserError: as `define` does.
    """
    module, node = define(target)
    if not isinstance(node, ast.ClassDef):
        return True  # a function may return anything
    wanted = define(base)[1]
    for where, cls in bases(module, node):
        if cls is wanted:
            return True
        for parent in cls.bases:
            written = ast.unparse(parent.value if isinstance(parent, ast.Subscript) else parent)
            plain = written.rpartition(".")[2] in ("object", "ABC", "Module", "Generic", "Protocol")
            found = lookup(where, written)
            if not plain and (found is None or not isinstance(found[1], ast.ClassDef)):
                return True
    return False


@cache
def constant(target: str, name: str) -> Any:
    """A class constant written as a literal, such as `input_kind = "image"`; None where there is none."""
    try:
        module, node = define(target)
    except UserError:
        return None
    if not isinstance(node, ast.ClassDef):
        return None
    for _, cls in bases(module, node):
        for statement in cls.body:
            if isinstance(statement, ast.Assign):
                targets, value = statement.targets, statement.value
            elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
                targets, value = [statement.target], statement.value
            else:
                continue
            if any(isinstance(t, ast.Name) and t.id == name for t in targets):
                try:
                    return ast.literal_eval(value)
                except ValueError:
                    return None
    return None
