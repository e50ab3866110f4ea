"""Lines of code by room, docstrings, comments and blank lines not counted: how the house grows.

python scripts/code_lines.py                    # today's tree
python scripts/code_lines.py --against REV      # and by how much it grew since a commit
"""

from __future__ import annotations

import argparse
import ast
import io
import subprocess
import tarfile
import tokenize
from collections import Counter
from pathlib import Path

PACKAGE = Path("src/partikel")
BASE = "156df7e"
"""The house before its first redesign."""
NOT_CORE = {"networks", "data", "metrics", "likelihood", "recipes", "app", "studies"}
NOT_CORE |= {"__init__", "__main__"}
# rooms of earlier commits, which lie in app, studies and metrics now
NOT_CORE |= {
    "animation",
    "cli",
    "config",
    "demo",
    "evaluation",
    "export",
    "gallery",
    "interpolation",
}
NOT_CORE |= {
    "matrix",
    "plane",
    "plots",
    "report",
    "reproduce",
    "runs",
    "smoothing",
    "theory",
    "verify",
}
SILENT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}


def code_of(source: str) -> set[int]:
    """The numbers of the lines that hold code."""
    silent: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            for each in body:  # docstrings, of attributes too
                value = each.value if isinstance(each, ast.Expr) else None
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    silent.update(range(each.lineno, (each.end_lineno or 0) + 1))
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in SILENT and token.type != tokenize.ENDMARKER:
            lines.update(range(token.start[0], token.end[0] + 1))
    return lines - silent


def rooms(files: dict[str, str]) -> Counter[str]:
    """Lines by room: a module or folder directly under the package."""
    count: Counter[str] = Counter()
    for path, source in files.items():
        count[path.split("/")[0].removesuffix(".py")] += len(code_of(source))
    return count


def today() -> dict[str, str]:
    """Sources of the working tree, by path inside of the package."""
    return {str(p.relative_to(PACKAGE)): p.read_text("utf-8") for p in PACKAGE.rglob("*.py")}


def at(revision: str) -> dict[str, str]:
    """Sources of a commit."""
    asked = subprocess.run(["git", "archive", revision, str(PACKAGE)], capture_output=True)
    if asked.returncode:  # a clone without this commit
        return {}
    packed = asked.stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        return {
            str(Path(member.name).relative_to(PACKAGE)): file.read().decode("utf-8")
            for member in archive
            if member.name.endswith(".py") and (file := archive.extractfile(member))
        }


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--against", metavar="REV", default=BASE)
    now, before = rooms(today()), rooms(at(parser.parse_args().against))

    def line(name: str, of: Counter[str], earlier: Counter[str]) -> str:
        total, old = sum(of.values()), sum(earlier.values())
        return f"{name:<16}{total:>7}" + (f"{total - old:>+8}" if before else "")

    for name in sorted(now | before):
        print(line(name, Counter({name: now[name]}), Counter({name: before[name]})))
    core = Counter({k: v for k, v in now.items() if k not in NOT_CORE})
    old_core = Counter({k: v for k, v in before.items() if k not in NOT_CORE})
    print(line("core", core, old_core))
    print(line("package", now, before))


if __name__ == "__main__":
    main()
