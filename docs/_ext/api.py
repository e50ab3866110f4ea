"""The pages of the API reference: one for each public module, of its docstrings."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import inspect
import pkgutil
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer
from sphinx.util import logging
from sphinx.util.nodes import make_refnode

import partikel

logger = logging.getLogger(__name__)

GROUPS = {
    "The two nouns": ["fields", "models"],
    "Training": ["training", "recipes", "objectives", "schedules", "priors", "streams"],
    "Parts of fields": ["denoising", "networks", "kernels", "divergences", "diffflow"],
    "Sampling": ["solvers", "likelihood"],
    "Data and measures": ["data", "targets", "metrics"],
    "Runs, exports, errors": ["app.runs", "app.export", "errors"],
}
"""The public modules, as the reference groups them."""

_MEANT: dict[str, list[str]] = {}

PRIVATE = {"__main__", "app", "files", "studies", "tensors"}
"""Rooms that are not for users: the command line's, the papers' items, the ground."""


def groups() -> dict[str, list[str]]:
    """The public modules by group; those that :data:`GROUPS` does not know come last."""
    grouped = [name for names in GROUPS.values() for name in names]
    found = {module.name for module in pkgutil.iter_modules(partikel.__path__)} - PRIVATE
    rest = sorted(found - set(grouped))
    return {**GROUPS, **({"More": rest} if rest else {})}


def modules() -> list[str]:
    """The names of all public modules."""
    return [f"partikel.{name}" for names in groups().values() for name in names]


def public(module: ModuleType) -> list[str]:
    """The public names of a module: those it lists, or those it defines."""
    listed = getattr(module, "__all__", None)
    if listed is not None:
        return sorted(listed)
    analyzer = ModuleAnalyzer.for_module(module.__name__)
    constants = {name for owner, name in analyzer.find_attr_docs() if not owner}
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (
            name in constants
            or (inspect.isclass(value) or inspect.isfunction(value))
            and value.__module__ == module.__name__
        )
    ]


def _page(title: str, *blocks: str) -> str:
    return "\n\n".join([f"{title}\n{'=' * len(title)}", *blocks]) + "\n"


def write(folder: Path) -> None:
    """Write the pages as reStructuredText; files that would not change are left alone."""
    pages = {"index": _index()}
    for name in modules():
        module = importlib.import_module(name)
        constants = [_constant(module, each) for each in public(module)]
        listed = f".. automodule:: {name}\n   :members: {', '.join(public(module))}"
        pages[name] = _page(name, listed, *filter(None, constants))
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.rst"):
        if old.stem not in pages:
            old.unlink()
    for name, text in pages.items():
        file = folder / f"{name}.rst"
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            file.write_text(text, encoding="utf-8")


def _constant(module: ModuleType, name: str) -> str:
    """A constant that the module has from one of its parts: its docstring is only found there."""
    if inspect.isclass(getattr(module, name)) or inspect.isfunction(getattr(module, name)):
        return ""
    for part in sys.modules:
        if part.startswith(f"{module.__name__}.") and name in vars(sys.modules[part]):
            said = ModuleAnalyzer.for_module(part).find_attr_docs().get(("", name))
            if said:
                text = "\n   ".join(said).rstrip()
                return f".. py:data:: {name}\n\n   {text}"
    return ""


def _index() -> str:
    top = []
    for name in public(partikel):
        value = getattr(partikel, name)
        home = next(m for m in modules() if name in public(importlib.import_module(m)))
        first = (inspect.getdoc(value) or "").partition("\n\n")[0].replace("\n", " ")
        top.append(f"   * - :py:obj:`{name} <{home}.{name}>`\n     - {first}")
    trees = [
        f".. toctree::\n   :caption: {group}\n   :maxdepth: 1\n\n"
        + "\n".join(f"   partikel.{name}" for name in names)
        for group, names in groups().items()
    ]
    table = ".. list-table::\n   :class: names\n   :widths: 30 70\n\n" + "\n".join(top)
    lead = "What ``import partikel`` gives by name, and the modules behind it."
    return _page("API reference", lead, table, *trees)


def _plain_types(value: Any) -> None:
    """Show the types of a class or function without their ranges, which docstrings say in words."""
    with contextlib.suppress(AttributeError, NameError, TypeError):
        own, hints = set(inspect.get_annotations(value)), get_type_hints(value)
        value.__annotations__ = {name: hint for name, hint in hints.items() if name in own}
    made = value.__init__ if dataclasses.is_dataclass(value) else getattr(value, "__new__", None)
    if dataclasses.is_dataclass(value) or hasattr(value, "_fields"):
        hints = get_type_hints(value)  # what made the class does not know its module's names
        kept = made.__annotations__
        made.__annotations__ = {name: hints.get(name, kept[name]) for name in kept}
    if inspect.isclass(value):
        for inside in vars(value).values():
            inside = inside.fget if isinstance(inside, property) else inside
            inside = getattr(inside, "__func__", inside)
            if inspect.isfunction(inside):
                _plain_types(inside)


def _as_text(app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are text but for roles and literals: |x| is a norm, *shape unpacks, code is indented."""
    block, shown = False, []
    for line in lines:
        indented, after_blank = line.startswith("    "), len(shown) > 1 and not shown[-1].strip()
        if indented and after_blank and not block and not shown[-2].startswith(" "):
            shown += ["::", ""]
            block = True
        block = block and (indented or not line.strip())
        if line.startswith("| "):  # a row of a table
            if not shown[-1].startswith(" "):
                shown += [".. list-table::", "   :header-rows: 1", ""]
            cells = line.strip("| ").split(" | ")
            shown += [f"   {'*' if not at else ' '} - {cell}" for at, cell in enumerate(cells)]
        elif not block and not line.startswith(("=", "|--")):
            parts = re.split(r"(``.*?``|:\w+:`.*?`)", line)
            parts[::2] = [
                re.sub(r"\||(?<!\*)\*(?=\w+[,)])", r"\\\g<0>", part) for part in parts[::2]
            ]
            shown.append("".join(parts))
        elif not line.startswith("|--"):
            shown.append(line)
    lines[:] = shown
    _MEANT[name] = list(lines)


def _no_type(app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """What stands before a colon in an attribute's docstring is no type: that is annotated."""
    meant = _MEANT.pop(name, lines)
    if any(line.startswith(":type:") for line in lines):
        lines[:] = meant


def _defaults(
    app: Sphinx, what: str, name: str, value: Any, options: Any, said: Any, to: Any
) -> Any:
    """A default that is made anew each time is shown as what Python can read."""
    return said and said.replace("<factory>", "..."), to


def _said_above(app: Sphinx, what: str, name: str, value: Any, skip: bool, options: Any) -> Any:
    """Leave out the fields of a named tuple, which say nothing: its docstring has them."""
    return True if str(getattr(value, "__doc__", "")).startswith("Alias for field") else None


def _found(app: Sphinx, env: Any, node: Any, content: Any) -> Any:
    """Where a short name leads: to the one public object called so, or nowhere if it is private.

    A name that is nowhere in the package stays what it is: a warning.
    """
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"]
    last = target.rpartition(".")[2]
    objects = [(n, o) for n, o in env.domains["py"].objects.items() if not o.aliased]
    owner = f"{node.get('py:module')}.{node.get('py:class')}"
    for way in (
        lambda name: name == f"{owner}.{target}",
        lambda name: name.endswith(f".{target}"),
        lambda name: name.rpartition(".")[2] == last,
    ):
        found = [(name, place) for name, place in objects if way(name)]
        if len(found) == 1:
            ((name, place),) = found
            where = (node["refdoc"], place.docname, place.node_id)
            return make_refnode(app.builder, *where, content, name)
        if found:  # several are called so, and none is nearer
            return content
    rooms = [module for name, module in sys.modules.items() if name.startswith("partikel")]
    words = (last, target.removeprefix("partikel.").split(".")[0])
    known = target in sys.modules or any(hasattr(room, word) for room in rooms for word in words)
    return content if known else None


def _complete(app: Sphinx, env: Any) -> None:
    """Warn of public names that no page describes: those without a docstring."""
    described = env.domains["py"].objects
    for module in modules():
        for name in public(importlib.import_module(module)):
            if f"{module}.{name}" not in described:
                logger.warning("%s.%s has no docstring, and is in no page", module, name)


def setup(app: Sphinx) -> dict[str, Any]:
    """Write the pages before Sphinx looks for them."""
    for name in modules():
        module = importlib.import_module(name)
        _plain_types(module)
        for each in public(module):
            _plain_types(getattr(module, each))
    app.connect("config-inited", lambda app, config: write(Path(app.srcdir) / "api"))
    app.connect("autodoc-process-docstring", _as_text, priority=400)  # before napoleon
    app.connect("autodoc-process-docstring", _no_type, priority=600)  # after it
    app.connect("autodoc-process-signature", _defaults)
    app.connect("autodoc-skip-member", _said_above)
    app.connect("missing-reference", _found)
    app.connect("env-check-consistency", _complete)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
