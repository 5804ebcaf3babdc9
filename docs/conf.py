"""Sphinx's settings: pip install -e '.[docs]' && sphinx-build -W docs docs/_site"""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE / "_ext"), str(HERE.parent)]

project = "tinyddpm"
html_title = "tinyddpm"
copyright = "the authors of tinyddpm, MIT licence"
extensions = ["myst_parser", "sphinx_design", "mathml", "reading"]
exclude_patterns = ["_site", "_ext", "_static", "live"]

myst_enable_extensions = ["colon_fence", "dollarmath", "deflist"]
myst_heading_anchors = 3
html_math_renderer = "mathml"
pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "a11y-high-contrast-dark"

html_theme = "furo"
html_static_path = ["_static", "live"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_search_summary = False  # it would fetch pages, which a file: address forbids
html_use_index = False
html_theme_options = {"navigation_with_keys": False}
