"""Do the tests notice? Changed lines (mutants), drawn by seed, each met by the tests that run its line.

python scripts/mutate.py record [tests/test_x.py ...]     # which test runs which line; minutes
python scripts/mutate.py run --seed 0 --number 200        # goes on where it was stopped
python scripts/mutate.py run --again                      # the survivors, once tests were added
python scripts/mutate.py show

A mutant changes one place: the sign of a term, a factor of 2 on a constant, an integer, range or comparison
off by one, two arguments swapped, a call or a keyword left out, another default. Messages, docstrings and
pictures are not drawn. Every room of the package has an equal share. Mutants live in a copy of the tree.
What survives is judged by hand: ``reason`` beside it in the results says why no test can or should notice.
"""

from __future__ import annotations

import argparse
import ast
import compileall
import contextlib
import importlib
import json
import multiprocessing
import os
import pkgutil
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from py_compile import PycInvalidationMode
from queue import SimpleQueue
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = Path("src/partikel")
RECORD = ROOT / "build/mutation"
RESULTS = ROOT / "benchmarks/results/mutation.json"
PICTURES = ("app/show/", "app/gallery.py", "app/demo.py", "app/terminal.py", "studies/sheets.py")
DOORS = ("__init__.py", "__main__.py")
"""How things look is judged by eye."""
SILENT = {"print", "warn", "warning", "info", "cast", "TypeVar", "overload", "super", "isinstance"}
"""Calls that say something to people or to type checkers, or fail at once where they are changed."""
CONVERSIONS = {
    "float",
    "int",
    "str",
    "list",
    "tuple",
    "set",
    "dict",
    "bool",
    "Path",
    "iter",
    "type",
}
Record = dict[str, dict[str, Any]]
"""By test: its CPU ``seconds``, and by file the ``lines`` it runs; what tests share is their file's."""
COSMETIC = {"encoding", "strict", "title", "label", "color", "help", "description", "flush"}
"""Keywords of which the same holds, or which change nothing on this system."""
ORDER = {ast.Lt: ("<", "<="), ast.LtE: ("<=", "<"), ast.Gt: (">", ">="), ast.GtE: (">=", ">")}
HEAVY = ["torch", "torch.func", "torch.nn.utils.parametrizations", "accelerate", "scipy.stats"]
HEAVY += [
    "sklearn.datasets",
    "matplotlib.pyplot",
    "ot",
    "torchdiffeq",
    "safetensors.torch",
    "pytest",
]


@dataclass(frozen=True)
class Mutant:
    """One change: the bytes [start, end) of a file, and what stands there instead."""

    file: str
    line: int
    operator: str
    start: int
    end: int
    before: str
    after: str
    scopes: tuple[tuple[int, int], ...] = ()
    """Lines of the mutant, then of its function, class and module."""

    @property
    def name(self) -> str:
        """What it is called in the results."""
        before, after = (textwrap.shorten(text, 70) for text in (self.before, self.after))
        where = f"{self.file.removeprefix(f'{PACKAGE}/')}:{self.line} ({self.start})"
        return f"{where} {self.operator}: {before} -> {after or 'nothing'}"


def room_of(file: str) -> str:
    """The module or folder directly under the package."""
    return file.removeprefix(f"{PACKAGE}/").split("/")[0].removesuffix(".py")


class Finder(ast.NodeVisitor):
    """All mutants of a source.

    Args:
        file: its path.
        source: its text.
        literals: values of named ``Literal`` types.
    """

    def __init__(self, file: str, source: str, literals: dict[str, list[str]]) -> None:
        self.file, self.source, self.literals = file, source.encode(), literals
        lines = self.source.split(b"\n")
        self.starts = [0]
        for line in lines:
            self.starts.append(self.starts[-1] + len(line) + 1)
        self.found: list[Mutant] = []
        self.modules: set[str] = set()
        self.scopes: list[tuple[int, int]] = [(1, len(lines))]

    def place(self, node: Any) -> tuple[int, int]:
        """Its bytes."""
        start = self.starts[node.lineno - 1] + node.col_offset
        return start, self.starts[node.end_lineno - 1] + node.end_col_offset

    def text(self, node: ast.AST) -> str:
        """Its source."""
        start, end = self.place(node)
        return self.source[start:end].decode()

    def add(self, operator: str, node: Any, start: int, end: int, after: str) -> None:
        """Keep a change."""
        before = self.source[start:end].decode()
        lines = (node.lineno, node.end_lineno or node.lineno)
        scopes = (lines, *reversed(self.scopes))
        line = self.source[:start].count(b"\n") + 1
        self.found.append(Mutant(self.file, line, operator, start, end, before, after, scopes))

    def between(self, operator: str, left: ast.AST, right: ast.AST, old: str, new: str) -> None:
        """Change the operator that stands between two operands."""
        start, end = self.place(left)[1], self.place(right)[0]
        gap = re.sub(rb"#[^\n]*", lambda m: b" " * len(m[0]), self.source[start:end])
        at = start + gap.index(old.encode())
        self.add(operator, left, at, at + len(old), new)

    # what is not changed

    def visit_Raise(self, node: ast.AST) -> None:
        """Messages."""

    visit_Assert = visit_JoinedStr = visit_Import = visit_ImportFrom = visit_Raise

    def visit_If(self, node: ast.If) -> None:
        """All but what type checkers alone see."""
        if "TYPE_CHECKING" not in ast.dump(node.test):
            self.generic_visit(node)

    # where we are

    def _scope(self, node: Any) -> None:
        self.scopes.append((node.lineno, node.end_lineno))
        defaults = getattr(node, "args", None)
        if defaults is not None:
            for argument, value in _defaults(defaults):
                self._default(argument.annotation, value)
        node.decorator_list = []
        self.generic_visit(node)
        self.scopes.pop()

    visit_FunctionDef = visit_AsyncFunctionDef = visit_ClassDef = _scope

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        """Defaults of settings."""
        self._default(node.annotation, node.value)
        self.generic_visit(node)

    # what is changed

    def visit_BinOp(self, node: ast.BinOp) -> None:
        """Signs of terms."""
        written = ast.JoinedStr, ast.List, ast.Tuple, ast.ListComp
        texts = [n for n in (node.left, node.right) if isinstance(n, written) or _is_text(n)]
        if isinstance(node.op, ast.Add | ast.Sub) and not texts:
            old, new = ("+", "-") if isinstance(node.op, ast.Add) else ("-", "+")
            self.between("sign", node.left, node.right, old, new)
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        """Signs of what is added."""
        if isinstance(node.op, ast.Add | ast.Sub) and not isinstance(node.value, ast.List):
            old, new = ("+=", "-=") if isinstance(node.op, ast.Add) else ("-=", "+=")
            self.between("sign", node.target, node.value, old, new)
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        """Signs."""
        if isinstance(node.op, ast.USub):
            start, _ = self.place(node)
            self.add("sign", node, start, start + 1, "")
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        """Numbers and switches."""
        start, end = self.place(node)
        value = node.value
        if isinstance(value, bool):
            self.add("default", node, start, end, str(not value))
        elif isinstance(value, int):
            self.add("off by one", node, start, end, str(value + 1))
        elif isinstance(value, float):
            self.add("factor", node, start, end, repr(2 * value if value else 1.0))

    def visit_Compare(self, node: ast.Compare) -> None:
        """Bounds that are included, or not."""
        left = node.left
        for operator, right in zip(node.ops, node.comparators, strict=True):
            if type(operator) in ORDER:
                self.between("off by one", left, right, *ORDER[type(operator)])
            left = right
        self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> None:
        """Calls for what they do; docstrings."""
        if isinstance(node.value, ast.Call):
            if not {"super", *SILENT} & _names(node.value):
                self.add("dropped call", node, *self.place(node), "pass")
            self.visit_Call(node.value, statement=True)

    def visit_Call(self, node: ast.Call, statement: bool = False) -> None:
        """Arguments, keywords, and what a function makes of its argument."""
        called = node.func.attr if isinstance(node.func, ast.Attribute) else self.text(node.func)
        if called in SILENT:
            return
        arguments = [] if any(isinstance(a, ast.Starred) for a in node.args) else node.args
        for a, b in zip(arguments, arguments[1:], strict=False):
            if _kind(a) is _kind(b) and (one := self.text(a)) != (other := self.text(b)):
                (start, stop), (onwards, end) = self.place(a), self.place(b)
                middle = self.source[stop:onwards].decode()
                self.add("swapped", a, start, end, other + middle + one)
        if called == "range" and arguments:
            stop = arguments[min(1, len(arguments) - 1)]
            self.add("off by one", stop, *self.place(stop), f"({self.text(stop)}) + 1")
        for keyword in node.keywords:
            if keyword.arg is not None and keyword.arg not in COSMETIC:
                self.add("dropped keyword", keyword, *self._with_comma(keyword), "")
        if not statement and called not in CONVERSIONS:
            root = node.func
            while isinstance(root, ast.Attribute):
                root = root.value
            of_module = isinstance(root, ast.Name) and root.id in self.modules
            kept = None
            if isinstance(node.func, ast.Attribute) and not of_module:
                kept = node.func.value
            elif len(arguments) == 1 and not node.keywords:
                kept = arguments[0]
            if kept is not None and not (isinstance(kept, ast.Call) and "super" in _names(kept)):
                self.add("dropped call", node, *self.place(node), self.text(kept))
        for part in (node.func, *node.args, *node.keywords):
            if not isinstance(part, ast.keyword) or part.arg not in COSMETIC:
                self.visit(part)

    def _with_comma(self, node: ast.AST) -> tuple[int, int]:
        start, end = self.place(node)
        if after := re.match(rb"\s*,\s*", self.source[end:]):
            return start, end + after.end()
        before = re.search(rb",\s*$", self.source[:start])
        return before.start() if before else start, end

    def _default(self, annotation: ast.AST | None, value: ast.AST | None) -> None:
        if annotation is None or value is None or not _is_text(value):
            return
        words = [w for name in _names(annotation) for w in self.literals.get(name, [])]
        words += _words(annotation)
        if others := [word for word in words if word != ast.literal_eval(self.text(value))]:
            self.add("default", value, *self.place(value), json.dumps(others[0]))


def _kind(node: ast.AST) -> type:
    """Names and attributes are of one kind: what one may take for another."""
    return ast.Name if isinstance(node, ast.Attribute) else type(node)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _names(node: ast.AST) -> set[str]:
    return {n.id if isinstance(n, ast.Name) else n.attr
            for n in ast.walk(node) if isinstance(n, ast.Name | ast.Attribute)}  # fmt: skip


def _words(node: ast.AST) -> list[str]:
    return [
        word.value
        for part in ast.walk(node)
        if isinstance(part, ast.Subscript) and "Literal" in _names(part.value)
        for word in ast.walk(part.slice)
        if isinstance(word, ast.Constant) and isinstance(word.value, str)
    ]


def _defaults(arguments: ast.arguments) -> Iterator[tuple[ast.arg, ast.expr | None]]:
    named = [*arguments.posonlyargs, *arguments.args]
    yield from zip(reversed(named), reversed(arguments.defaults), strict=False)
    yield from zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)


def mutants_of(sources: dict[str, str]) -> list[Mutant]:
    """Every mutant of these files."""
    trees = {file: ast.parse(source) for file, source in sources.items()}
    literals: dict[str, list[str]] = {}
    for tree in trees.values():
        for node in tree.body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                literals[node.targets[0].id] = _words(node.value)
    found = []
    for file, source in sources.items():
        finder = Finder(file, source, literals)
        for node in ast.walk(trees[file]):
            if isinstance(node, ast.Import):
                finder.modules |= {(a.asname or a.name).split(".")[0] for a in node.names}
        finder.visit(trees[file])
        found += finder.found
    return found


def compiles(mutant: Mutant, source: str) -> bool:
    """Whether a change of this source is a program."""
    whole = source.encode()
    try:
        ast.parse(whole[: mutant.start] + mutant.after.encode() + whole[mutant.end :])
    except SyntaxError:
        return False
    return True


def drawn(found: Sequence[Mutant], sources: dict[str, str], number: int, seed: int) -> list[Mutant]:
    """``number`` mutants: as many of each room, in a room of each operator, one a line."""
    rooms: dict[str, list[Mutant]] = defaultdict(list)
    for mutant in found:
        rooms[room_of(mutant.file)].append(mutant)
    queues = {}
    for room, members in sorted(rooms.items()):
        source = random.Random(f"{seed} {room}")
        kinds: dict[str, list[Mutant]] = defaultdict(list)
        for mutant in members:
            kinds[mutant.operator].append(mutant)
        for each in kinds.values():
            source.shuffle(each)
        order = source.sample(sorted(kinds), len(kinds))
        turns = [kinds[kind][turn:turn + 1] for turn in range(len(members)) for kind in order]  # fmt: skip
        lines = {(m.file, m.line): m for turn in reversed(turns) for m in turn}
        queues[room] = [m for turn in turns for m in turn if lines[m.file, m.line] is m]
    chosen: list[Mutant] = []
    while any(queues.values()) and len(chosen) < number:
        for queue in queues.values():
            while queue and not compiles(queue[0], sources[queue[0].file]):
                queue.pop(0)
            if queue and len(chosen) < number:
                chosen.append(queue.pop(0))
    return chosen


# --- which tests run which lines


class Recording:
    """A plugin of pytest that tells coverage which test is running; what a file shares is the file's."""

    def __init__(self, coverage: Any) -> None:
        self.coverage = coverage
        self.now = ""
        self.seconds: dict[str, float] = {}
        self.failed: set[str] = set()

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Around a test."""
        self.now = item.nodeid
        self.coverage.switch_context(self.now)
        started = time.process_time()
        yield
        self.seconds[self.now] = round(time.process_time() - started, 3)
        self.coverage.switch_context("")

    @pytest.hookimpl(hookwrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Iterator[None]:
        """Around what tests share."""
        if fixturedef.scope != "function":
            self.coverage.switch_context(self.now.split("::")[0])
        yield
        self.coverage.switch_context(self.now)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Tests that fail, or skip, notice nothing."""
        if report.outcome != "passed":
            self.failed.add(report.nodeid)


def record(files: list[str]) -> None:
    """Run tests, all or those of some files, and keep which lines each runs."""
    import coverage

    import partikel

    watch = coverage.Coverage(data_file=None, source=[str(ROOT / PACKAGE)])
    for module in pkgutil.walk_packages(partikel.__path__, "partikel."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)  # or its first user would seem to be its test
    plugin = Recording(watch)
    watch.start()
    pytest.main([*files, "-q", "-p", "no:cacheprovider", "-m", "not slow"], plugins=[plugin])
    watch.stop()
    known: Record = {}
    for test, seconds in plugin.seconds.items():
        if test not in plugin.failed:
            known[test] = {"seconds": seconds, "lines": {}}
    data = watch.get_data()
    for measured in data.measured_files():
        file = str(Path(measured).relative_to(ROOT))
        for line, tests in data.contexts_by_lineno(measured).items():
            for test in set(tests) - plugin.failed - {""}:
                ran = known.setdefault(test, {"seconds": 0.0, "lines": {}})
                ran["lines"].setdefault(file, []).append(line)
    RECORD.mkdir(parents=True, exist_ok=True)
    for file in {test.split("::")[0] for test in known}:
        own = {test: ran for test, ran in known.items() if test.split("::")[0] == file}
        (RECORD / f"{Path(file).stem}.json").write_text(json.dumps(own))
    for test in sorted(plugin.failed):
        print("left out, as it does not pass:", test)


def tests_of(mutant: Mutant, known: Record) -> list[str]:
    """The tests that run a mutant's lines; for what runs at import, those of what it is written in."""
    of_file = {test: ran["lines"].get(mutant.file, ()) for test, ran in known.items()}
    for first, last in mutant.scopes:
        if found := {t for t, lines in of_file.items() if any(first <= n <= last for n in lines)}:
            found |= {test for test in known if test.split("::")[0] in found}
            return sorted((t for t in found if "::" in t), key=lambda t: known[t]["seconds"])
    return []


# --- meeting a mutant


class Chosen:
    """A plugin of pytest that runs some tests in an order, and says which failed first."""

    def __init__(self, tests: list[str]) -> None:
        self.rank = {test: rank for rank, test in enumerate(tests)}
        self.failed = ""

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Files in the order of their first test, as what they share is made once."""
        items[:] = [item for item in items if item.nodeid in self.rank]
        items.sort(key=lambda item: self.rank[item.nodeid])
        files = list(dict.fromkeys(item.nodeid.split("::")[0] for item in items))
        items.sort(key=lambda item: files.index(item.nodeid.split("::")[0]))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Remember a failure."""
        if report.failed:
            self.failed = self.failed or report.nodeid

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Remember a file that cannot be imported."""
        if report.failed:
            self.failed = self.failed or report.nodeid


def meet(tree: str, tests: list[str], seconds: int, answer: Connection) -> None:
    """In a process of its own: run tests in a tree, and answer (first failure, CPU seconds)."""
    os.setsid()
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    said = os.open(f"{tree}/said.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    os.chdir(tree)
    os.environ["PYTHONPATH"] = f"{tree}/src"
    sys.path.insert(0, f"{tree}/src")
    plugin = Chosen(tests)
    options = ["-x", "-q", "-p", "no:cacheprovider", f"--basetemp={tree}/tmp"]
    code = pytest.main([*{test.split("::")[0] for test in tests}, *options], plugins=[plugin])
    by = plugin.failed or ("" if code == pytest.ExitCode.OK else "import")  # of conftest.py
    answer.send((by, time.process_time()))
    os._exit(0)  # whatever the mutant left running


def outcome(mutant: Mutant, tree: str, known: Record, most: float) -> dict[str, Any]:
    """Whether a mutant is noticed, and by which test."""
    covering, tests, expected = tests_of(mutant, known), [], 0.0
    for test in covering:
        if expected + known[test]["seconds"] <= most or not tests:
            tests.append(test)
            expected += known[test]["seconds"]
    row: dict[str, Any] = {"name": mutant.name, "by": None, "cpu": 0.0}
    row |= {"tests": len(tests), "left_out": len(covering) - len(tests)}
    if not tests:
        return row
    file = Path(tree, mutant.file)
    whole = file.read_bytes()
    file.write_bytes(whole[: mutant.start] + mutant.after.encode() + whole[mutant.end :])
    seconds = int(30 + 4 * expected)
    here, there = multiprocessing.Pipe(duplex=False)
    start = multiprocessing.get_context("forkserver").Process
    process = start(target=meet, args=(tree, tests, seconds, there))
    process.start()
    there.close()
    try:
        if here.poll(10 * seconds):
            row["by"], row["cpu"] = here.recv()
        else:
            row["by"] = "time"
    except EOFError:  # killed: by its limit, or by itself
        row["by"], row["cpu"] = "time", float(seconds)
    finally:
        if process.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        process.join()
        file.write_bytes(whole)
    row["by"] = row["by"] or None
    row["cpu"] = round(row["cpu"], 1)
    return row


def copied(folder: Path) -> str:
    """A copy of the working tree whose compiled files are checked against their sources."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True
    ).stdout.decode()
    for name in listed.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    checked = PycInvalidationMode.CHECKED_HASH
    compileall.compile_dir(str(folder / "src"), quiet=2, invalidation_mode=checked)
    return str(folder)


def run(options: argparse.Namespace) -> None:
    """Draw mutants and meet them."""
    sources = {
        str(path.relative_to(ROOT)): path.read_text("utf-8")
        for path in sorted((ROOT / PACKAGE).rglob("*.py"))
        if not str(path.relative_to(ROOT / PACKAGE)).startswith(
            (*PICTURES, *DOORS, *options.without)
        )
    }
    found = [
        m for m in mutants_of(sources) if room_of(m.file) in (options.rooms or [room_of(m.file)])
    ]
    chosen = drawn(found, sources, options.number, options.seed)
    known: Record = {}
    for file in sorted(RECORD.glob("test_*.json")):
        known |= json.loads(file.read_text())
    out = Path(options.out)
    rows = {row["name"]: row for row in read(out)}
    todo = [m for m in chosen if m.name not in rows]
    if options.again:
        todo = [m for m in found if m.name in rows and rows[m.name]["by"] is None]
    multiprocessing.get_context("forkserver").set_forkserver_preload(HEAVY)
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        trees: SimpleQueue[str] = SimpleQueue()
        for job in range(options.jobs):
            trees.put(copied(Path(folder, str(job))))

        def one(mutant: Mutant) -> dict[str, Any]:
            tree = trees.get()
            try:
                return outcome(mutant, tree, known, options.seconds)
            finally:
                trees.put(tree)

        with ThreadPoolExecutor(options.jobs) as pool:
            for done, row in enumerate(pool.map(one, todo), 1):
                reason = rows.get(row["name"], {}).get("reason", "")
                rows[row["name"]] = row | ({} if row["by"] else {"reason": reason})
                write(out, list(rows.values()))
                print(f"{done}/{len(todo)} {row['name']}: {row['by'] or 'SURVIVED'}", flush=True)
    show(out)


def read(path: Path) -> list[dict[str, Any]]:
    """Earlier results."""
    return json.loads(path.read_text()) if path.exists() else []


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """One mutant a line, whole or not at all."""
    new = path.with_suffix(".new")
    new.write_text(
        "[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]\n"
    )
    new.replace(path)


def show(path: Path) -> None:
    """Noticed shares by room, and the survivors."""
    rows = read(path)
    total, noticed, judged = Counter[str](), Counter[str](), Counter[str]()
    for row in rows:
        room = room_of(row["name"].split(":")[0])
        total[room] += 1
        noticed[room] += row["by"] is not None
        judged[room] += row["by"] is None and bool(row.get("reason"))
    for room in sorted(total):
        print(f"{room:<14}{noticed[room]:>4} of {total[room]:<4}{judged[room]:>4} judged")
    share = sum(noticed.values()) / max(1, len(rows))
    print(f"{'all':<14}{sum(noticed.values()):>4} of {len(rows):<4}{share:>7.0%}")
    for row in rows:
        if row["by"] is None:
            print(f"{row['name']}  ({row['tests']} tests) {row.get('reason', '')}")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("record").add_argument("files", nargs="*")
    commands.add_parser("show").add_argument("--out", default=RESULTS)
    drawing = commands.add_parser("run")
    drawing.add_argument("--seed", type=int, default=0)
    drawing.add_argument("--number", type=int, default=200)
    drawing.add_argument("--jobs", type=int, default=1)
    drawing.add_argument("--rooms", nargs="*", default=[])
    drawing.add_argument("--without", nargs="*", default=[], help="paths inside of the package")
    drawing.add_argument("--seconds", type=float, default=20, help="of the tests of one mutant")
    drawing.add_argument("--again", action="store_true", help="meet the survivors once more")
    drawing.add_argument("--out", default=RESULTS)
    options = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    os.chdir(ROOT)
    if options.command == "record":
        record(options.files)
    elif options.command == "run":
        run(options)
    else:
        show(Path(options.out))


if __name__ == "__main__":
    main()
