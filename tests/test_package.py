"""The package as a whole: its rooms and what they may import, its public names, what
it needs, and what is in the wheel and the sdist."""

import ast
import configparser
import importlib
import importlib.metadata
import os
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import tinyddpm

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "tinyddpm"
PAPER = {
    "__init__",
    "__main__",
    "schedule",
    "forward",
    "sampler",
    "train",
    "bound",
    "coding",
    "mlp",
    "unet",
    "layers",
    "data",
}
LINES_IN_ALL, LINES_A_FILE = 1400, 220
# What `from tinyddpm import ...` gave in 0.1.0.
PUBLIC = """
    EMA L_0 L_T MLP Bound L_simple L_tm1 Schedule TrainConfig UNet at bits_per_dim
    constant_schedule drawer fit gaussian_kl gradient_drawer gradient_images interpolate
    linear_schedule log_decoder p_mean p_sample_loop p_step predict_x_0 q_posterior
    q_sample q_step quadratic_schedule rate_distortion receive sample send
    time_embedding to_float to_uint8 weight
"""

# Refuses every module outside the standard library but torch, what torch itself
# brings, and tinyddpm. NumPy is refused too: torch does without it.
ALONE = """
import importlib.metadata, re, sys, warnings

def plain(name):
    return re.sub(r"[-_.]+", "-", name).lower()

allowed = {"torch", "torchgen", "functorch", "tinyddpm"}
queue = ["torch"]
while queue:
    for need in importlib.metadata.requires(queue.pop()) or []:
        name = plain(re.match(r"[A-Za-z0-9._-]+", need)[0])
        if "extra ==" not in need and name not in allowed:
            try:
                importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                continue  # a need of another platform
            allowed.add(name)
            queue.append(name)
provided = importlib.metadata.packages_distributions()

class Refuse:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in sys.stdlib_module_names or top in allowed:
            return None
        if any(plain(d) in allowed for d in provided.get(top, [])):
            return None
        if top in provided:
            raise ModuleNotFoundError(f"{name} is not there", name=name)

sys.meta_path.insert(0, Refuse())
warnings.filterwarnings("ignore", message="Failed to initialize NumPy")
"""


def python(code: str, **settings) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=settings.pop("cwd", ROOT),
        capture_output=True,
        text=True,
        timeout=300,
        **settings,
    )


def rooms() -> dict[str, Path]:
    """The package's modules by name: {"tinyddpm.bound": its path, ...}."""
    paths = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in files()}
    return {name.removesuffix(".__init__"): path for name, path in paths.items()}


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imports(tree: ast.AST, name: str, package: bool) -> Iterator[tuple[str, bool]]:
    """What the module imports, and whether `import` of the module runs that import.

    An import in a function, or under `if TYPE_CHECKING:`, waits or never runs. A name
    imported from a package counts as that package's module: `from .workshop import run`
    is tinyddpm.workshop.run. Imports through a call count as "(a call)".
    """
    here = name.split(".") if package else name.split(".")[:-1]

    def walk(node: ast.AST, runs: bool) -> Iterator[tuple[str, bool]]:
        if isinstance(node, ast.Import):
            yield from ((alias.name, runs) for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            up = here[: len(here) + 1 - node.level] if node.level else []
            source = ".".join([*up, *(node.module or "").split(".")]).strip(".")
            yield from ((f"{source}.{alias.name}", runs) for alias in node.names)
        if isinstance(node, ast.Call):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if called in ("import_module", "__import__"):
                yield "(a call)", runs
        waits = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waits = True
        for child in ast.iter_child_nodes(node):
            yield from walk(child, runs and not waits)

    yield from walk(tree, True)


def forbidden(source: str, name: str, package: bool = False) -> list[str]:
    """What a module of the paper or of beyond/ imports against the rule."""
    beyond = name.startswith("tinyddpm.beyond")
    found = []
    for target, runs in imports(ast.parse(source), name, package):
        lazy = name == "tinyddpm" and not runs  # __init__, when a name is asked for
        further = {"beyond"} if beyond or lazy else set()
        further |= {"workshop"} if name == "tinyddpm.__main__" or lazy else set()
        top, _, below = target.partition(".")
        if top == "tinyddpm":
            right = below.partition(".")[0] in PAPER | further
        elif target == "(a call)":
            right = lazy
        else:
            right = beyond or top == "torch" or top in sys.stdlib_module_names
        if not right:
            found.append(target)
    return found


def test_the_folder_is_the_papers_table_of_contents():
    """tinyddpm/ holds the paper's modules, two further rooms, and nothing else."""
    assert {p.stem for p in PACKAGE.glob("*.py")} <= PAPER
    assert len(PAPER) <= 12
    folders = {p.name for p in PACKAGE.iterdir() if p.is_dir()} - {"__pycache__"}
    assert folders == {"beyond", "workshop"}


def test_the_paper_keeps_its_budget_of_lines():
    """The paper's modules are short: each one, and all of them together."""
    lines = {
        p.name: len(p.read_text(encoding="utf-8").splitlines())
        for p in PACKAGE.glob("*.py")
    }
    assert {name: n for name, n in lines.items() if n > LINES_A_FILE} == {}
    assert sum(lines.values()) <= LINES_IN_ALL, lines


def test_the_rooms_import_what_they_may():
    """The paper imports torch, the standard library and itself; beyond/ may import the
    paper; neither imports the workshop, inside functions either. Only `__main__` does;
    `__init__` names the other rooms when a name is asked for, and for type checkers."""
    against = {
        name: forbidden(path.read_text(encoding="utf-8"), name, path.stem == "__init__")
        for name, path in rooms().items()
        if not name.startswith("tinyddpm.workshop")
    }
    assert "tinyddpm.beyond.oracle" in against
    assert {name: found for name, found in against.items() if found} == {}


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("tinyddpm.bound", "import numpy"),
        ("tinyddpm.bound", "def f():\n    import numpy.linalg as n"),
        ("tinyddpm.bound", "from .workshop.run import fit"),
        ("tinyddpm.bound", "def f():\n    from .workshop import run"),
        ("tinyddpm.bound", "def f():\n    from . import workshop"),
        ("tinyddpm.bound", "from tinyddpm import beyond"),
        ("tinyddpm.bound", "import tinyddpm.beyond.oracle"),
        ("tinyddpm.bound", "import importlib\nimportlib.import_module('numpy')"),
        ("tinyddpm.bound", "from . import fit"),
        ("tinyddpm.beyond.oracle", "def f():\n    from ..workshop.run import fit"),
        ("tinyddpm.beyond.oracle", "from .. import workshop"),
        ("tinyddpm.beyond.oracle", "from .. import fit"),
        ("tinyddpm", "from .workshop.run import fit"),
        ("tinyddpm", "from . import beyond"),
        ("tinyddpm.__main__", "from .beyond.oracle import point_mass"),
    ],
)
def test_the_import_rule_can_be_broken(name, source):
    """The test above can fail: each of these lines is against the rule."""
    assert len(forbidden(source, name, name == "tinyddpm")) == 1


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("tinyddpm.bound", "import torch.nn.functional as F\nfrom . import schedule"),
        ("tinyddpm.bound", "import math\nfrom .schedule import at"),
        ("tinyddpm.beyond.oracle", "from ..schedule import at\nfrom . import levels"),
        ("tinyddpm.beyond.pretrained", "def f():\n    from safetensors import torch"),
        ("tinyddpm.__main__", "from .workshop.command import main"),
        ("tinyddpm", "def __getattr__(n):\n    from .workshop.run import fit"),
        ("tinyddpm", "def __getattr__(n):\n    from .beyond import gradients"),
        ("tinyddpm", "def __getattr__(n):\n    importlib.import_module(n)"),
    ],
)
def test_the_import_rule_lets_pass_what_is_right(name, source):
    """The rule is not stricter than what it says."""
    assert forbidden(source, name, name == "tinyddpm") == []


@pytest.fixture(scope="module")
def said() -> list[str]:
    """What a fresh process with torch alone says, line by line: the modules that
    `import tinyddpm` loads, that names and all modules were imported, and of NumPy."""
    modules = [name for name in rooms() if not name.endswith("__main__")]
    assert {"tinyddpm.schedule", "tinyddpm.workshop.command"} <= set(modules)
    done = python(
        f"{ALONE}import tinyddpm\n"
        "print(*sorted(m for m in sys.modules if m.startswith('tinyddpm')))\n"
        f"from tinyddpm import {', '.join(PUBLIC.split())}\nprint('names imported')\n"
        f"import {', '.join(modules)}\nprint('modules imported', flush=True)\n"
        "import numpy\nprint('numpy imported')"
    )
    return done.stdout.splitlines() + done.stderr.splitlines()[-1:]


def test_import_loads_the_paper_alone(said):
    """In a fresh process `import tinyddpm` loads no module of the other two rooms."""
    loaded = set(said[0].split())
    assert {"tinyddpm", "tinyddpm.schedule", "tinyddpm.bound"} <= loaded, said
    others = ("tinyddpm.beyond", "tinyddpm.workshop")
    assert [name for name in loaded if name.startswith(others)] == []


def test_public_names_stay(said):
    """What `from tinyddpm import ...` gave in 0.1.0 it gives today, with torch alone,
    and each name is in `__all__`."""
    assert set(PUBLIC.split()) <= set(tinyddpm.__all__)
    assert "names imported" in said


def test_a_name_that_is_not_there_is_refused():
    """A misspelt name is an AttributeError and an ImportError, as in any module."""
    with pytest.raises(AttributeError, match="L_simpel"):
        _ = tinyddpm.L_simpel
    with pytest.raises(ImportError, match="L_simpel"):
        from tinyddpm import L_simpel  # noqa: F401


def test_every_module_imports_with_torch_alone(said):
    """`import tinyddpm` and each of its modules needs torch and the standard library;
    what an extra brings is imported where it is used."""
    assert "modules imported" in said


def test_the_refusal_refuses(said):
    """The tests above can fail: NumPy, installed here, is not to be had in them."""
    assert said[-1] == "ModuleNotFoundError: numpy is not there"


def setup_cfg() -> configparser.ConfigParser:
    metadata = configparser.ConfigParser(interpolation=None)
    metadata.read(ROOT / "setup.cfg", encoding="utf-8")
    return metadata


def test_torch_is_the_only_dependency():
    """The metadata ask for torch and nothing else."""
    needs = setup_cfg()["options"]["install_requires"].split()
    assert [need.partition(">")[0] for need in needs] == ["torch"]


def test_the_version_is_one():
    """setup.cfg, CHANGELOG.md and CITATION.cff name the same version."""
    version = setup_cfg()["metadata"]["version"]
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    released = re.findall(r"^## (\d\S*)", changelog, re.M)
    assert released[0] == version
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^version: (\S+)$", citation, re.M) == [version]


def test_the_version_without_metadata_is_plain(monkeypatch):
    """A clone that is not installed still has a version, one that says so."""

    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert runpy.run_module("tinyddpm.__init__")["__version__"] == "0+unknown"


def test_the_commands_of_the_metadata_exist():
    """Each console script in setup.cfg names a function that is there."""
    scripts = setup_cfg()["options.entry_points"]["console_scripts"].split("\n")
    for script in filter(None, scripts):
        module, _, function = script.partition("=")[2].strip().partition(":")
        assert callable(getattr(importlib.import_module(module), function))


def workflows() -> list[Path]:
    return sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def test_the_workflow_runs_the_readmes_commands():
    """Each `pip install ... && ...` of README is a line of the workflow that runs on
    three systems, letter by letter."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = re.findall(r"^pip install .* && .*(?:python|pytest).*$", readme, re.M)
    run = (ROOT / ".github/workflows/tests.yml").read_text(encoding="utf-8")
    lines = [line.strip() for line in run.splitlines()]
    assert len(commands) >= 2
    assert [command for command in commands if command not in lines] == []


def test_the_workflows_ask_for_extras_that_exist():
    """An extra that a workflow or a page installs is one of setup.cfg's."""
    pages = [*workflows(), *ROOT.glob("*.md"), ROOT / ".ci" / "run"]
    extras = set(setup_cfg()["options.extras_require"])
    asked = {
        extra
        for page in pages
        for found in re.findall(r"-e ['\"]\.\[([\w,]+)\]", page.read_text("utf-8"))
        for extra in found.split(",")
    }
    assert {"scripts", "test"} <= asked
    assert asked - extras == set()


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, Path]:
    """A wheel and the sdist it was built from, made from what git would hold."""
    source = tmp_path_factory.mktemp("source")
    out = tmp_path_factory.mktemp("dist")
    unwanted = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PACKAGE, source / "tinyddpm", ignore=unwanted)
    shutil.copytree(ROOT / "tests", source / "tests", ignore=unwanted)
    for path in ROOT.iterdir():
        if path.is_file() and path.name != ".git":
            shutil.copy(path, source)
    build = [sys.executable, "-m", "build", "--outdir", str(out), str(source)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return wheel, sdist


def package_files() -> set[str]:
    """Every file of the package and its sub-packages, py.typed included."""
    paths = (p for p in PACKAGE.rglob("*") if p.is_file())
    names = {p.relative_to(ROOT).as_posix() for p in paths}
    return {name for name in names if "__pycache__" not in name}


@pytest.mark.slow
def test_the_wheel_holds_the_package(built):
    """The wheel holds every file of the package, of each room, and nothing else but its
    metadata and the licence."""
    held = zipfile.ZipFile(built[0]).namelist()
    assert {"tinyddpm/py.typed", "tinyddpm/workshop/command.py"} <= package_files()
    info = re.compile(r"tinyddpm-[^/]*\.dist-info/")
    assert {name for name in held if not info.match(name)} == package_files()
    assert any(name.endswith("licenses/LICENSE") for name in held)


@pytest.mark.slow
def test_the_sdist_holds_what_it_takes_to_build(built):
    """The sdist holds the package, its metadata and its pages, and no half of the
    tests."""
    with tarfile.open(built[1]) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    pages = {"README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "constraints.txt"}
    assert package_files() | pages | {"setup.cfg", "pyproject.toml"} <= held
    assert [name for name in held if name.startswith("tests")] == []


@pytest.mark.slow
def test_twine_accepts_both(built):
    """The metadata are whole, and the README renders."""
    check = [sys.executable, "-m", "twine", "check", "--strict", *map(str, built)]
    done = subprocess.run(check, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_wheel_works_without_the_clone(built, tmp_path):
    """Unpacked elsewhere the wheel has its version and its command, and README's lines
    train and sample the toy."""
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index"]
    place = tmp_path / "site"
    subprocess.run(
        [*install, "--target", str(place), str(built[0])],
        check=True,
        capture_output=True,
    )
    settings = {"cwd": tmp_path, "env": os.environ | {"PYTHONPATH": str(place)}}
    done = python("import tinyddpm as t; print(t.__file__, t.__version__)", **settings)
    version = setup_cfg()["metadata"]["version"]
    assert done.stdout.split() == [
        str(place / "tinyddpm" / "__init__.py"),
        version,
    ], done.stderr
    command = [str(place / "bin" / "tinyddpm"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, **settings)
    assert done.returncode == 0, done.stderr
    assert "sample" in done.stdout
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```\n+```text\n(.*?)```", readme, re.S)
    done = python("\n".join(code for code, _ in blocks), **settings)
    assert done.stdout == "".join(printed for _, printed in blocks), done.stderr
