"""The site is built, looked at by a parser, and looked at by a browser.

Slow; skipped where Sphinx (extra [docs]), or a browser (extra [browser] and Chromium),
is not installed.
"""

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parent.parent.parent
WIDTHS = (360, 768, 1440)
PAGES = ("index", "paper", "modules", "rooms", "symbols", "five-texts", "results")
PAGES += ("live", "errata", "formulas", "source/forward", "source/unet", "search")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The built site; a warning of Sphinx fails it."""
    pytest.importorskip("furo", reason="Sphinx's theme (the extra [docs]) is missing")
    pytest.importorskip("myst_parser", reason="MyST (the extra [docs]) is missing")
    out = tmp_path_factory.mktemp("site")
    source = tmp_path_factory.mktemp("project") / "tinyddpm"
    leave_out = shutil.ignore_patterns("_site", ".git", "out", "data", "__pycache__")
    shutil.copytree(ROOT, source, ignore=leave_out)
    command = [sys.executable, "-m", "sphinx", "-W", "-q", "-d", str(out / "trees")]
    command += [str(source / "docs"), str(out / "html")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=source)
    assert done.returncode == 0, done.stderr
    return out / "html"


class Page(HTMLParser):
    """Its links, what it loads, its ids and its visible text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.ids: set[str] = set()
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {k: v or "" for k, v in attrs}
        self.ids |= {given[k] for k in ("id", "name") if k in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif "src" in given:
            self.loaded.append(given["src"])
        elif tag == "link" and given.get("rel") != "canonical":
            self.loaded.append(given.get("href", ""))

    def handle_data(self, data: str) -> None:
        self.text += data


def html(site: Path) -> list[Path]:
    return sorted(site.rglob("*.html"))


def test_every_link_leads_somewhere(site):
    """Each link and anchor inside the site, on every page, is there."""
    pages = {path: Page(path) for path in html(site)}
    wrong = []
    for path, page in pages.items():
        for link in page.links + page.loaded:
            parts = urlsplit(link)
            if parts.scheme in ("http", "https", "data"):
                continue
            target = (
                (path.parent / unquote(parts.path)).resolve() if parts.path else path
            )
            if target.is_dir():
                target /= "index.html"
            if not target.exists():
                wrong.append(f"{path.name}: {link}")
            elif parts.fragment and target in pages:
                there = unquote(parts.fragment) in pages[target].ids
                wrong += [] if there else [f"{path.name}: {link}"]
    assert wrong == []


def test_nothing_is_loaded_from_another_host(site):
    """No script, style, font or picture of the network; hosts stand in links alone."""
    for path in html(site):
        for address in Page(path).loaded:
            assert not re.match(r"(https?:)?//", address), f"{path.name}: {address}"
    for path in site.rglob("*.css"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"(url\(|@import )['\"]?(https?:)?//", text), path.name


def test_the_site_is_small(site):
    """All of it is below 3 MB, and the start page can be read without a script."""
    assert sum(path.stat().st_size for path in site.rglob("*") if path.is_file()) < 3e6
    start = Page(site / "index.html")
    assert "Start here: twenty minutes" in start.text
    assert "paper.html#eq-4" in start.links


def test_formulas_are_mathml(site):
    """Each formula of the page is drawn by the browser itself."""
    text = (site / "paper.html").read_text(encoding="utf-8")
    assert text.count("<math") > 200
    page = Page(site / "paper.html")
    assert "\\frac" not in page.text
    assert not re.search("mathjax|katex", " ".join(page.loaded), re.I)


@pytest.fixture(scope="module")
def chromium():
    """A headless browser."""
    sync_api = pytest.importorskip(
        "playwright.sync_api",
        reason="playwright (the extra [browser]) is not installed",
    )
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("Chromium is not installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program)
        yield browser
        browser.close()


def opened(chromium, path, width=1440, **options):
    """The page, with what it asked for and what it complained of."""
    size = {"width": width, "height": 900}
    page = chromium.new_context(offline=True, viewport=size, **options).new_page()
    page.asked_for, page.complaints = [], []
    page.on("request", lambda request: page.asked_for.append(request.url))
    page.on("console", lambda message: page.complaints.append(message.text))
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.goto(path.as_uri())
    return page


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_fit_every_screen(site, chromium, name, scheme):
    """At 360, 768 and 1440 pixels nothing is wider than the screen, nothing is asked of
    the network, and the console is silent."""
    for width in WIDTHS:
        page = opened(chromium, site / f"{name}.html", width, color_scheme=scheme)
        wide = page.evaluate("document.documentElement.scrollWidth")
        asked_for, complaints = page.asked_for, page.complaints
        page.context.close()
        assert wide <= width, f"{name} is {wide} wide on {width}"
        assert all(url.startswith(("file:", "data:")) for url in asked_for)
        assert complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_figures_have_the_colour_of_the_text(site, chromium, scheme):
    """The letters of a graph contrast with the page in both schemes, by WCAG's 4.5."""
    page = opened(chromium, site / "paper.html", color_scheme=scheme)
    ratio = page.evaluate(
        """() => {
          const light = c => { const v = c.match(/[\\d.]+/g).slice(0, 3).map(x => {
              x /= 255;
              return x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4});
            return 0.2126 * v[0] + 0.7152 * v[1] + 0.0722 * v[2]};
          const text = document.querySelector(".panel text");
          const a = light(getComputedStyle(text).fill);
          const b = light(getComputedStyle(document.body).backgroundColor);
          return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05) }"""
    )
    page.context.close()
    assert ratio >= 4.5


def test_the_columns_fold(site, chromium):
    """Formula and code stand side by side on a wide screen, and one below the other
    on a narrow one."""
    for width, beside in ((1440, True), (768, False), (360, False)):
        page = opened(chromium, site / "paper.html", width)
        tops = page.evaluate(
            "[...document.querySelector('.pair .sd-row').children]"
            ".map(e => e.getBoundingClientRect().top)"
        )
        page.context.close()
        assert (abs(tops[0] - tops[1]) < 2) == beside, (width, tops)


def test_the_keyboard_reaches_everything(site, chromium):
    """Tab goes through every link and scrolling formula, in the order of the page."""
    page = opened(chromium, site / "errata.html", 1440)
    links = page.locator("article a:visible, article [tabindex='0']").count()
    reached = set()
    for _ in range(links + 60):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate(
                "(() => { const e = document.activeElement; return e.closest('article')"
                " ? [...document.querySelectorAll('*')].indexOf(e) : -1 })()"
            )
        )
    page.context.close()
    assert len(reached - {-1}) >= links


def test_search_needs_no_server(site, chromium):
    """A search from a file: address finds the page of the paper."""
    page = opened(chromium, site / "search.html")
    page.goto((site / "search.html").as_uri() + "?q=interpolation")
    page.wait_for_selector("#search-results li a", timeout=20_000)
    found = page.eval_on_selector_all("#search-results li a", "a => a.map(x => x.href)")
    complaints = page.complaints
    page.context.close()
    assert any("paper.html" in address for address in found)
    assert complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["index", "paper", "source/forward"])
def test_axe_finds_nothing_serious(site, chromium, name, scheme):
    """axe-core, where npm has installed it, finds nothing serious or critical."""
    found = [*ROOT.glob("node_modules/axe-core/axe.min.js")]
    found += [*Path.home().glob("node_modules/axe-core/axe.min.js")]
    if not found:
        pytest.skip("axe-core is not installed (npm install axe-core)")
    page = opened(chromium, site / f"{name}.html", 1440, color_scheme=scheme)
    page.add_script_tag(path=str(found[0]))
    result = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    page.context.close()
    bad = [
        (v["id"], len(v["nodes"]), v["nodes"][0]["html"][:160])
        for v in result["violations"]
        if v["impact"] in ("serious", "critical")
    ]
    assert bad == [], json.dumps(bad, indent=1)
