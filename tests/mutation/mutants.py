"""Mutation: every small change of our code that a tool can make, tried on the tests.

    pip install -c constraints.txt -e '.[mutation]'
    python -m tests.mutation.mutants schedule.py beyond/oracle.py
    python -m tests.mutation.mutants --workers 2      # every module of `LAWS`
    python -m tests.mutation.mutants --changed --minutes 10
    python -m tests.mutation.mutants --table          # the scores so far

The module's tests are run on each mutant. Survivors are printed as they are found, on
stdout. Exit 0 says that each mutant that was tried was killed or stands in
`EQUIVALENT_MUTANTS.md` with the reason why it may live, and that no row there is stale.
A module's score goes into `registry.json`, with the digest of its text: `--changed`
tries the modules that have another text since.

mutmut's operators alone are used: its runner cannot import a package whose functions it
has replaced by its own before torch looks at them. Here pytest collects the tests once
and each mutant is a fork, in which the functions' code is replaced: 0.1 s each.
"""

import argparse
import ast
import datetime
import difflib
import gc
import hashlib
import importlib
import json
import mmap
import os
import resource
import signal
import sys
import time
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, NoReturn

import hypothesis
import libcst
import pytest
from _pytest.runner import runtestprotocol
from mutmut.mutation.file_mutation import MutationVisitor, deep_replace
from mutmut.mutation.mutators import mutation_operators
from mutmut.mutation.pragma_handling import IgnoredCode

HERE = Path(__file__).resolve().parent
TESTS, ROOT = HERE.parent, HERE.parent.parent
PACKAGE = ROOT / "tinyddpm"
EQUIVALENT, REGISTRY = HERE / "EQUIVALENT_MUTANTS.md", HERE / "registry.json"

# The tests that hold each module's laws.
LAWS = {
    "schedule.py": (
        "paper/test_schedule.py",
        "paper/test_at.py",
        "paper/test_numbers.py",
    ),
    "forward.py": (
        "paper/test_eq_02_is_eq_04.py",
        "paper/test_eq_07_posterior.py",
        "paper/test_every_equation.py",
    ),
    "sampler.py": (
        "paper/test_eq_01.py",
        "paper/test_numbers.py",
        "paper/test_eq_11.py",
        "paper/test_eq_15.py",
        "paper/test_algorithm_2.py",
        "paper/test_section_4_4_interpolation.py",
        "paper/test_every_equation.py",
        "paper/test_second_device.py",
    ),
    "train.py": (
        "paper/test_eq_14_loss.py",
        "paper/test_numbers.py",
        "paper/test_eq_12_is_eq_10_is_eq_8.py",
        "paper/test_algorithm_1.py",
        "paper/test_ema.py",
        "paper/test_second_device.py",
    ),
    "bound.py": (
        "paper/test_eq_05_bound.py",
        "paper/test_eq_05_is_eq_03_is_eq_16.py",
        "paper/test_eq_12_is_eq_10_is_eq_8.py",
        "paper/test_eq_13_decoder.py",
        "paper/test_section_4_3_rate_distortion.py",
        "paper/test_second_device.py",
    ),
    "coding.py": ("paper/test_algorithm_3_and_4.py", "paper/test_numbers.py"),
    "data.py": (
        "paper/test_drawer.py",
        "paper/test_numbers.py",
        "paper/test_section_3_3_scale.py",
        "paper/test_second_device.py",
    ),
    "mlp.py": (
        "paper/test_mlp.py",
        "paper/test_numbers.py",
        "paper/test_time_embedding.py",
        "paper/test_second_device.py",
        "reference/test_autograd.py",
    ),
    "layers.py": ("paper/test_layers.py", "paper/test_unet.py"),
    "unet.py": (
        "paper/test_unet.py",
        "paper/test_numbers.py",
        "paper/test_layers.py",
        "reference/test_autograd.py",
    ),
    "beyond/oracle.py": ("beyond/test_oracle.py", "beyond/test_second_device.py"),
    "beyond/levels.py": (
        "beyond/test_levels.py",
        "beyond/test_oracle.py::test_the_quadrature_has_converged",
        "beyond/test_second_device.py",
    ),
    "beyond/gradients.py": (
        "beyond/test_gradients.py",
        "beyond/test_second_device.py",
        "paper/test_second_device.py::test_it_costs_what_the_table_says[gradient_images]",
    ),
    "beyond/estimate.py": (
        "beyond/test_estimate.py",
        "beyond/test_guidance.py::test_the_bound_knows_the_classes_of_its_pictures",
        "beyond/test_second_device.py",
    ),
    **{
        f"beyond/{name}.py": (f"beyond/test_{name}.py",)
        for name in ("random_coding", "arithmetic")
    },
    **{
        f"beyond/{name}.py": (
            f"beyond/test_{name}.py",
            "beyond/test_second_device.py",
        )
        for name in (
            "ddim",
            "improved",
            "guidance",
            "ablations",
            "distance",
            "convnext",
        )
    },
    **{
        f"workshop/{name}.py": (f"workshop/test_{name}.py",)
        for name in (
            "content",
            "draws",
            "files",
            "machine",
            "pictures",
            "processes",
            "readers",
            "run",
            "settings",
            "speed",
            "state",
        )
    },
    "workshop/checkpoint.py": ("workshop/test_checkpoint_file.py",),
}
EXAMPLES = 15  # hypothesis' examples for each law
# A test that takes this much more processor time than on the code as it is, in times
# and in seconds, is a loop without end; so is one that takes this much more memory.
TIMES, SECONDS, BYTES = 10, 5, 4 * 2**30


class Visitor(MutationVisitor):
    """mutmut's, inside decorated functions too, which its own runner cannot replace."""

    def _skip_node_and_children(self, node: libcst.CSTNode) -> bool:
        if isinstance(node, libcst.FunctionDef) and node.decorators:
            return False
        return super()._skip_node_and_children(node)


def mutants(module: str) -> list[str]:
    """The changed texts of a module: numbers, names, operators, arguments, strings…"""
    text = (PACKAGE / module).read_text()
    visitor = Visitor(mutation_operators, IgnoredCode(set(), set(), set()))
    tree = libcst.MetadataWrapper(libcst.parse_module(text)).visit(visitor)
    made = [
        deep_replace(tree, m.original_node, m.mutated_node).code
        for m in visitor.mutations
    ]
    return [m for m in dict.fromkeys(made) if m != text]


def where(text: str, changed: str) -> str:
    """The definition that the first line that differs belongs to: `EMA.update`."""
    lines = zip(text.splitlines(), changed.splitlines(), strict=False)
    first = next(i for i, (old, new) in enumerate(lines, 1) if old != new)
    name, body = [], ast.parse(text).body
    while body:
        node = next((n for n in body if n.lineno <= first <= n.end_lineno), None)
        body = []
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            name.append(node.name)
            body = node.body
    return ".".join(name) or "module"


def functions(text: str) -> set[str]:
    """The functions and methods of a module by the names that `where` gives them."""
    found, body = set[str](), [("", node) for node in ast.parse(text).body]
    while body:
        prefix, node = body.pop()
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            body += [(f"{prefix}{node.name}.", inner) for inner in node.body]
        if isinstance(node, ast.FunctionDef):
            found.add(prefix + node.name)
    return found


def noted(text: str) -> str:
    """The module's text; each function writes its name into the set `__called__`."""
    tree = ast.parse(text)
    todo = [("", node) for node in tree.body]
    while todo:
        prefix, node = todo.pop()
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            todo += [(f"{prefix}{node.name}.", inner) for inner in node.body]
        if isinstance(node, ast.FunctionDef):
            note = ast.parse(f"__called__.add({prefix + node.name!r})").body
            described = ast.get_docstring(node) is not None
            node.body[described:described] = note
    return ast.unparse(ast.fix_missing_locations(tree))


def row(module: str, text: str, changed: str) -> str:
    """How a row of the list begins: where, and the lines that differ, `old` → `new`."""
    old, new = [], []
    for line in difflib.ndiff(text.splitlines(), changed.splitlines()):
        if line.startswith("- "):
            old.append(line[2:].strip())
        elif line.startswith("+ "):
            new.append(line[2:].strip())
    change = f"`{' '.join(old)}` → `{' '.join(new)}`".replace("|", "\\|")
    return f"| `{module}` `{where(text, changed)}` | {change} | "


def become(module: ModuleType, text: str) -> None:
    """Gives an imported module's functions the code that `text` has for them.

    They stay the objects that everybody has imported, in lists and closures too. Other
    names of the module, constants say, are set to their new values.
    """
    names = vars(module)
    new = dict(names)
    exec(compile(text, module.__file__, "exec"), new)
    for name, value in new.items():
        old, ours = names.get(name), getattr(value, "__module__", "") == module.__name__
        if isinstance(value, type) and ours:
            for attribute, method in vars(value).items():
                take(old, attribute, method, names)
        elif ours and (
            isinstance(value, FunctionType) or hasattr(value, "__wrapped__")
        ):
            take_code(old, value, names)
        elif not isinstance(value, FunctionType | type) and not name.startswith("__"):
            setattr(module, name, value)


def take(cls: type, name: str, value: object, names: dict[str, Any]) -> None:
    """A class's attribute of this name does what `value` does, or is it."""
    old = vars(cls)[name]
    if isinstance(value, property):
        take_code(old.fget, value.fget, names)
    elif isinstance(value, FunctionType) or hasattr(value, "__wrapped__"):
        take_code(old, value, names)
    elif name in ("__annotations__", "__dataclass_fields__"):
        old.update(value)
    elif not name.startswith("_") and not hasattr(value, "__get__"):
        setattr(cls, name, value)


def take_code(old: object, new: object, names: dict[str, Any]) -> None:
    """old, if it is a function, does what new does, inside the same decorators.

    Functions and classes of the module that are defaults stay the ones in `names`.
    """
    while hasattr(old, "__wrapped__") and hasattr(new, "__wrapped__"):
        if hasattr(old, "cache_clear"):  # what it remembers is of the old code
            old.cache_clear()
        old, new = old.__wrapped__, new.__wrapped__
    if not isinstance(new, FunctionType):
        return
    if hasattr(old, "__wrapped__"):
        # counted with those killed "on import", which the score tells
        raise TypeError("new has lost a decorator, and old cannot lose it in place")

    def kept(value: object) -> object:
        ours = isinstance(value, FunctionType | type)
        ours = ours and value.__module__ == names["__name__"]
        return names[value.__name__] if ours else value

    old.__code__ = new.__code__
    for variable, mine, other in zip(
        new.__code__.co_freevars,
        old.__closure__ or (),
        new.__closure__ or (),
        strict=True,
    ):
        if variable != "__class__":  # a dataclass keeps the defaults of its fields here
            mine.cell_contents = other.cell_contents
    old.__defaults__ = new.__defaults__ and tuple(map(kept, new.__defaults__))
    keywords = new.__kwdefaults__
    old.__kwdefaults__ = keywords and {k: kept(v) for k, v in keywords.items()}


def passes(item: pytest.Item) -> bool:
    """Whether a test passes; its report goes nowhere."""
    reports = runtestprotocol(item, log=False, nextitem=None)
    return not any(report.failed for report in reports)


class Mutation:
    """A pytest plugin: instead of the tests once, the tests once for each mutant."""

    def __init__(self, module: str, workers: int, until: float) -> None:
        self.module, self.workers, self.until = module, workers, until
        self.text = (PACKAGE / module).read_text()
        self.functions = functions(self.text)
        self.changed = mutants(module)
        self.survived: list[str] = []
        self.done = self.endless = self.broken = 0
        self.looked = False  # whether the tests passed on the code as it is
        self.killer = mmap.mmap(-1, 2 * len(self.changed))  # the test that failed
        self.known = [
            line
            for line in EQUIVALENT.read_text().splitlines()
            if line.startswith(f"| `{module}` ")
        ]

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Of the table of what `beyond/` costs elsewhere, the rows of the module."""
        table, mine = "beyond/test_second_device", f"[{Path(self.module).stem}"
        items[:] = [i for i in items if table not in i.nodeid or mine in i.nodeid]

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        cost = []  # of each test on the code as it is
        for item in session.items:
            start = time.process_time()
            assert passes(item), f"{item.nodeid} fails on the code as it is"
            cost.append(time.process_time() - start)
        assert cost, "there are no tests"
        gc.freeze()  # no fork need look at what is there by now
        called = self.calls(session.items)
        self.looked = True
        order, running = sorted(range(len(cost)), key=cost.__getitem__), {}

        def fork(i: int, text: str, tests: list[int]) -> int:
            pid = os.fork()
            if pid == 0:
                self.child(i, text, [(k, session.items[k], cost[k]) for k in tests])
            return pid

        waiting = list(enumerate(self.changed))[::-1]
        while running or (waiting and time.monotonic() < self.until):
            if waiting and len(running) < self.workers:
                i, changed = waiting.pop()
                name = where(self.text, changed)
                tests = [k for k in order if self.sees(called[k], name)]
                running[fork(i, changed, tests)] = i
            else:
                pid, status = os.wait()
                done = running.pop(pid)
                self.note(self.changed[done], status)
                k = int.from_bytes(self.killer[2 * done : 2 * done + 2])
                order.remove(k)
                order.insert(0, k)  # what killed one is likely to kill the next
        return True

    def sees(self, called: set[str], name: str) -> bool:
        """Whether a test can: what is in no function is run when it is imported."""
        return name not in self.functions or name in called

    def calls(self, tests: list[pytest.Item]) -> list[set[str]]:
        """The module's functions that each test calls: it cannot see what is wrong in
        others. Also a control: to put code in place is no change in itself."""
        end, here = os.pipe()
        pid = os.fork()
        if pid == 0:
            module, called = self.import_it(), set[str]()
            vars(module)["__called__"] = called
            become(module, noted(self.text))
            with os.fdopen(here, "w") as out:
                for test in tests:
                    called.clear()
                    passed = passes(test)
                    print(json.dumps([passed, sorted(called)]), file=out)
            os._exit(0)
        os.close(here)
        with os.fdopen(end) as lines:
            found = [json.loads(line) for line in lines]
        os.waitpid(pid, 0)
        for test, (passed, _) in zip(tests, found, strict=True):
            assert passed, f"{test.nodeid} fails on the same code"
        return [set(names) for _, names in found]

    def import_it(self) -> ModuleType:
        name = self.module.removesuffix(".py").replace("/", ".")
        return importlib.import_module(f"tinyddpm.{name}")

    def note(self, changed: str, status: int) -> None:
        self.done += 1
        code = os.waitstatus_to_exitcode(status)
        self.endless += code == -signal.SIGPROF
        self.broken += code == 2
        if code == 0:
            begin = row(self.module, self.text, changed)
            self.survived.append(begin)
            if not any(line.startswith(begin) for line in self.known):
                print(begin, flush=True)
        if sys.stderr.isatty():
            progress = f"{self.module}: {self.done} of {len(self.changed)} tried"
            print(f"\r{progress}, {len(self.survived)} left", end="", file=sys.stderr)

    def child(
        self, i: int, text: str, tests: list[tuple[int, pytest.Item, float]]
    ) -> NoReturn:
        """Runs the tests on mutant i, this text; exits 1 where one fails, else 0.

        2 if it cannot even be imported.
        """
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * os.sysconf("SC_PAGE_SIZE") + BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        try:
            become(self.import_it(), text)
        except BaseException:
            os._exit(2)
        try:
            for k, test, cost in tests:
                self.killer[2 * i : 2 * i + 2] = k.to_bytes(2)
                signal.setitimer(signal.ITIMER_PROF, TIMES * cost + SECONDS)
                if not passes(test):
                    os._exit(1)
        except BaseException:  # what pytest lets through: KeyboardInterrupt, say
            os._exit(1)
        os._exit(0)


def score(module: str, workers: int, until: float) -> bool:
    """Prints a module's survivors, stale rows and score; whether there are neither.

    What was not tried by `until` is no survivor; the score is then not written down.
    """
    start, mutation = time.monotonic(), Mutation(module, workers, until)
    options = ["-q", "-s", "-p", "no:cacheprovider", "-p", "_hypothesis_pytestplugin"]
    options += ["-m", "not slow", "--tb=no", "--assert=plain"]  # nobody reads why
    files = [str(TESTS / test) for test in LAWS[module]]
    pytest.main([*options, *files], plugins=[mutation])
    if sys.stderr.isatty():
        print(file=sys.stderr)
    n, survived = len(mutation.changed), mutation.survived
    assert mutation.looked, f"the tests of {module} were not run"
    equivalent = sum(any(k.startswith(s) for k in mutation.known) for s in survived)
    if mutation.done < n:
        left = f"{n - mutation.done} of {n} mutants were not tried for want of time"
        print(f"{module}: {left}; {len(survived) - equivalent} survived", flush=True)
        return equivalent == len(survived)
    stale = [k for k in mutation.known if not any(k.startswith(s) for s in survived)]
    for line in stale:
        print(f"no mutant that survives is this row's: {line}")
    print(
        f"{module}: {n} mutants, {n - len(survived)} killed "
        f"({mutation.endless} by the time limit, {mutation.broken} on import), "
        f"{equivalent} equivalent, {len(survived) - equivalent} survived; "
        f"{len(stale)} stale rows; {time.monotonic() - start:.0f} s",
        flush=True,
    )
    register(module, n, n - len(survived), equivalent)
    return equivalent == len(survived) and not stale


def register(module: str, mutants: int, killed: int, equivalent: int) -> None:
    """Writes a module's score down, with today's date; the rows are in LAWS' order."""
    kept = registered()
    kept[module] = {
        "mutants": mutants,
        "killed": killed,
        "equivalent": equivalent,
        "date": datetime.date.today().isoformat(),
        "text": digest(module),
    }
    rows = [f"  {json.dumps(m)}: {json.dumps(kept[m])}" for m in LAWS if m in kept]
    REGISTRY.write_text("{\n" + ",\n".join(rows) + "\n}\n")


def registered() -> dict[str, dict[str, Any]]:
    return json.loads(REGISTRY.read_text()) if REGISTRY.exists() else {}


def digest(module: str) -> str:
    """The SHA-256 of a module's text, its first 16 digits."""
    return hashlib.sha256((PACKAGE / module).read_bytes()).hexdigest()[:16]


def table() -> str:
    """The registry as a table in Markdown, a row for each module."""
    rows = [
        "| module | mutants | killed | equivalent | left |",
        "|---|--:|--:|--:|--:|",
    ]
    for module, found in registered().items():
        n, killed, equivalent = (found[k] for k in ("mutants", "killed", "equivalent"))
        left = n - killed - equivalent
        rows.append(f"| `{module}` | {n} | {killed} | {equivalent} | {left} |")
    return "\n".join(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modules", nargs="*", metavar="module", help="of tinyddpm/")
    parser.add_argument("--changed", action="store_true", help="since they were tried")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="at most")
    parser.add_argument("--workers", type=int, default=1, help="mutants at a time")
    parser.add_argument("--table", action="store_true", help="print the scores so far")
    given = parser.parse_args()
    if unknown := set(given.modules) - set(LAWS):
        parser.error(f"no such module: {', '.join(sorted(unknown))}")
    if given.table:
        print(table())
        return 0
    until, kept = time.monotonic() + 60 * given.minutes, registered()
    modules = given.modules or list(LAWS)
    if given.changed:
        modules = [m for m in kept if kept[m].get("text") != digest(m)]
    hypothesis.settings.register_profile(
        "mutants",
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        max_examples=EXAMPLES,
        phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
        report_multiple_bugs=False,  # one that fails is enough
    )
    os.environ["HYPOTHESIS_PROFILE"] = "mutants"
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    good = []
    for module in modules:
        if time.monotonic() < until:
            good.append(score(module, given.workers, until))
        else:
            print(f"{module}: not tried for want of time")
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
