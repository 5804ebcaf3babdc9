"""Mutation: every small change of our code that a tool can make, tried on the tests.

What lives here: the mutants that mutmut's and cosmic-ray's operators make of a module,
run by `patched.py` against that module's fast tests, and the score. What does not: why
a survivor is no fault of the tests (`EQUIVALENT_MUTANTS.md`, which this reads).

    pip install mutmut==3.8.1 cosmic-ray==8.7.0
    python -m tests.mutants mutmut schedule.py forward.py

Their own runners are not used: mutmut's swaps functions inside one process, which a
frozen schedule or a closure outlives, and cosmic-ray's starts a new Python, and so
imports torch, for each of a thousand mutants.
"""

import ast
import difflib
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EQUIVALENT = Path(__file__).parent / "EQUIVALENT_MUTANTS.md"

# The tests that hold each module's laws, the quickest to fail first.
TESTS = {
    "schedule.py": ("test_schedule.py", "test_forward.py"),
    "forward.py": ("test_forward.py",),
    "sampler.py": ("test_sampler.py",),
    "train.py": ("test_loss.py",),
}
# Of these modules, only these parts: the rest is the loop and its files.
ONLY = {"train.py": ("squared_error", "L_simple", "weight", "EMA", "learning_rate")}
EXAMPLES = 15  # hypothesis' examples for each law


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


def main(tool: str, modules: list[str]) -> int:
    from .patched import Trial, run

    known = EQUIVALENT.read_text() if EQUIVALENT.exists() else ""
    unexplained = 0
    for module in modules:
        path = ROOT / "tinyddpm" / module
        text = path.read_text()
        make = {"mutmut": mutmut, "cosmic-ray": cosmic_ray}[tool]
        changed = [m for m in dict.fromkeys(make(text)) if m != text]
        if module in ONLY:
            changed = [m for m in changed if inside(text, m, ONLY[module])]
        tests = tuple(f"tests/{test}" for test in TESTS[module])
        trials = [Trial(f"tinyddpm/{module}", m, tests, EXAMPLES) for m in changed]
        counts = {"killed": 0, "equivalent": 0, "survived": 0}
        for i, outcome in run(trials):
            what = difference(text, changed[i])
            if outcome.verdict != "passes":
                verdict = "killed"
            else:
                verdict = "equivalent" if what in known else "survived"
            counts[verdict] += 1
            if verdict == "survived":
                print(f"{module}: {what}", flush=True)
        print(f"{tool} {module}: {len(changed)} mutants, {counts}", flush=True)
        unexplained += counts["survived"]
    return int(unexplained > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
