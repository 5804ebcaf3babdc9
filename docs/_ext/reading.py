"""What a page of this site is made of: equations, code, laws, mistakes and figures.

Each directive takes what it shows from the code, so that nothing on a page can differ
from it: a name that is not there stops the build.
"""

import ast
import html
import os
import re
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import figures
import import_graph
from docutils import nodes
from docutils.parsers.rst import directives
from PIL import Image
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.directives.code import LiteralInclude
from sphinx.transforms import SphinxTransform
from sphinx.util.docutils import SphinxDirective

from tests.docs.formulas import NOT_EXECUTED
from tests.mutation.mistakes import MISTAKES

ROOT = Path(__file__).parent.parent.parent
WHO = {
    "HO": "the authors' code",
    "ID": "improved-diffusion",
    "LU": "lucidrains",
    "HF": "diffusers",
    "SM": "smalldiffusion",
    "TI": "tiny-diffusion",
    "LA": "labml",
    "MI": "minDiffusion",
    "W8": "w86763777",
}


def modules() -> dict[str, Path]:
    """schedule, ..., beyond/oracle, ... -> the file of each module that has a page.

    Those of the paper, and of the others the ones that its page speaks of.
    """
    package = ROOT / "tinyddpm"
    paper = {path.stem: path for path in sorted(package.glob("*.py"))}
    beyond = {f"beyond/{m}": package / f"beyond/{m}.py" for m in import_graph.SHOWN}
    return {m: path for m, path in (paper | beyond).items() if m[:2] != "__"}


@cache
def definitions(path: Path) -> dict[str, ast.AST]:
    """The functions, classes and methods of a file by their (dotted) names."""
    found: dict[str, ast.AST] = {}

    def walk(body: list[ast.stmt], before: str) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found[before + node.name] = node
                walk(node.body, f"{before}{node.name}.")

    walk(ast.parse(path.read_text(encoding="utf-8")).body, "")
    return found


@cache
def tests() -> dict[str, list[Path]]:
    """Each test's name -> the files that define it."""
    found: dict[str, list[Path]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for name in definitions(path):
            if name.startswith("test_"):
                found.setdefault(name, []).append(path)
    return found


def anchor(name: str) -> str:
    """A definition's anchor on its module's page."""
    return name.replace("_", "-").replace(".", "-").strip("-").lower()


class Equation(SphinxDirective):
    """A numbered formula in LaTeX: ```{equation} 4"""

    has_content = True
    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        latex = "\n".join(self.content)
        node = nodes.math_block(latex, latex, number=self.arguments[0], nowrap=False)
        self.set_source_info(node)
        return [node]


class PyObject(LiteralInclude):
    """`literalinclude :pyobject:` of a module's function, with a link to its page."""

    def run(self) -> list[nodes.Node]:
        module, _, name = self.arguments[0].rpartition(":")
        path = modules()[module]
        if name not in definitions(path):
            raise self.error(f"{path.name} defines no {name}")
        self.arguments[0] = "/" + os.path.relpath(path, self.env.srcdir)
        self.options |= {"pyobject": name, "language": "python"}
        where = nodes.paragraph(classes=["where"])
        where += page_link(self.env.docname, module, name, f"{path.name} · {name}")
        box = nodes.container(classes=["code"])
        box += [where, *super().run()]
        return [box]


def page_link(docname: str, module: str, name: str, text: str) -> nodes.reference:
    """A link to a definition on its module's page."""
    uri = relative(f"source/{module}.html", docname)
    node = nodes.reference("", "", refuri=f"{uri}#{anchor(name)}", internal=True)
    node += nodes.literal(text, text)
    return node


def relative(target: str, docname: str) -> str:
    return os.path.relpath(target, os.path.dirname(docname) or ".")


class Law(SphinxDirective):
    """Why a law holds (the body), and the test that holds the code to it."""

    has_content = True
    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        file, _, name = self.arguments[0].rpartition("::")
        places = [path for path in tests().get(name, []) if file in str(path)]
        if len(places) != 1:
            raise self.error(f"{name} must be one test, found in {places}")
        path = places[0]
        box = nodes.container(classes=["law"], ids=[anchor(name)])
        box += nodes.paragraph("", "The law", classes=["kind"])
        self.state.nested_parse(self.content, self.content_offset, box)
        text = path.read_text(encoding="utf-8").splitlines()
        node: Any = definitions(path)[name]
        first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
        source = "\n".join(text[first - 1 : node.end_lineno])
        where = html.escape(path.relative_to(ROOT).as_posix())
        box += raw(
            f"<details><summary><code>{html.escape(name)}</code> "
            f"<span>{where}</span></summary>"
        )
        box += nodes.literal_block(source, source, language="python")
        box += raw("</details>")
        self.env.note_dependency(str(path))
        return [box]


class Mistakes(SphinxDirective):
    """Published mistakes by their names in tests/mutation/mistakes.py."""

    has_content = False
    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        known = {m.name: m for m in MISTAKES}
        names = [name.strip() for name in self.arguments[0].split(";")]
        missing = [name for name in names if name not in known]
        if missing:
            raise self.error(f"mistakes.py has no {', '.join(missing)}")
        box = nodes.container(classes=["mistakes"])
        box += nodes.paragraph("", "Published mistakes", classes=["kind"])
        rows = nodes.bullet_list()
        for m in (known[name] for name in names):
            test = m.test.rpartition("::")[2]
            caught = f" Caught by <code>{html.escape(test)}</code>." if test else ""
            who = re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(spelled(m.who)))
            row = nodes.list_item()
            row += raw(
                f'<p><b>{html.escape(m.name)}</b> {who}<br><span class="right">Right:'
                f"</span> {html.escape(m.right)}.{caught}</p>"
            )
            rows += row
        box += rows
        self.env.note_dependency(str(ROOT / "tests/mutation/mistakes.py"))
        return [box]


def spelled(who: str) -> str:
    """Abbreviations of mistakes.py written out; the third text there is S2."""
    who = re.sub(r"\bS(\d)(:\d+)?", lambda m: f"Text {int(m[1]) + 1}", who)
    return re.sub(r"\b[A-Z][A-Z0-9]\b", lambda m: WHO.get(m[0], m[0]), who)


class Drawn(SphinxDirective):
    """Figures made by docs/figures.py from the package, side by side; body: caption."""

    has_content = True
    required_arguments = 1
    final_argument_whitespace = True
    option_spec: ClassVar = {"alt": directives.unchanged_required}

    def run(self) -> list[nodes.Node]:
        self.env.note_reread()
        panels = []
        for name in self.arguments[0].split():
            if name not in figures.FIGURES:
                raise self.error(f"docs/figures.py draws no {name}")
            alt = html.escape(self.options["alt"], quote=True)
            panels.append(figures.drawn(name, alt))
        figure = nodes.container(classes=["drawn"])
        figure += raw('<div class="panels">' + "".join(panels) + "</div>")
        self.state.nested_parse(self.content, self.content_offset, figure)
        return [figure]


class Graph(SphinxDirective):
    """The import graph, drawn from the package's import statements."""

    def run(self) -> list[nodes.Node]:
        self.env.note_reread()  # it depends on the whole package
        return [raw(f'<div class="wide" tabindex="0">{import_graph.svg()}</div>')]


class NotExecuted(SphinxDirective):
    """The formulas that tests/docs/test_formulas.py cannot run, with its reasons."""

    def run(self) -> list[nodes.Node]:
        rows = nodes.bullet_list()
        for where, why in NOT_EXECUTED.items():
            text = f"<p><b>{html.escape(where)}</b>: {html.escape(why)}</p>"
            row = nodes.list_item()
            row += raw(text)
            rows += row
        return [rows]


class Source(SphinxDirective):
    """A whole module with numbered lines and an anchor for every definition."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        path = modules()[self.arguments[0]]
        self.env.note_dependency(str(path))
        text = path.read_text(encoding="utf-8")
        lines = highlight(text, PythonLexer(), HtmlFormatter(nowrap=True))
        starts = {
            node.lineno: anchor(name)  # type: ignore[attr-defined]
            for name, node in definitions(path).items()
        }
        numbered = []
        for i, line in enumerate(lines.splitlines(), start=1):
            here = f'<i id="{starts[i]}"></i>' if i in starts else ""
            number = f'<a id="l{i}" href="#l{i}">{i:3}</a>'
            numbered.append(f"{here}{number} {line}")
        lines = '<div class="highlight"><pre>' + "\n".join(numbered) + "</pre></div>"
        return [raw(f'<div class="source">{lines}</div>')]


class ToPythonFiles(SphinxTransform):
    """A link to a file outside docs/ leads to its page, or to its text beside the site.

    So the same Markdown serves a reader of the repository and one of the site.
    """

    default_priority = 5

    def apply(self, **_: Any) -> None:
        found = [
            *self.document.findall(addnodes.download_reference),
            *self.document.findall(addnodes.pending_xref),
        ]
        for node in found:
            target = str(node.get("reftarget", ""))
            here = Path(self.document["source"]).parent
            path = Path(os.path.normpath(here / target.partition("#")[0]))
            if not path.exists():  # MyST leaves the suffix of a page out
                path = path.with_name(path.name + ".md")
            if not path.is_file() or path.is_relative_to(self.env.srcdir):
                continue
            inner = [child.deepcopy() for child in node.children]
            uri = self._uri(path, node.astext())
            link = nodes.reference("", "", *inner, refuri=uri) if uri else inner
            node.replace_self(link)

    def _uri(self, path: Path, text: str) -> str:
        """Where it leads; "" for a test that no page shows."""
        if text.startswith("test_") and path.is_relative_to(ROOT / "tests"):
            page = (Path(self.env.srcdir) / "paper.md").read_text(encoding="utf-8")
            shown = re.search(rf"{{law}} \S*\b{re.escape(text)}\n", page)
            return relative(f"paper.html#{anchor(text)}", self.env.docname) * bool(
                shown
            )
        if path.suffix in (".png", ".json"):  # shown already, or not to be read
            return ""
        for module, file in modules().items():
            if file == path:
                return relative(f"source/{module}.html", self.env.docname)
        name = path.relative_to(ROOT).as_posix()
        known = {"README.md": "index.html", "results/README.md": "results.html"}
        if name in known:
            return relative(known[name], self.env.docname)
        self.env.site_files = {*getattr(self.env, "site_files", set()), name}
        return relative(f"files/{name}{as_text(path)}", self.env.docname)


def as_text(path: Path) -> str:
    """A suffix with which a browser shows a file in place of saving it."""
    return "" if path.suffix == ".txt" else ".txt"


def raw(text: str) -> nodes.raw:
    return nodes.raw("", text, format="html")


def write_module_pages(app: Sphinx) -> None:
    """A page for each module, in docs/source, which is not under version control."""
    place = Path(app.srcdir) / "source"
    keep = set()
    for module in modules():
        page = place / f"{module}.md"
        page.parent.mkdir(parents=True, exist_ok=True)
        text = f"# {module}.py\n\n```{{source}} {module}\n```\n"
        if not page.exists() or page.read_text(encoding="utf-8") != text:
            page.write_text(text, encoding="utf-8")
        keep.add(page)
    for page in place.rglob("*.md"):
        if page not in keep:
            page.unlink()


PLAIN = re.compile(r'<span class="(?:n|p|w)">([^<]*)</span>')


def lighter(_app: Sphinx, _page: str, _template: str, context: Any, _tree: Any) -> None:
    """Half of a highlighted program's spans say that there is nothing to highlight."""
    if "body" in context:
        context["body"] = PLAIN.sub(r"\1", context["body"])


def copy_files(app: Sphinx, error: Exception | None) -> None:
    """The text of every file that a page links to and that has no page of its own."""
    for debugging in (Path(app.outdir) / "_static").rglob("*.map"):
        debugging.unlink()
    for picture in (Path(app.outdir) / "_images").glob("*.png"):
        small = Image.open(picture).convert("RGB").quantize(128)
        if picture.stat().st_size > 2**15:
            small.save(picture, optimize=True)
    for name in sorted(getattr(app.env, "site_files", set()) if not error else ()):
        to = Path(app.outdir) / "files" / f"{name}{as_text(ROOT / name)}"
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_bytes((ROOT / name).read_bytes())


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the directives and what is written before and after the pages."""
    app.add_directive("equation", Equation)
    app.add_directive("pyobject", PyObject)
    app.add_directive("law", Law)
    app.add_directive("mistakes", Mistakes)
    app.add_directive("drawn", Drawn)
    app.add_directive("import-graph", Graph)
    app.add_directive("source", Source)
    app.add_directive("not-executed", NotExecuted)
    app.add_transform(ToPythonFiles)
    app.connect("builder-inited", write_module_pages)
    app.connect("html-page-context", lighter)
    app.connect("build-finished", copy_files)
    return {"parallel_read_safe": False, "parallel_write_safe": True}
