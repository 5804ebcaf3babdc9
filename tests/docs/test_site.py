"""The pages of docs/ show what is there: functions, laws, mistakes, figures, links."""

import ast
import re
import sys

import pytest

from exercises.table import EXERCISES

from ..mutation.mistakes import MISTAKES
from . import formulas

ROOT = formulas.ROOT
DOCS = ROOT / "docs"
TEXT = formulas.PAGE.read_text(encoding="utf-8")
PAGES = sorted(DOCS.glob("*.md"))

# Functions of README's table whose section has no figure, and why
NO_FIGURE = {
    "send": "its figure is that of the bound: each step costs its term of eq. 5",
    "receive": "what arrives is the sender's picture",
    "to_float": "a straight line",
    "EMA": "the weights of a network are not to be seen",
    "time_embedding": "the formula is in the code alone",
    "UNet": "a network, not an equation",
    "p_mean": "figure of eq. 7, whose mean it is",
    "fit": "figures of eq. 14, which it minimises",
    "algorithm_1": "the same",
    "p_step": "figures of eq. 8, where its variance is chosen",
    "bits_per_dim": "figure of eq. 5, whose terms it adds",
}


def sections() -> list[str]:
    return re.split(r"\n(?=#{2,3} )", TEXT)


@pytest.mark.parametrize("name", list(formulas.documented()))
def test_each_row_of_the_table_has_a_section_and_a_figure_or_a_reason(name):
    """Eq. 1 to 15 and the algorithms: README's table and the page are one list."""
    shown = rf"\{{pyobject\}} [\w/]+:{name}(?:\.\w+)?\n"
    with_it = [section for section in sections() if re.search(shown, section)]
    assert with_it, f"no section of paper.md shows {name}"
    drawn = any("{drawn}" in section for section in with_it)
    assert drawn != (name in NO_FIGURE), f"{name} needs a figure or a reason, not both"


def test_every_equation_and_algorithm_has_a_place():
    """Eq. 1 to 16, Algorithms 1 to 4, figures 6 to 8: each is an anchor of the page."""
    anchors = set(re.findall(r"^\(([\w-]+)\)=$", TEXT, re.M))
    wanted = {f"eq-{i}" for i in range(1, 17)} | {f"alg-{i}" for i in range(1, 5)}
    assert wanted | {"figure-6", "figure-7", "figure-8", "table-2"} <= anchors


@pytest.mark.parametrize(("module", "name"), sorted(set(formulas.pyobjects())))
def test_what_is_shown_exists(module, name):
    """literalinclude's :pyobject: finds each function in its file."""
    assert name in formulas.defined(ROOT / f"tinyddpm/{module}.py")


def test_every_law_is_a_test():
    """A law names one test, by its file where two have the same name."""
    found: dict[str, list[str]] = {}
    for path in (ROOT / "tests").rglob("test_*.py"):
        for name in re.findall(r"^def (test_\w+)", path.read_text("utf-8"), re.M):
            found.setdefault(name, []).append(path.as_posix())
    laws = re.findall(r"\{law\} (?:(\S+)::)?(\w+)", TEXT)
    assert len(laws) > 20
    for file, name in laws:
        assert len([path for path in found.get(name, []) if file in path]) == 1, name


def test_every_mistake_is_published():
    """A mistake on the page is one of mistakes.py, and stands there once."""
    lists = re.findall(r"\{mistakes\} (.*)", TEXT)
    names = [name.strip() for line in lists for name in line.split(";")]
    assert len(names) == len(set(names))
    assert set(names) <= {m.name for m in MISTAKES}


def test_every_figure_is_drawn():
    """A figure on a page is one that figures.py makes, and none is made for nothing."""
    pytest.importorskip("matplotlib")
    sys.path.insert(0, str(DOCS))
    try:
        from figures import FIGURES
    finally:
        sys.path.remove(str(DOCS))
    used = {x for line in re.findall(r"\{drawn\} (.*)", TEXT) for x in line.split()}
    assert used == set(FIGURES)


def test_the_graph_has_every_module_and_import():
    """The picture of the rooms: a box for each module, a line for each import."""
    sys.path.insert(0, str(DOCS))
    try:
        import import_graph
    finally:
        sys.path.remove(str(DOCS))
    graph = import_graph.edges()
    files = [p for p in (ROOT / "tinyddpm").rglob("*.py") if p.stem[:2] != "__"]
    assert len(graph) == len(files)
    assert {"schedule"} <= graph["forward"] <= {"schedule"}
    drawn = import_graph.svg()
    assert drawn.count("<rect") == len(graph)
    assert drawn.count("<path") == sum(map(len, graph.values()))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_between_pages_lead_somewhere(page):
    """Each relative link of a page is a file, or a module's page that the build makes;
    what follows # on the paper's page is an anchor there."""
    anchors = set(re.findall(r"^\(([\w-]+)\)=$", TEXT, re.M))
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        if path.startswith("source/"):
            module = path.removeprefix("source/").removesuffix(".md")
            assert (ROOT / f"tinyddpm/{module}.py").exists(), target
        elif path:
            assert (page.parent / path).exists(), target
        if anchor and path in ("", "paper.md"):
            assert anchor in anchors, target


def test_pages_hold_no_code_of_their_own():
    """The directives alone show code: a copy in the text would drift from it."""
    assert "```python" not in TEXT
    ast.parse((DOCS / "conf.py").read_text(encoding="utf-8"))


def test_every_page_is_within_reach():
    """Each page of docs/ stands in the start page's table of contents."""
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    listed = index.partition("{toctree}")[2].split()
    for page in PAGES:
        assert page.stem in listed or page.stem == "index", page.name


def test_no_page_names_a_folder_of_this_machine():
    """Paths of the machine that wrote a page mean nothing to its readers."""
    for page in PAGES:
        found = re.search(
            r"(?<![\w.])/(?:tmp|root|work|home)/", page.read_text("utf-8")
        )
        assert not found, f"{page.name}: {found}"


def test_the_command_of_the_readme_is_that_of_conf():
    """conf.py says how to build the site, in the words of setup.cfg's extra."""
    first = (DOCS / "conf.py").read_text(encoding="utf-8").splitlines()[0]
    assert "sphinx-build -W docs docs/_site" in first
    extras = (ROOT / "setup.cfg").read_text(encoding="utf-8")
    assert "\ndocs =\n" in extras


def test_each_exercise_stands_at_its_equation():
    """The reading page names the check of every exercise once."""
    page = (DOCS / "paper.md").read_text(encoding="utf-8")
    named = re.findall(r"`python -m exercises check (\w+)`", page)
    assert sorted(named) == sorted(exercise.name for exercise in EXERCISES)


def test_the_page_on_the_five_texts_names_laws_that_exist():
    """Each law named there is a test of that file, the one the mistake dies of."""
    page = (DOCS / "five-texts.md").read_text(encoding="utf-8")
    for name, file in re.findall(r"\[(test_\w+)\]\(\.\./(tests/[\w/]+\.py)\)", page):
        assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8")
    named = re.findall(r"([MP]\d+b?): \[(test_\w+)\]\(\.\./tests/([\w/]+\.py)\)", page)
    dies_of = {m.name.split(",")[0]: m.test for m in MISTAKES}
    for mistake, name, file in named:  # an entry of prose names no test of its own
        assert dies_of[mistake] in ("", f"{file}::{name}")
    assert len(named) > 40
