"""The picture of who imports whom, drawn from the import statements themselves.

Three bands: the paper's modules, mathematics beyond it, and the workshop around both.
A module stands above those it imports from its own band.
"""

import ast
import html
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "tinyddpm"
BANDS = (
    ("workshop", "the workshop: no mathematics"),
    ("beyond", "beyond: mathematics not in the paper"),
    ("", "the paper"),
)
COLORS = {"": "#3987d6", "beyond": "#2e9e63", "workshop": "#d07d1e"}
SHOWN = ("oracle", "levels", "gradients")  # modules of beyond/ that have a page
WIDTH, BOX, ROW, HEAD = 880, 26, 58, 34


def edges() -> dict[str, set[str]]:
    """Each module -> the package's modules that it imports, as "room/name"."""
    files = {
        path.relative_to(PACKAGE).with_suffix("").as_posix(): path
        for path in [*PACKAGE.glob("*.py"), *PACKAGE.glob("*/*.py")]
        if not path.stem.startswith("__")
    }
    return {name: imported(path, set(files)) for name, path in sorted(files.items())}


def imported(path: Path, known: set[str]) -> set[str]:
    """The modules of `known` that a file imports, wherever in it."""
    here = path.relative_to(PACKAGE.parent).with_suffix("").parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            start = here[: len(here) - node.level] if node.level else ()
            base = (*start, *(node.module or "").split(".")) if node.module else start
            for name in ["", *(alias.name for alias in node.names)]:
                found.add("/".join([*base[1:], *([name] if name else [])]))
        elif isinstance(node, ast.Import):
            found |= {"/".join(a.name.split(".")[1:]) for a in node.names}
    return found & known - {path.relative_to(PACKAGE).with_suffix("").as_posix()}


def room(name: str) -> str:
    return name.rpartition("/")[0]


def depth(name: str, graph: dict[str, set[str]], above: tuple[str, ...] = ()) -> int:
    """How many modules of its own band lie below it."""
    below = [m for m in graph[name] if room(m) == room(name) and m not in above]
    return max((1 + depth(m, graph, (*above, name)) for m in below), default=0)


def box_width(name: str) -> int:
    return 8 * len(name.rpartition("/")[2]) + 18


def rows(graph: dict[str, set[str]], band: str) -> list[list[str]]:
    """The band's rows from top to bottom; a level too wide for one row takes more."""
    levels: dict[int, list[str]] = {}
    for m in sorted(m for m in graph if room(m) == band):
        levels.setdefault(depth(m, graph), []).append(m)
    found = []
    for level in sorted(levels, reverse=True):
        need = sum(box_width(m) + 14 for m in levels[level])
        n = -(-need // WIDTH)
        found += [levels[level][i::n] for i in range(n)]
    return found


def places(graph: dict[str, set[str]]) -> tuple[dict[str, tuple[float, float]], float]:
    """Where each module's box has its centre, and the height of the whole."""
    at: dict[str, tuple[float, float]] = {}
    y = 0.0
    for band, _ in BANDS:
        y += HEAD
        for i, row in enumerate(rows(graph, band)):
            gap = (WIDTH - sum(map(box_width, row))) / (len(row) + 1)
            x = gap + (0.3 * gap if i % 2 else -0.3 * gap)  # lines pass between boxes
            for m in row:
                at[m] = x + box_width(m) / 2, y + ROW / 2
                x += box_width(m) + gap
            y += ROW
    return at, y


def svg() -> str:
    """The picture, in the colours of the page it stands in."""
    graph = edges()
    at, height = places(graph)
    lines, boxes, y = [], [], 0.0
    for m, below in graph.items():
        for n in sorted(below):
            (x1, y1), (x2, y2) = at[m], at[n]
            middle = (y1 + y2) / 2
            lines.append(
                f'<path d="M{x1:.0f} {y1 + BOX / 2:.0f}C{x1:.0f} {middle:.0f} '
                f'{x2:.0f} {middle:.0f} {x2:.0f} {y2 - BOX / 2:.0f}" '
                f'stroke="{COLORS[room(m)]}" '
                f'opacity="{0.75 if room(m) == room(n) else 0.28}"/>'
            )
    for m, (x, y) in at.items():
        name = m.rpartition("/")[2]
        width = box_width(m)
        box = (
            f'<rect x="{x - width / 2:.0f}" '
            f'y="{y - BOX / 2:.0f}" width="{width}" height="{BOX}" rx="5" '
            f'stroke="{COLORS[room(m)]}"/><text x="{x:.0f}" y="{y + 4:.0f}">'
            f"{html.escape(name)}</text>"
        )
        page = room(m) == "" or m.removeprefix("beyond/") in SHOWN
        boxes.append(f'<a href="source/{m}.html">{box}</a>' if page else box)
    heads, y = [], 0.0
    for band, title in BANDS:
        heads.append(
            f'<text class="band" x="4" y="{y + 20:.0f}" fill="{COLORS[band]}">'
            f"{html.escape(title)}</text>"
        )
        y += HEAD + ROW * len(rows(graph, band))
    return (
        f'<svg class="graph" viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" '
        f'role="group" aria-label="Import graph of the package in three bands">'
        f'<g fill="none" stroke-width="1.2">{"".join(lines)}</g>'
        f"{''.join(heads)}{''.join(boxes)}</svg>"
    )
