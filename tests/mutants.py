"""Mutation: every small change of our code that a tool can make, tried on the tests.

What lives here: the mutants that mutmut's and cosmic-ray's operators make of a module,
that module's fast tests run on each, and the score. What does not: why a survivor is no
fault of the tests (`EQUIVALENT_MUTANTS.md`, which this reads).

    pip install mutmut==3.8.1 cosmic-ray==8.7.0
    python -m tests.mutants mutmut schedule.py forward.py
    python -m tests.mutants cosmic-ray schedule.py forward.py

Their operators alone are used. mutmut's runner cannot import a package whose functions
it has replaced by its own before torch looks at them, and cosmic-ray's starts a Python,
which imports torch, for each of a thousand mutants. Here pytest collects the tests once
and each mutant is a fork, in which the functions' code is replaced: 0.1 s each.
"""

import ast
import difflib
import importlib
import mmap
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType, ModuleType
from typing import NoReturn

import hypothesis
import pytest
from _pytest.runner import runtestprotocol

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
EQUIVALENT = TESTS / "EQUIVALENT_MUTANTS.md"

# The tests that hold each module's laws.
LAWS = {
    "schedule.py": ("test_schedule.py", "test_forward.py"),
    "forward.py": ("test_forward.py",),
    "sampler.py": ("test_sampler.py",),
    "train.py": ("test_loss.py", "test_train.py"),
    "oracle.py": ("test_oracle.py",),
    "levels.py": ("test_oracle.py",),
    "bound.py": ("test_bound.py",),
    "decoder.py": ("test_decoder.py",),
}
# Of these modules, only these parts: the rest is the loop and its files.
ONLY = {"train.py": ("squared_error", "L_simple", "weight", "EMA", "learning_rate")}
EXAMPLES = 15  # hypothesis' examples for each law
SECONDS = 100  # of processor time for one mutant: more is a loop without end
WORKERS = 2


def mutmut(text: str) -> Iterator[str]:
    """What mutmut's operators make of a module: numbers, names, arguments, strings…"""
    import libcst
    from mutmut.mutation.file_mutation import MutationVisitor, deep_replace
    from mutmut.mutation.mutators import mutation_operators
    from mutmut.mutation.pragma_handling import IgnoredCode

    visitor = MutationVisitor(mutation_operators, IgnoredCode(set(), set(), set()))
    module = libcst.MetadataWrapper(libcst.parse_module(text)).visit(visitor)
    for mutation in visitor.mutations:
        changed = deep_replace(module, mutation.original_node, mutation.mutated_node)
        yield changed.code


def cosmic_ray(text: str) -> Iterator[str]:
    """What cosmic-ray's operators make of it: each operator by each other…"""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator, operator_names

    for name in sorted(operator_names()):
        if "variable" in name.lower():  # these need a cause and an effect named
            continue
        occurrence = 0
        while changed := mutate_code(text, get_operator(name)(), occurrence):
            yield changed
            occurrence += 1


def mutants(tool: str, module: str) -> list[str]:
    """The changed texts of a module, each once."""
    text = (ROOT / "tinyddpm" / module).read_text()
    make = {"mutmut": mutmut, "cosmic-ray": cosmic_ray}[tool]
    changed = [m for m in dict.fromkeys(make(text)) if m != text]
    if module in ONLY:
        changed = [m for m in changed if inside(text, m, ONLY[module])]
    return changed


def inside(text: str, changed: str, names: tuple[str, ...]) -> bool:
    """Whether the first line that differs belongs to one of these definitions."""
    lines = zip(text.splitlines(), changed.splitlines(), strict=False)
    first = next(i for i, (old, new) in enumerate(lines, 1) if old != new)
    parts = [node for node in ast.parse(text).body if getattr(node, "name", 0) in names]
    return any(node.lineno <= first <= node.end_lineno for node in parts)


def difference(text: str, changed: str) -> str:
    """`old` → `new`, the lines that differ, without their indentation."""
    old, new = [], []
    for line in difflib.ndiff(text.splitlines(), changed.splitlines()):
        if line.startswith("- "):
            old.append(line[2:].strip())
        elif line.startswith("+ "):
            new.append(line[2:].strip())
    return f"`{' '.join(old)}` → `{' '.join(new)}`"


def become(module: ModuleType, text: str) -> None:
    """Gives an imported module's functions the code that `text` has for them.

    They stay the objects that everybody has imported, in lists and closures too. Other
    names of the module, constants say, are set to their new values.
    """
    new = dict(vars(module))
    exec(compile(text, module.__file__, "exec"), new)
    for name, value in new.items():
        old = vars(module).get(name)
        if (
            isinstance(value, FunctionType | type)
            and value.__module__ != module.__name__
        ):
            continue  # imported
        if isinstance(value, type):
            for attribute, method in vars(value).items():
                take_code(vars(old)[attribute], method)
        elif isinstance(value, FunctionType):
            take_code(old, value)
        elif not name.startswith("__"):
            setattr(module, name, value)


def take_code(old: object, new: object) -> None:
    """old, if it is a function, does what new does, inside the same decorators."""
    while hasattr(old, "__wrapped__") and hasattr(new, "__wrapped__"):
        old, new = old.__wrapped__, new.__wrapped__
    if isinstance(new, FunctionType):
        if hasattr(old, "__wrapped__"):
            raise NotImplementedError("a decorator that went")
        old.__code__ = new.__code__
        old.__defaults__, old.__kwdefaults__ = new.__defaults__, new.__kwdefaults__


def passes(item: pytest.Item) -> bool:
    """Whether a test passes; its report goes nowhere."""
    reports = runtestprotocol(item, log=False, nextitem=None)
    return not any(report.failed for report in reports)


class Mutation:
    """A pytest plugin: instead of the tests once, the tests once for each mutant."""

    def __init__(self, tool: str, module: str) -> None:
        self.module = module
        self.text = (ROOT / "tinyddpm" / module).read_text()
        self.changed = mutants(tool, module)
        self.survived: list[str] = []
        self.killer = mmap.mmap(-1, 2 * len(self.changed))  # the test that failed

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        unchanged = [passes(item) for item in session.items]  # and all is loaded now
        assert unchanged, "there are no tests"
        assert all(unchanged), "the tests fail on the code as it is"
        order, running = list(range(len(session.items))), dict[int, int]()
        for i in range(len(self.changed)):
            pid = os.fork()
            if pid == 0:
                self.child(i, [(k, session.items[k]) for k in order])
            running[pid] = i
            while len(running) == WORKERS or (running and i + 1 == len(self.changed)):
                pid, status = os.wait()
                done = running.pop(pid)
                self.note(self.changed[done], killed=status != 0)
                k = int.from_bytes(self.killer[2 * done : 2 * done + 2])
                order.remove(k)
                order.insert(0, k)  # what killed one is likely to kill the next
        return True

    def note(self, changed: str, killed: bool) -> None:
        if not killed:
            self.survived.append(changed)

    def child(self, i: int, tests: list[tuple[int, pytest.Item]]) -> NoReturn:
        """Runs the tests on mutant i; exits 1 at the first that fails, else 0."""
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        try:
            name = self.module.removesuffix(".py")
            become(importlib.import_module(f"tinyddpm.{name}"), self.changed[i])
            for k, test in tests:
                if not passes(test):
                    self.killer[2 * i : 2 * i + 2] = k.to_bytes(2)
                    os._exit(1)
        except BaseException:  # it cannot even be imported
            os._exit(1)
        os._exit(0)


def main(tool: str, module: str) -> int:
    hypothesis.settings.register_profile(
        "mutants",
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        max_examples=EXAMPLES,
        phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
    )
    os.environ["HYPOTHESIS_PROFILE"] = "mutants"
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    mutation = Mutation(tool, module)
    options = ["-q", "-s", "-p", "no:cacheprovider", "-p", "_hypothesis_pytestplugin"]
    files = [str(TESTS / test) for test in LAWS[module]]
    pytest.main([*options, *files], plugins=[mutation])
    known = EQUIVALENT.read_text() if EQUIVALENT.exists() else ""
    differences = [difference(mutation.text, m) for m in mutation.survived]
    unexplained = [d for d in differences if d not in known]
    for d in unexplained:
        print(f"{module}: {d}")
    n, equivalent = len(mutation.changed), len(differences) - len(unexplained)
    print(
        f"{tool} {module}: {n} mutants, {n - len(differences)} killed, {equivalent} "
        f"equivalent, {len(unexplained)} survived"
    )
    return int(bool(unexplained))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
