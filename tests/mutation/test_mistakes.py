"""Every known mistake of published DDPM code dies of a named law when put into ours.

That the table in `mistakes.py` fits the code is checked quickly; the run of all patches
is slow.
"""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from .mistakes import MISTAKES, main, patched_text

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CODE = [m for m in MISTAKES if m.file]


def test_every_mistake_has_its_own_name():
    """The table is read by name: `python -m tests.mutation.mistakes M2`."""
    names = [m.name for m in MISTAKES]
    assert len(set(names)) == len(names)


def test_no_mistake_is_left_out():
    """M1..M47 stand in texts people learn from, P1..P11 in code they copy: all 58."""
    listed = set(re.findall(r"[MP]\d+", " ".join(m.name for m in MISTAKES)))
    known = {f"M{i}" for i in range(1, 48)} | {f"P{i}" for i in range(1, 12)}
    assert listed == known


@pytest.mark.parametrize("mistake", CODE, ids=[m.name for m in CODE])
def test_the_patch_still_fits(mistake):
    """`old` occurs exactly once, the patched file is Python, and it is another one."""
    text = (ROOT / mistake.path).read_text()
    patched = patched_text(mistake, text)
    assert ast.dump(ast.parse(patched)) != ast.dump(ast.parse(text))


@pytest.mark.parametrize("mistake", [m for m in MISTAKES if m.test], ids=str)
def test_the_named_test_exists(mistake):
    """Each mistake names one test function that is there to fail of it."""
    file, name = mistake.test.split("::")
    tree = ast.parse((ROOT / "tests" / file).read_text())
    assert name in {f.name for f in tree.body if isinstance(f, ast.FunctionDef)}


def test_a_name_of_no_entry_is_an_error(capsys):
    """`python -m tests.mutation.mistakes M99` must not end as if all were well."""
    assert main(["M3", "M99"]) == 2
    assert "M99" in capsys.readouterr().err


def test_a_patch_that_no_longer_applies_is_an_error():
    """A mistake that was not put into the code must not count as caught."""
    for text in ("", CODE[0].old * 2):
        with pytest.raises(ValueError, match="must occur once"):
            patched_text(CODE[0], text)


def test_the_registry_counts_every_mutant_and_lists_every_equivalent():
    """Each mutant that was tried was killed, or has a row that says why it may live.

    The paper's modules have no other; elsewhere at least 98 of 100 are accounted for.
    """
    table = (HERE / "EQUIVALENT_MUTANTS.md").read_text(encoding="utf-8")
    scores = json.loads((HERE / "registry.json").read_text())
    assert scores
    for module, score in scores.items():
        assert (ROOT / "tinyddpm" / module).is_file()
        rows = table.count(f"\n| `{module}` ")
        assert score["equivalent"] == rows, module
        left = score["mutants"] - score["killed"] - score["equivalent"]
        assert 0 <= left <= (0.02 * score["mutants"] if "/" in module else 0), module


@pytest.mark.slow
def test_every_mistake_is_caught_by_its_law():
    """With the patch the named test fails by its law, without it the test passes."""
    # A process of its own: the runner forks one that has not imported tinyddpm.
    done = subprocess.run(
        [sys.executable, "-m", "tests.mutation.mistakes"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
