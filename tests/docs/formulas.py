"""Formulas as they are written, LaTeX on a page or Unicode in a docstring, to be run.

LaTeX is rewritten into the dialect of the docstrings, which one recursive descent
parser reads. Names are looked up in a dictionary: "x_t" as it stands, "ᾱ_{t-1}" in the
table "ᾱ" at t - 1. Numbers are NumPy arrays (B, D); t is (B, 1).
"""

import ast
import importlib
import inspect
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs/paper.md"

# What cannot be run, and why; "(4) 2" is the second line of equation 4 on the page
NOT_EXECUTED = {
    "(1) 1": "the density of a whole path x_0..x_T; no function computes it, each of "
    "its factors is the next line, which is executed",
    "(3) 1": "an expectation over paths of the log of such densities; that it equals "
    "equation 5, which is executed, is the law below it",
    "(16) 1": "needs the true q(x_{t-1}|x_t) and the entropy of the data, which are "
    "known only for data of known law; the law of equation 3 covers it",
    "rate_distortion, distortion[t]": "√E‖…‖²/D leaves to the reader that the root "
    "reaches to the end",
    "fit and algorithm_1": "Algorithm 1 is a program; its line 5 is equation 14",
    "send and receive": "Algorithms 3 and 4 are programs without a formula",
    "Schedule, ᾱ_t and β̃_t": "stand in one docstring line with others; equations 4 "
    "and 7 on the page have both",
    "time_embedding, ": "its sines and cosines stand for rows of them, by …; the paper "
    "has no formula for the network",
    "UNet, ": "a network, not a formula",
    "quadratic_schedule, ": "a sentence: √β_t is linear in t",
}

LATEX = {
    r"\bar\alpha": "ᾱ",
    r"\tilde\beta": "β̃",
    r"\tilde\mu": "μ̃",
    r"\hat x": "x̂",
    r"\bar x": "x̄",
    r"\alpha": "α",
    r"\beta": "β",
    r"\delta": "δ",
    r"\epsilon": "ε",
    r"\lambda": "λ",
    r"\mu": "μ",
    r"\sigma": "σ",
    r"\theta": "θ",
    r"\mathcal N": "N",
    r"\mathbf I": "I",
    r"\mathbb E": "E",
    r"\infty": "∞",
    r"\leftarrow": "←",
    r"\cdot": "·",
    r"\sum": "Σ",
    r"\prod": "∏",
    r"\int": "∫",
    r"\ge": "≥",
    r"\log": "ln",
    r"\|": "‖",
    r"\,": " ",
    r"\ ": " ",
    r"\left": "",
    r"\right": "",
    r"\Big": "",
}


def page_formulas() -> dict[str, str]:
    """Each line of each {equation} on the page: "(4) 2" -> its LaTeX."""
    found: dict[str, str] = {}
    blocks = re.findall(
        r"```\{equation\} ([^\n]*)\n(.*?)```", PAGE.read_text("utf-8"), re.S
    )
    for label, body in blocks:
        for i, line in enumerate(body.strip().split("\n\n"), start=1):
            found[f"({label}) {i}"] = " ".join(line.split())
    return found


def docstring_formulas(f: Callable[..., Any]) -> dict[str, str]:
    """Left side -> right side of each "left = right" in a docstring, prose and all.

    The label ("Eq. 4:") and what stands in the section Args do not count.
    """
    text = re.split(r"\n *(?:Args|Returns|Yields)", inspect.getdoc(f) or "")[0]
    label = re.compile(r"^(?:(?:Eq\.|Section|Algorithms?|App\.) [\w., ]+: )")
    found = {}
    for i, line in enumerate(text.splitlines()):
        formula = re.split(r"\s{3,}", label.sub("", line))[0]
        left, equals, right = re.sub(" ← ", " = ", formula).partition(" = ")
        if formula.startswith("= "):
            found["="] = formula[2:]
        elif equals and re.search(r"[α-ωᾱε√‖Σ]", right):
            found[left.strip()] = right.strip()
        elif i == 0 and not equals and re.search(r"[α-ωᾱε√‖Σ]", formula):
            found[""] = formula
    return found


def braced(text: str, start: int) -> int:
    """Where the group that opens at text[start] == "{" has ended."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "{") - (text[i] == "}")
        if depth == 0:
            return i + 1
    raise ValueError(f"an open brace in {text!r}")


def to_unicode(latex: str) -> str:
    """LaTeX in the dialect of the docstrings."""
    cases = re.search(r"\\begin\{cases\}(.*?)\\end\{cases\}", latex)
    if cases:
        parts = re.split(r"\\\\|&", cases[1])
        inside = "; ".join(to_unicode(part) for part in parts)
        return to_unicode(latex[: cases.start()]) + f"cases({inside})"
    for command, arguments in ((r"\frac", 2), (r"\sqrt", 1)):
        while (at := latex.find(command)) >= 0:
            end, groups = at + len(command), []
            for _ in range(arguments):
                while latex[end] == " ":
                    end += 1
                if latex[end] == "{":
                    last = braced(latex, end)
                    groups.append(latex[end + 1 : last - 1])
                else:
                    last = end + 1
                    groups.append(latex[end])
                end = last
            new = f"√({groups[0]})" if arguments == 1 else "({})/({})".format(*groups)
            latex = f"{latex[:at]}({new}){latex[end:]}"
    for command in sorted(LATEX, key=len, reverse=True):
        latex = latex.replace(command, LATEX[command])
    return latex


TOKEN = re.compile(
    r"""\s*(?:
    (?P<number>\d+(?:\.\d+)?) |
    (?P<word>(?:cases|ln|log|dx)\b) |
    (?P<kl>D_\{KL\}|KL) |
    (?P<stop>[A-Za-z]{2,}(?![_'])) |
    (?P<name>δ_?[+\-](?=\() | (?!Σ)[^\W\d_][\u0300-\u036f]?'?
        (?:_\{[^}]*\}|_simple|_ema|_[^\W_])?(?:\^i)?) |
    (?P<op>[-+/·^()\[\],;|‖√²½=<>≥Σ∏∫∞])
    )""",
    re.X,
)
FUNCTIONS = ("ε_θ", "μ_θ", "μ̃_t", "δ+", "δ-")


class Parser:
    """Reads one expression and evaluates it on the way down.

    Juxtaposition binds as a product from the left: a b / c d is ((a b) / c) d.
    """

    def __init__(self, text: str, names: dict[str, Any]) -> None:
        text = unicodedata.normalize("NFC", text)
        self.text, self.at, self.names = text, 0, dict(names)

    def peek(self) -> tuple[str, str]:
        found = TOKEN.match(self.text, self.at)
        if not found:
            return "end", self.text[self.at :].strip()
        kind = str(found.lastgroup)
        return kind, found[kind]

    def take(self, expected: str = "") -> str:
        found = TOKEN.match(self.text, self.at)
        if not found or (expected and found[0].strip() != expected):
            rest = self.text[self.at :]
            raise ValueError(f"{expected or 'a token'} expected at {rest!r}")
        self.at = found.end()
        return found[0].strip()

    def expression(self) -> Any:
        negative = self.peek()[1] == "-"
        if negative:
            self.take()
        value = -self.term() if negative else self.term()
        while self.peek()[1] in ("+", "-") and self.peek()[0] == "op":
            minus = self.take() == "-"
            other = self.term()
            value = value - other if minus else value + other
        return value

    def term(self) -> Any:
        value = self.power()
        while True:
            kind, token = self.peek()
            if token in ("/", "·"):
                self.take()
                other = self.power()
                value = value / other if token == "/" else value * other
            elif self.starts(kind, token):
                value = value * self.power()
            else:
                return value

    def starts(self, kind: str, token: str) -> bool:
        """Whether a factor can begin here."""
        if kind == "op":
            norm = token == "‖" and not self.inside_norm
            return token in "([√½Σ∏∫∞" or norm
        if kind == "stop":
            return token in self.names
        return kind in ("number", "name", "kl") or token in ("ln", "log", "cases")

    inside_norm = False

    def power(self) -> Any:
        value = self.atom()
        if self.peek()[1] == "²":
            self.take()
            return value**2
        if self.peek()[1] == "^":
            self.take()
            return value ** self.atom()
        return value

    def atom(self) -> Any:
        kind, _ = self.peek()
        token = self.take()
        if kind == "number":
            return float(token)
        if token in ("½", "∞"):
            return 0.5 if token == "½" else np.inf
        if token == "√":
            return np.sqrt(self.atom())
        if token in ("(", "["):
            outer, self.inside_norm = self.inside_norm, False
            value = self.expression()
            self.inside_norm = outer
            self.take(")" if token == "(" else "]")
            return value
        if token == "‖":
            self.inside_norm = True
            value = self.expression()
            self.inside_norm = False
            self.take("‖")
            return np.sqrt((value**2).sum(-1, keepdims=True))
        if token in ("Σ", "∏"):
            return self.sum_or_product(token)
        if token == "∫":
            return self.integral()
        if token in ("ln", "log"):
            return np.log(self.power())
        if token == "cases":
            return self.cases()
        if kind == "kl":
            return self.divergence()
        if kind == "name":
            return self.name(token)
        if kind == "stop" and token in self.names:
            return self.names[token]
        raise ValueError(f"no formula begins with {token!r} in {self.text!r}")

    def name(self, token: str) -> Any:
        token = token.replace("^i", "")
        if token[0] == "δ":
            token = token.replace("_", "")
        if token.startswith("E") and token[1:2] in ("", "_"):
            return np.mean(self.power())
        if token in ("q", "p", "p_θ"):
            end = self.text.index(")", self.at) + 1
            key = token + self.text[self.at : end].replace(" ", "")
            self.at = end
            return self.names[key]
        if token == "N":
            return self.normal()
        if token in FUNCTIONS and self.peek()[1] == "(":
            return self.names[token](*self.arguments())
        if token == "I":
            return 1.0
        return self.value(token)

    def value(self, token: str) -> Any:
        """ "x_t" as it stands; "ᾱ_{t-1}" from the table "ᾱ"."""
        token = re.sub(r"_\{([^{}]*)\}", r"_{\1}", token)
        plain = re.sub(r"_\{(\w+)\}", r"_\1", token)
        for key in (token, plain):
            if key in self.names:
                return self.names[key]
        base, _, index = token.partition("_")
        if base in self.names and index:
            i = Parser(index.strip("{}"), self.names).expression()
            return self.names[base][np.asarray(i, dtype=int)]
        raise KeyError(f"{token} in {self.text!r}")

    def arguments(self) -> list[Any]:
        self.take("(")
        outer, self.inside_norm = self.inside_norm, False
        values = [self.expression()]
        while self.peek()[1] in (",", ";"):
            self.take()
            values.append(self.expression())
        self.inside_norm = outer
        self.take(")")
        return values

    def normal(self) -> Any:
        """N(mean, variance) is the pair; N(x; mean, variance) is the density at x."""
        values = self.arguments()
        if len(values) == 2:
            return tuple(values)
        x, mean, variance = values
        return np.exp(-((x - mean) ** 2) / (2 * variance)) / np.sqrt(
            2 * np.pi * variance
        )

    def divergence(self) -> Any:
        """KL(q ‖ p) of two Gaussians, summed over a picture."""
        self.take("(")
        self.inside_norm = True
        q = self.expression()
        self.take("‖")
        p = self.expression()
        self.inside_norm = False
        self.take(")")
        (m1, v1), (m2, v2) = q, p
        kl = (np.log(v2 / v1) + (v1 + (m1 - m2) ** 2) / v2 - 1) / 2
        return kl.sum(-1, keepdims=True)

    def bounds(self) -> tuple[str, str, str]:
        """The variable, its relation and lower limit of _{t>1}; the upper after ^."""
        found = re.compile(r"_\{(\w) ?([=>≥]) ?(\w+)\}(?:\^(\{\w+\}|\w))?").match(
            self.text, self.at
        )
        if not found:
            raise ValueError(f"no limits at {self.text[self.at :]!r}")
        self.at = found.end()
        variable, relation, low, high = found.groups()
        self.high = (high or "T").strip("{}")
        return variable, relation, low

    def sum_or_product(self, token: str) -> Any:
        variable, relation, low = self.bounds()
        high, start = self.high, self.at
        if variable == "i":  # over the numbers of a picture
            return np.prod(self.term(), axis=-1, keepdims=True)
        first = int(np.max(Parser(low, self.names).expression())) + (relation == ">")
        last = int(np.max(Parser(high, self.names).expression()))
        values, saved = [], dict(self.names)
        end = start
        for k in range(first, last + 1):
            self.at, self.names = start, {**saved, variable: k}
            values.append(self.term())
            end = self.at
        if not values:  # an empty sum still has to be read
            self.names = {**saved, variable: first}
            self.term()
            end = self.at
        self.at, self.names = end, saved
        stacked = np.array(values) if values else np.zeros(0)
        return stacked.sum(0) if token == "Σ" else stacked.prod(0)

    def integral(self) -> Any:
        """∫_{a}^{b} … dx by Gauss-Legendre on panels of length 1, from -20 to 20."""
        a, b = self.limit("_"), self.limit("^")
        edges = np.linspace(np.clip(a, -20, 20), np.clip(b, -20, 20), 41, axis=-1)
        nodes, weights = np.polynomial.legendre.leggauss(80)
        half = np.diff(edges, axis=-1)[..., None] / 2
        x = edges[..., :-1, None] + half * (1 + nodes)
        saved = dict(self.names)
        wide = {
            k: v[..., None, None] if isinstance(v, np.ndarray) and v.ndim == 2 else v
            for k, v in saved.items()
        }
        spread = {
            k: (lambda *_, f=v: f(*_)[..., None, None])
            for k, v in saved.items()
            if k == "μ_θ"
        }
        narrow = {k: saved[k] for k in ("x_1",) if k in saved}
        self.names = {**wide, **spread, **narrow, "x": x}
        value = self.term()
        self.names = saved
        self.take("dx")
        return (value * weights * half).sum((-2, -1))

    def limit(self, mark: str) -> Any:
        if self.text[self.at] != mark:
            raise ValueError(f"{mark} expected at {self.text[self.at :]!r}")
        end = braced(self.text, self.at + 1)
        inside = self.text[self.at + 2 : end - 1]
        self.at = end
        return Parser(inside, self.names).expression()

    def cases(self) -> Any:
        """cases(value; x = a; value; x < a): the first whose condition holds."""
        self.take("(")
        values = []
        while True:
            value = self.expression()
            self.take(";")
            left, relation, right = self.expression(), self.take(), self.expression()
            holds = {
                "=": np.isclose(left, right, atol=1e-9, rtol=0),
                "<": left < right,
                ">": left > right,
            }[relation]
            values.append((holds, value))
            if self.take() == ")":
                break
        result = np.nan
        for holds, value in reversed(values):
            result = np.where(holds, value, result)
        return result


def evaluate(text: str, names: dict[str, Any], whole: bool = True) -> Any:
    """The value of a formula; unless `whole`, prose may follow it."""
    parser = Parser(
        text, {unicodedata.normalize("NFC", k): v for k, v in names.items()}
    )
    value = parser.expression()
    kind, rest = parser.peek()
    done = kind == "end" and not rest
    if not done and (whole or not (kind == "stop" or rest[:1] in ",.:(;")):
        raise ValueError(f"{text!r} is read only up to {parser.text[parser.at :]!r}")
    return value


def right_side(latex: str) -> str:
    """What stands behind the = or ← of a line of the page, in Unicode."""
    text = to_unicode(latex)
    for sign in ("←", " = "):
        if sign in text:
            return text.partition(sign)[2].strip()
    return text.strip()


def documented() -> dict[str, Callable[..., Any]]:
    """The functions of README's table, by their names."""
    readme = (ROOT / "README.md").read_text("utf-8")
    table = readme.partition("| paper | function |")[2].partition("\n\n")[0]
    rows = re.findall(r"\| `(\w+)` \| \[(\w+)\.py\]", table)
    return {
        name: getattr(importlib.import_module(f"tinyddpm.{module}"), name)
        for name, module in rows
    }


def pyobjects() -> list[tuple[str, str]]:
    """(module, name) of each function that the page shows."""
    return re.findall(r"\{pyobject\} ([\w/]+):([\w.]+)", PAGE.read_text("utf-8"))


def defined(path: Path) -> set[str]:
    """The (dotted) names that a file defines."""
    tree = ast.parse(path.read_text("utf-8"))
    names = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
            names |= {
                f"{node.name}.{inner.name}"
                for inner in getattr(node, "body", [])
                if isinstance(inner, ast.FunctionDef)
            }
    return names
