"""Laws about the laws: what is held by one law of `tests/paper` alone.

    pip install --no-deps mutmut==3.8.1 libcst==1.9.0
    python -m tests.mutation.laws          # writes ALONE.md

Each published mistake of `mistakes.py` in the paper's rooms is put into the code, and
the tests that hold its module (`mutants.LAWS`) run until two fail by their law. Then no
assertion of either is needed for it, and no tolerance. Where only one does, its
assertions are removed one at a time, and its tolerances made ten times as wide one at a
time: what it then lets pass, that line holds alone.
"""

import argparse
import ast
import gc
import importlib
import json
import mmap
import os
import resource
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import CodeType
from typing import NamedTuple

import hypothesis
import pytest
from _pytest.runner import runtestprotocol

from .mistakes import MISTAKES, Mistake, patched_text
from .mutants import BYTES, HERE, LAWS, PACKAGE, ROOT, TESTS, become
from .patched import _Watch

TABLE = HERE / "ALONE.md"
EXAMPLES = 15  # hypothesis' examples for each law
SECONDS = 30  # of processor time that a law may take
TOLERANCES = {"rtol", "atol", "abs", "rel"}  # keyword arguments that are one
CAUGHT, NOT_IN_PLACE = 1, 2  # exit statuses


def compares(call: ast.Call) -> bool:
    """Whether it is a function that asserts something: assert_close, agree."""
    name = ast.unparse(call.func).rpartition(".")[2]
    return name.startswith("assert_") or name == "agree"


def assertions(function: ast.FunctionDef) -> Iterator[tuple[str, ast.stmt]]:
    """(what it says, the statement) of each assertion."""
    for node in ast.walk(function):
        called = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
        if isinstance(node, ast.Assert):
            yield ast.unparse(node.test), node
        elif called and compares(node.value):
            yield ast.unparse(node), node
        elif isinstance(node, ast.With) and "raises(" in ast.unparse(node.items[0]):
            yield f"with {ast.unparse(node.items[0])}", node


def tolerances(function: ast.FunctionDef) -> Iterator[tuple[str, ast.expr]]:
    """(what it says, the expression) of each tolerance."""
    for node in ast.walk(function):
        if isinstance(node, ast.keyword) and node.arg in TOLERANCES:
            yield f"{node.arg}={ast.unparse(node.value)}", node.value
        elif isinstance(node, ast.Call) and compares(node) and len(node.args) == 3:
            yield ast.unparse(node.args[2]), node.args[2]
        elif (
            isinstance(node, ast.Compare)
            and len(node.ops) == 1
            and isinstance(node.ops[0], ast.Lt | ast.LtE)
            and "abs(" in ast.unparse(node.left)
        ):
            yield ast.unparse(node), node.comparators[0]


class Edit(ast.NodeTransformer):
    """Removes one assertion, or makes one tolerance ten times as wide."""

    def __init__(self, target: ast.AST) -> None:
        self.target = target

    def visit(self, node: ast.AST) -> ast.AST | list[ast.stmt]:
        if node is not self.target:
            return self.generic_visit(node)
        if isinstance(node, ast.With):  # what it waits for may come, or not
            node.items = [ast.withitem(ast.parse("suppress(Exception)").body[0].value)]
            imported = ast.parse("from contextlib import suppress").body
            return [*imported, node]
        if isinstance(node, ast.stmt):
            return ast.Pass()
        return ast.BinOp(node, ast.Mult(), ast.Constant(10))


def edits(path: Path, name: str) -> list[tuple[str, str, CodeType]]:
    """(kind, what the line says, the function's code without it) for a test."""
    text = path.read_text()
    found = []
    for kind, of in (("assertion", assertions), ("tolerance", tolerances)):
        for i, (says, _) in enumerate(of(function_of(ast.parse(text), name))):
            tree = ast.parse(text)
            target = list(of(function_of(tree, name)))[i][1]
            changed = ast.fix_missing_locations(Edit(target).visit(tree))
            code = compile(changed, str(path), "exec")
            own = next(
                c
                for c in code.co_consts
                if isinstance(c, CodeType) and c.co_name == name
            )
            found.append((kind, says, own))
    return found


def function_of(tree: ast.Module, name: str) -> ast.FunctionDef:
    found = (f for f in tree.body if isinstance(f, ast.FunctionDef))
    return next(f for f in found if f.name == name)


def counted(path: Path) -> tuple[int, int]:
    """How many assertions and tolerances the tests of a module have."""
    tests = [
        f
        for f in ast.parse(path.read_text()).body
        if isinstance(f, ast.FunctionDef) and f.name.startswith("test_")
    ]
    return (
        sum(len(list(assertions(f))) for f in tests),
        sum(len(list(tolerances(f))) for f in tests),
    )


class Finding(NamedTuple):
    """Which laws catch a mistake: two at most are looked for, None if it cannot be put
    into a running process. Of a single one, what it must not lose: (kind, line)."""

    mistake: str
    catchers: list[str] | None
    needed: list[tuple[str, str]]


class Laws:
    """A pytest plugin: instead of the tests once, what each mistake makes fail."""

    def __init__(self, mistakes: Sequence[Mistake], workers: int) -> None:
        self.mistakes, self.workers = mistakes, workers
        self.found: list[Finding] = []

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        self.laws: dict[str, list[pytest.Item]] = {}
        for item in session.items:
            self.laws.setdefault(item.nodeid.partition("[")[0], []).append(item)
        self.names = list(self.laws)
        gc.freeze()
        pipes = [self.worker(i) for i in range(self.workers)]
        for pipe in pipes:
            with os.fdopen(pipe) as file:
                self.found += [Finding(*found) for found in json.load(file)]
        return True

    def worker(self, i: int) -> int:
        """The end of a pipe that the findings of every n-th mistake come out of."""
        out, into = os.pipe()
        if os.fork():
            os.close(into)
            return out
        self.which = mmap.mmap(-1, 2)  # the law that failed
        findings = []
        for mistake in self.mistakes[i :: self.workers]:
            findings.append(self.look_at(mistake))
            print(f"{findings[-1]}", file=sys.stderr, flush=True)
        with os.fdopen(into, "w") as file:
            json.dump(findings, file)
        os._exit(0)

    def look_at(self, mistake: Mistake) -> Finding:
        text = (PACKAGE / mistake.file).read_text()
        changed = patched_text(mistake, text)
        own, files = f"tests/{mistake.test}", LAWS[mistake.file]
        near = [
            name
            for name in self.names
            if name == own or name.removeprefix("tests/").startswith(files)
        ]
        near.sort(key=lambda name: name != own)
        catchers: list[str] = []
        while near and len(catchers) < 2:
            status, name = self.fork(mistake.file, changed, near)
            if status == NOT_IN_PLACE:
                return Finding(mistake.name, None, [])
            if status == 0:
                break
            catchers += [name] if status == CAUGHT else []  # else the time was over
            near = near[near.index(name) + 1 :]
        if len(catchers) != 1:
            return Finding(mistake.name, catchers, [])
        file, function = catchers[0].split("::")
        needed = [
            (kind, says)
            for kind, says, code in edits(ROOT / file, function)
            if not self.fork(mistake.file, changed, catchers, code)[0]
        ]
        return Finding(mistake.name, catchers, needed)

    def fork(
        self, file: str, text: str, names: list[str], code: CodeType | None = None
    ) -> tuple[int, str]:
        """(exit status, the law that failed) of the first of these laws that does.

        With `code`, it is the code of the one law that is asked.
        """
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            self.child(file, text, names, code)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        return status, self.names[int.from_bytes(self.which[:2])]

    def child(
        self, file: str, text: str, names: list[str], code: CodeType | None
    ) -> None:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * os.sysconf("SC_PAGE_SIZE") + BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        try:
            become(
                importlib.import_module(f"tinyddpm.{file.removesuffix('.py')}"), text
            )
        except BaseException:
            os._exit(NOT_IN_PLACE)
        for name in names:
            self.which[:2] = self.names.index(name).to_bytes(2)
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            for item in self.laws[name]:
                if code is not None:
                    function = item.function
                    inner = getattr(function, "hypothesis", None)
                    (inner.inner_test if inner else function).__code__ = code
                if fails_by_its_law(item):
                    os._exit(CAUGHT)
        os._exit(0)


def fails_by_its_law(item: pytest.Item) -> bool:
    watch = _Watch(ROOT)
    item.config.pluginmanager.register(watch)
    try:
        runtestprotocol(item, log=False, nextitem=None)
    except BaseException:  # what pytest lets through: KeyboardInterrupt, say
        return False
    finally:
        item.config.pluginmanager.unregister(watch)
    return watch.outcome.verdict == "law"


def table(findings: Sequence[Finding], files: Sequence[Path]) -> str:
    """ALONE.md."""
    of = {n: [] for n in (0, 1, 2, None)}
    for f in findings:
        of[None if f.catchers is None else len(f.catchers)].append(f)
    none, not_tried = (", ".join(f.mistake for f in of[n]) or "none" for n in (0, None))
    lines = [
        "# What a single law holds alone",
        "",
        "`python -m tests.mutation.laws` puts each published mistake of `mistakes.py`",
        "that is in the paper's rooms into the code and looks, among the tests that",
        "hold the module, for two that fail by their law. Where there are two, either",
        "may lose any assertion, and any tolerance may be ten times as wide. Where",
        "there is one, the table says which of its lines the mistake hangs on.",
        "",
        f"Of {len(findings)} mistakes {len(of[2])} are caught by two laws or more and "
        f"{len(of[1])} by one.",
        f"Caught by none of those: {none}. Not to be put into a running process: "
        f"{not_tried}.",
        f"With {EXAMPLES} examples of hypothesis for each law.",
        "",
        "| mistake | caught alone by | would pass without | or ten times wider |",
        "| --- | --- | --- | --- |",
    ]
    for f in sorted(of[1], key=lambda f: f.catchers):
        cells = [f.mistake, f"`{f.catchers[0].removeprefix('tests/')}`"]
        for kind in ("assertion", "tolerance"):
            says = [f"`{says}`" for k, says in f.needed if k == kind]
            cells.append("<br>".join(says).replace("|", "\\|") or "-")
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "| module | assertions | tolerances | mistakes that it alone catches |",
        "| --- | --- | --- | --- |",
    ]
    for path in files:
        here = [f.mistake for f in of[1] if f"/{path.name}::" in f.catchers[0]]
        asserted, tolerated = counted(path)
        alone = ", ".join(here) or "-"
        lines.append(f"| `{path.name}` | {asserted} | {tolerated} | {alone} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="mistake", help="M2, ...")
    parser.add_argument("--workers", type=int, default=1, help="mistakes at a time")
    given = parser.parse_args()
    hypothesis.settings.register_profile(
        "laws",
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        max_examples=EXAMPLES,
        phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
    )
    os.environ["HYPOTHESIS_PROFILE"] = "laws"
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    chosen = [
        m
        for m in MISTAKES
        if m.file in LAWS
        and "/" not in m.file
        and (not given.names or m.name in given.names)
    ]
    laws = Laws(chosen, given.workers)
    files = sorted((TESTS / "paper").glob("test_*.py"))
    options = ["-q", "-s", "-p", "no:cacheprovider", "-p", "_hypothesis_pytestplugin"]
    pytest.main([*options, "--rootdir", str(ROOT), *map(str, files)], plugins=[laws])
    order = [m.name for m in chosen]
    laws.found.sort(key=lambda f: order.index(f.mistake))
    text = table(laws.found, files)
    if given.names:
        print(text)
    else:
        TABLE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
