"""Formulas as MathML, which browsers draw themselves: no script, no font to fetch."""

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator


def inline(writer: HTML5Translator, node: nodes.math) -> None:
    """A formula in a line of text."""
    writer.body.append(convert(node.astext()))
    raise nodes.SkipNode


def block(writer: HTML5Translator, node: nodes.math_block) -> None:
    """A formula on a line of its own, which scrolls where the screen is too narrow."""
    number = node.get("number")
    label = f"Formula {number}" if number else "Formula"
    writer.body.append(
        f'<div class="formula"><div class="lines" role="group" aria-label="{label}" '
        'tabindex="0">'
    )
    for line in node.astext().split("\n\n"):
        writer.body.append(convert(line.strip(), display="block"))
    writer.body.append("</div>")
    if number:
        writer.body.append(f'<span class="number">({number})</span>')
    writer.body.append("</div>\n")
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Makes it Sphinx's renderer under the name "mathml"."""
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
