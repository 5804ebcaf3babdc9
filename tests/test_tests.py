"""What holds of the tests themselves."""

import ast
from pathlib import Path

import pytest

HERE = Path(__file__).parent
MODULES = sorted(HERE.rglob("test_*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_each_law_is_stated_and_no_test_module_imports_another(path):
    """Each test says its law; what tests share is in a module without tests."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            assert ast.get_docstring(node), f"{node.name} states no law"
        if isinstance(node, ast.ImportFrom):
            names = [*(node.module or "").split("."), *(a.name for a in node.names)]
            wrong = {path.stem for path in MODULES} & set(names)
            assert not wrong, f"imports from {wrong}"
