"""`my_ddpm/`: written from tinyddpm's own source, and read again.

Nothing is imported here: source is parsed, so that a file with errors in it can be
spoken of.
"""

import ast
import hashlib
import os
import shutil
import tempfile
import textwrap
from pathlib import Path

from .table import EXERCISES, Exercise

OURS = Path(__file__).parent.parent / "tinyddpm"
MODULES = (
    *("schedule", "forward", "sampler", "train", "bound", "coding"),
    *("data", "mlp", "layers", "unet"),
)
ABOUT = '''"""The paper's modules with blanks to fill in: see `python -m exercises`.

Each blank borrows tinyddpm's function until it is filled in. Nothing reads this folder
but the exercises, and nothing overwrites it.
"""
'''
IMPORT = "from exercises.borrow import borrowed"


class UnusableError(Exception):
    """What a reader must mend before anything can be checked: one sentence."""


def start(root: Path) -> list[str]:
    """Writes the files of `my_ddpm/` that are not there, and gives their names.

    The folder appears whole or not at all, and a file that is there stays as it is.
    """
    folder = root / "my_ddpm"
    texts = {"__init__.py": ABOUT} | {f"{m}.py": blanked(m) for m in MODULES}
    if not os.path.lexists(folder):
        made = Path(tempfile.mkdtemp(prefix=".my_ddpm-", dir=root))
        try:
            made.chmod(0o755)
            for name, text in texts.items():
                (made / name).write_text(text, encoding="utf-8")
            made.rename(folder)  # refused if somebody made one meanwhile
        except BaseException:
            shutil.rmtree(made)
            raise
        return list(texts)
    if not folder.is_dir():
        raise UnusableError("my_ddpm is there and is no folder; move it away to start")
    missing = [name for name in texts if not os.path.lexists(folder / name)]
    for name in missing:
        with (folder / name).open("x", encoding="utf-8") as file:
            file.write(texts[name])
    return missing


def blanked(module: str) -> str:
    """A module's source with the bodies of its exercises blank."""
    text = (OURS / f"{module}.py").read_text(encoding="utf-8")
    here = [e for e in EXERCISES if e.module == module]
    tree, lines = ast.parse(text), text.splitlines()
    changes = []  # (first line, last line, what takes their place), counted from 1
    for e in here:
        node = find(tree, e.function)
        assert node is not None, f"tinyddpm/{module}.py has no {e.function}"
        first, last = blank_lines(node, e)
        changes.append((first, last, blank(node, e)))
    imports = [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)]
    if here:
        line = imports[-1].end_lineno or 0
        changes.append((line + 1, line, ["", IMPORT]))
    for first, last, new in sorted(changes, reverse=True):
        lines[first - 1 : last] = new
    return "\n".join(lines) + "\n"


def blank(node: ast.FunctionDef, e: Exercise) -> list[str]:
    """The comment and the line that borrows ours, as lines of source."""
    args = [f'"{e.path}"', *(a.arg for a in node.args.args)]
    if node.args.vararg:
        args.append(f"*{node.args.vararg.arg}")
    verb = f"# EXERCISE {e.name}, {e.source}. Write it in place of these lines."
    code = [verb, *(f"# {line}" for line in e.write.split("\n"))]
    call = f"return borrowed({', '.join(args)})"
    indent = " " * node.body[-1].col_offset
    if len(indent + call) > 88:
        call = f"return borrowed(\n    {', '.join(args)}\n)"
    return textwrap.indent("\n".join([*code, call]), indent).split("\n")


def blank_lines(node: ast.FunctionDef, e: Exercise) -> tuple[int, int]:
    """The first and the last line of what the reader writes, in our source."""
    before, after = e.given
    body = node.body[1:]  # without the docstring
    body = body[before : len(body) - after]
    return body[0].lineno, body[-1].end_lineno or 0


def solution(e: Exercise) -> str:
    """Our source of an exercise's function."""
    text = (OURS / f"{e.module}.py").read_text(encoding="utf-8")
    return source_of(text, e) or ""


def source_of(text: str, e: Exercise) -> str | None:
    """The lines of an exercise's function in a module's text."""
    node = find(ast.parse(text), e.function)
    if node is None:
        return None
    first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
    return textwrap.dedent("\n".join(text.splitlines()[first - 1 : node.end_lineno]))


def find(tree: ast.Module, function: str) -> ast.FunctionDef | None:
    """The function, or Class.method, in a module; the last where there are several."""
    body: list[ast.stmt] = tree.body
    *classes, name = function.split(".")
    for wanted in classes:
        found = [n for n in body if isinstance(n, ast.ClassDef) and n.name == wanted]
        body = found[-1].body if found else []
    same = [n for n in body if isinstance(n, ast.FunctionDef) and n.name == name]
    return same[-1] if same else None


class Reader:
    """The files of `my_ddpm/`, all of which Python can parse."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "my_ddpm"
        if not self.folder.is_dir():
            raise UnusableError("there is no my_ddpm/ here: python -m exercises start")
        self.text = {m: self._read(self.folder / f"{m}.py") for m in MODULES}
        self.tree = {m: self._parse(m, text) for m, text in self.text.items()}

    def _read(self, path: Path) -> str:
        try:
            return path.read_text(encoding="utf-8")
        except FileNotFoundError:
            again = "python -m exercises start writes it anew"
            raise UnusableError(f"my_ddpm/{path.name} is missing: {again}") from None
        except (OSError, UnicodeDecodeError) as error:
            raise UnusableError(
                f"my_ddpm/{path.name} cannot be read: {error}"
            ) from None

    def _parse(self, module: str, text: str) -> ast.Module:
        try:
            return ast.parse(text)
        except (SyntaxError, ValueError) as error:
            line = getattr(error, "lineno", None)
            said = getattr(error, "msg", error)
            where = f", line {line}" if line else ""
            what = "is not Python yet"
            message = f"my_ddpm/{module}.py{where} {what}: {said}"
            raise UnusableError(message) from None

    def function(self, e: Exercise) -> ast.FunctionDef:
        """The reader's function, which must have the name and arguments of ours."""
        node = find(self.tree[e.module], e.function)
        if node is None:
            how = f"put back what `python -m exercises solution {e.name}` begins with"
            raise UnusableError(f"{e.file} has no {e.function} any more: {how}")
        text = (OURS / f"{e.module}.py").read_text(encoding="utf-8")
        right = find(ast.parse(text), e.function)
        assert right is not None
        if _arguments(node) != _arguments(right):
            raise UnusableError(
                f"{e.file}, line {node.lineno}: the arguments of {e.function} must be "
                f"({_written(right)}), got ({_written(node)})"
            )
        return node

    def is_blank(self, e: Exercise) -> bool:
        """Whether the line that borrows our function still stands there."""
        return any(
            isinstance(n, ast.Call)
            and isinstance(n.func, ast.Name)
            and n.func.id == "borrowed"
            for n in ast.walk(self.function(e))
        )

    def fingerprint(self, e: Exercise) -> str:
        """Of the function and all of its module that is no exercise itself."""
        tree = ast.parse(self.text[e.module])
        kept = [ast.dump(self.function(e))]
        others = [x.function for x in EXERCISES if x.module == e.module]
        for function in others:
            node = find(tree, function)
            if node is not None:
                node.body = [ast.Pass()]
        kept.append(ast.dump(tree))
        return hashlib.sha256("\n".join(kept).encode()).hexdigest()

    def line(self, e: Exercise) -> int:
        """The line where an exercise's blank, or function, begins."""
        lines = self.text[e.module].splitlines()
        marks = [i for i, x in enumerate(lines, 1) if f"# EXERCISE {e.name}," in x]
        return marks[0] if marks else self.function(e).lineno


def _arguments(node: ast.FunctionDef) -> list[str]:
    """Names, kinds and defaults; annotations may be left out."""
    a = node.args
    groups = [a.posonlyargs, a.args, a.kwonlyargs]
    names = [[x.arg for x in group] for group in groups]
    rest = [x.arg if x else None for x in (a.vararg, a.kwarg)]
    defaults = [ast.dump(x) for x in a.defaults]
    return [repr(x) for x in (names, rest, defaults, len(a.kw_defaults))]


def _written(node: ast.FunctionDef) -> str:
    """The arguments as source, without annotations."""
    bare = ast.parse(f"def f({ast.unparse(node.args)}): pass").body[0]
    assert isinstance(bare, ast.FunctionDef)
    for x in ast.walk(bare.args):
        if isinstance(x, ast.arg):
            x.annotation = None
    return ast.unparse(bare.args)
