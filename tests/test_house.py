"""Functions can be read at once, and arguments that travel together have records."""

from __future__ import annotations

import ast
import runpy
from collections.abc import Iterator
from pathlib import Path

import partikel

ROOT = Path(partikel.__file__).parent
LONGEST = 70
"""Lines of code of a function's body; docstrings, comments and blank lines are free."""
MOST = 8
"""Arguments of a function that is no command."""
WIDE = 10
"""Functions that may have more: each is a place where a record is missing."""
COMMANDS = ("app/cli.py", "app/commands")
"""Whose arguments are the options of the command line."""
code_of = runpy.run_path(str(Path(__file__).parents[1] / "scripts" / "code_lines.py"))["code_of"]


def functions() -> Iterator[tuple[str, int, int]]:
    """Path and name, lines of the body, and arguments of every function, methods and inner ones too."""
    for path in sorted(ROOT.rglob("*.py")):
        source = path.read_text("utf-8")
        code = code_of(source)
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = range(node.body[0].lineno, (node.end_lineno or 0) + 1)
                taken = [a.arg for a in (*node.args.posonlyargs, *node.args.args)]
                taken += [a.arg for a in node.args.kwonlyargs]
                count = len([name for name in taken if name not in ("self", "cls")])
                place = f"{path.relative_to(ROOT).as_posix()}:{node.lineno} {node.name}"
                yield place, len(code.intersection(body)), count


def test_functions_can_be_read_at_once() -> None:
    long = {place: lines for place, lines, _ in functions() if lines > LONGEST}
    assert not long, f"more than {LONGEST} lines of code: give their parts names: {long}"


def test_few_functions_have_many_arguments() -> None:
    wide = {p: n for p, _, n in functions() if n > MOST and not p.startswith(COMMANDS)}
    assert len(wide) <= WIDE, (
        f"more than {MOST} arguments: give those that travel together a record: {wide}"
    )
