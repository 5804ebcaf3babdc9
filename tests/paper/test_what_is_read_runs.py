"""What the README's table shows is what trains, samples and computes the bound."""

import ast
from collections import defaultdict
from pathlib import Path

from ..helpers import ROOT, table_rows

# What the paper states and then replaces; it is here to be read, and for the laws.
REPLACED = {
    "q_step": "eq. 2: training takes x_t from x_0 at once, by eq. 4",
    "weight": "eq. 12: training drops it, which is eq. 14",
    "quadratic_schedule": "App. B: tried, and the linear schedule taken",
    "constant_schedule": "App. B: tried, and the linear schedule taken",
}


def definitions(path: Path) -> dict[str, set[str]]:
    """name -> what it reads of the names that its module defines or imports, for each
    function and class, and for "" the module itself."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = (ast.FunctionDef, ast.ClassDef)
    own = {node.name: node for node in tree.body if isinstance(node, kinds)}
    known = set(own)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            known |= {alias.asname or alias.name for alias in node.names}

    def reads(node: ast.AST) -> set[str]:
        return known & {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}

    return {name: reads(node) for name, node in own.items()} | {"": reads(tree)}


def reached() -> set[str]:
    """All that scripts and command line reach, name by name, through the package."""
    reads = defaultdict(set)
    for path in (ROOT / "tinyddpm").rglob("*.py"):
        for name, names in definitions(path).items():
            reads[name] |= names
    found, waiting = set[str](), set[str]()
    for script in [*ROOT.glob("train_*.py"), ROOT / "tinyddpm" / "__main__.py"]:
        waiting |= definitions(script)[""]
    while waiting:
        name = waiting.pop()
        if name in reads and name not in found:
            found.add(name)
            waiting |= reads[name]
    return found


def test_what_is_read_is_what_runs():
    """Each function of the table is reached by what trains, samples or computes the
    bound, or is an algorithm of the paper itself: no private twin does its work.

    But for those that the paper replaces, which are named, and no others.
    """
    found = reached()
    shown = {row[1].strip("`"): row[0] for row in table_rows()}
    assert {"L_simple", "p_step", "q_sample", "UNet"} <= shown.keys() & found
    unused = {
        name
        for name, label in shown.items()
        if name not in found and not label.startswith("Algorithm")
    }
    assert unused <= set(REPLACED), unused - set(REPLACED)
    assert set(REPLACED) - unused == set(), "these run after all"
