"""The package as it is installed: what it needs, what the wheel holds."""

import configparser
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

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


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_every_module_imports_with_torch_alone():
    """`import tinyddpm` needs torch and the standard library, nothing else."""
    modules = sorted(
        f"tinyddpm.{p.stem}"
        for p in (ROOT / "tinyddpm").glob("*.py")
        if not p.stem.startswith("__")
    )
    assert "tinyddpm.schedule" in modules
    done = python(ALONE + f"import {', '.join(modules)}\nprint('imported')")
    assert done.stdout.strip() == "imported", done.stderr


def test_the_refusal_refuses():
    """The test above can fail: NumPy, installed here, is not to be had in it."""
    done = python(ALONE + "import numpy")
    assert "numpy is not there" in done.stderr, done.stderr


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_its_page_renders(tmp_path):
    """The wheel holds every module, py.typed and the licence; twine accepts it."""
    source = tmp_path / "source"
    shutil.copytree(ROOT / "tinyddpm", source / "tinyddpm")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path)]
    subprocess.run([*build, str(source)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    held = zipfile.ZipFile(wheel).namelist()
    modules = (ROOT / "tinyddpm").rglob("*.py")
    expected = {p.relative_to(ROOT).as_posix() for p in modules}
    assert expected | {"tinyddpm/py.typed"} == {
        name for name in held if name.startswith("tinyddpm/")
    }
    assert any(name.endswith("licenses/LICENSE") for name in held)
    check = [sys.executable, "-m", "twine", "check", "--strict", str(wheel)]
    done = subprocess.run(check, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_torch_is_the_only_dependency():
    """The metadata ask for torch and nothing else."""
    metadata = configparser.ConfigParser(interpolation=None)
    metadata.read(ROOT / "setup.cfg")
    needs = metadata["options"]["install_requires"].split()
    assert [need.partition(">")[0] for need in needs] == ["torch"]
