"""The README says what is so: its code runs and prints what is printed there, its
table of equations agrees with the docstrings, its links lead somewhere."""

import ast
import contextlib
import importlib
import inspect
import io
import re
from pathlib import Path

import pytest

import tinyddpm

from .helpers import README, ROOT, table_rows

PAPER = r"(Eq\. [\d, ]*\d|Algorithms? [\d, ]*\d|Section [\d.]*\d|App\. \w)"
LABEL = re.compile(PAPER + r"(, [^:\n]*)?:")  # "Section 4.3, figure 5:" is 4.3's


def functions(path: Path) -> dict[str, ast.AST]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = (ast.FunctionDef, ast.ClassDef)
    return {node.name: node for node in ast.walk(tree) if isinstance(node, kinds)}


def link(cell: str) -> tuple[str, str]:
    """[text](target) -> (text, target), the text without its backquotes."""
    found = re.fullmatch(r"\[`?([^\]`]+)`?\]\(([^)]+)\)", cell)
    assert found, f"{cell!r} is not one link"
    return found[1], found[2]


def test_the_code_runs_and_prints_what_is_said():
    """Each python block runs, in order, and prints the text block that follows it."""
    blocks = re.findall(r"```python\n(.*?)```\n+```text\n(.*?)```", README, re.S)
    assert len(blocks) == len(re.findall(r"```python\n", README)) > 0
    names: dict[str, object] = {}
    for code, expected in blocks:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, "README.md", "exec"), names)
        assert printed.getvalue() == expected


@pytest.mark.parametrize("row", table_rows(), ids=lambda row: row[1].strip("`"))
def test_the_table_agrees_with_the_docstrings(row):
    """A row's function is in its file, with that equation as its docstring's first
    words, and its test exists and names the equation too."""
    label, function, file, test = row
    name, path = function.strip("`"), Path(link(file)[1])
    module = ".".join(path.with_suffix("").parts)  # tinyddpm.beyond.oracle, say
    held = getattr(importlib.import_module(module), name)
    assert held.__module__ == module
    first = (inspect.getdoc(held) or "").splitlines()[0]
    assert first.startswith(label), f"{name}'s docstring begins {first!r}"
    test_name, test_path = link(test)
    node = functions(ROOT / test_path)[test_name]
    said = ast.get_docstring(node) or ""
    numbers = re.findall(r"\d+(?:\.\d+)?|[AB]$", label)
    assert any(re.search(rf"\b{re.escape(n)}\b", said) for n in numbers), (
        f"{test_name} does not name {label}: {said!r}"
    )


def test_every_equation_of_the_package_is_in_the_table():
    """Every function whose docstring begins with an equation, algorithm, section or
    appendix of the paper, and a colon, has a row."""
    listed = {(row[0], row[1].strip("`")) for row in table_rows()}
    found = set()
    for path in sorted((ROOT / "tinyddpm").glob("*.py")):
        for name, node in functions(path).items():
            label = LABEL.match(ast.get_docstring(node) or "")
            if label and isinstance(node, ast.FunctionDef) and name[0] != "_":
                found.add((label[1], name))
    assert found - listed == set()


def test_links_lead_somewhere():
    """Every relative link and picture of the README and of docs/ exists."""
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
            path = page.parent / target
            if target.startswith("source/"):  # a page that the site makes of a module
                module = target.removeprefix("source/").removesuffix(".md")
                path = ROOT / "tinyddpm" / f"{module}.py"
            if not target.startswith(("http://", "https://")):
                assert path.exists(), f"{page.name}: {target}"


def test_the_docs_call_the_package_by_names_it_has():
    """Every name of `tinyddpm.__all__` is there, once."""
    assert len(tinyddpm.__all__) == len(set(tinyddpm.__all__))
    for name in tinyddpm.__all__:
        assert hasattr(tinyddpm, name)
