"""`python -m exercises` as a reader meets it: files, states, words and exit codes."""

import os
import re
import subprocess
import sys
import textwrap

import pytest
import torch

import exercises.__main__ as command
from exercises.judge import Rooms, judge
from exercises.rooms import MODULES, OURS, Reader, UnusableError, solution, start
from exercises.table import EXERCISES, NAMED
from tinyddpm.sampler import sample
from tinyddpm.schedule import linear_schedule


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """A folder in which a reader has just started; the folder is the current one."""
    monkeypatch.chdir(tmp_path)
    start(tmp_path)
    return tmp_path


@pytest.fixture
def importable(reader, monkeypatch):
    """`my_ddpm` can be imported in this process, and is forgotten afterwards."""
    monkeypatch.syspath_prepend(str(reader))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    forget()
    yield reader
    forget()


def forget():
    for name in [m for m in sys.modules if m.partition(".")[0] == "my_ddpm"]:
        del sys.modules[name]


def write(root, name, body):
    """Puts a body in place of a blank."""
    e = NAMED[name]
    path = root / e.file
    text = path.read_text(encoding="utf-8")
    blank = re.compile(
        rf"^( *)# EXERCISE {name},.*?^ *return borrowed\((\n.*?^ *\)|[^\n]*\))\n",
        re.M | re.S,
    )
    indent = blank.search(text)[1]
    body = textwrap.indent(textwrap.dedent(body).strip("\n"), indent) + "\n"
    path.write_text(blank.sub(lambda m: body, text), encoding="utf-8")


def run(*args):
    """The exit code, in this process."""
    return command.main([*args])


EQ_4 = """
alpha_bar = at(s.alpha_bar, t, x_0, first=0, eps=eps)
return (alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * eps).to(x_0.dtype)
"""
M2 = EQ_4.replace("(1 - alpha_bar).sqrt()", "(1 - alpha_bar)")
EQ_2 = """
beta = at(s.beta, t, x_tm1)
print("this is the reader's own print")
return ((1 - beta).sqrt() * x_tm1 + beta.sqrt() * z).to(x_tm1.dtype)
"""


def test_the_list_is_in_order_and_needs_no_folder(tmp_path, monkeypatch, capsys):
    """Every exercise with its equation, before anything was started."""
    monkeypatch.chdir(tmp_path)
    assert run() == run("list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [x.split()[0] for x in lines[: len(EXERCISES)]] == list(NAMED)
    assert "eq. 4" in next(x for x in lines if x.split()[:1] == ["eq4"])
    assert not list(tmp_path.iterdir())


def test_start_writes_the_rooms_and_nothing_else(tmp_path, monkeypatch, capsys):
    """my_ddpm/ appears whole; started again, nothing is touched."""
    monkeypatch.chdir(tmp_path)
    assert run("start") == 0
    assert [p.name for p in tmp_path.iterdir()] == ["my_ddpm"]
    found = {p.name for p in (tmp_path / "my_ddpm").iterdir()}
    assert found == {f"{m}.py" for m in MODULES} | {"__init__.py"}
    (tmp_path / "my_ddpm/forward.py").write_text("mine", encoding="utf-8")
    assert run("start") == 2
    assert "nothing in it is overwritten" in capsys.readouterr().err
    assert (tmp_path / "my_ddpm/forward.py").read_text(encoding="utf-8") == "mine"


def test_start_writes_a_file_that_was_moved_away(reader, capsys):
    """And leaves the others as they are."""
    path = reader / "my_ddpm/forward.py"
    mine = reader / "my_ddpm/train.py"
    blank = path.read_text(encoding="utf-8")
    mine.write_text("mine", encoding="utf-8")
    path.unlink()
    assert run("check") == 2
    assert "forward.py is missing" in capsys.readouterr().err
    assert start(reader) == ["forward.py"]
    assert path.read_text(encoding="utf-8") == blank
    assert mine.read_text(encoding="utf-8") == "mine"


def test_a_file_named_my_ddpm_is_refused(tmp_path, monkeypatch, capsys):
    """It is left where it is."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_ddpm").write_text("mine", encoding="utf-8")
    assert run("start") == 2
    assert "is no folder" in capsys.readouterr().err
    assert (tmp_path / "my_ddpm").read_text(encoding="utf-8") == "mine"


def test_a_start_that_fails_leaves_nothing(tmp_path, monkeypatch):
    """The folder is written beside its place and renamed."""
    monkeypatch.setattr("exercises.rooms.Path.rename", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        start(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_blank_is_not_yet_and_never_wrong(reader, capsys):
    """Each by its name, and all together; no process is started for it."""
    for e in EXERCISES:
        assert run("check", e.name) == 1
        said = capsys.readouterr().out
        assert said.startswith(f"{e.name}: not yet. {e.file}, line ")
        line = int(re.search(r"line (\d+)", said)[1])
        text = (reader / e.file).read_text(encoding="utf-8").splitlines()
        assert f"EXERCISE {e.name}," in text[line - 1]
    assert run("check") == 1
    assert "wrong" not in capsys.readouterr().out


def test_a_blank_borrows_the_right_function(importable):
    """With every blank as it is, my_ddpm computes what tinyddpm does."""
    import my_ddpm.mlp
    import my_ddpm.sampler
    import my_ddpm.schedule

    torch.manual_seed(0)
    net = my_ddpm.mlp.MLP((1, 2, 2), width=4, depth=1, emb=4)
    torch.nn.init.normal_(net.last.weight)
    torch.nn.init.normal_(net.gate.weight)
    shape = (3, 1, 2, 2)
    theirs = my_ddpm.sampler.sample(
        my_ddpm.schedule.linear_schedule(30),
        net,
        shape,
        torch.Generator().manual_seed(1),
    )
    ours = sample(linear_schedule(30), net, shape, torch.Generator().manual_seed(1))
    assert torch.equal(theirs, ours)


def test_a_borrowed_function_calls_the_readers(importable):
    """p_step, still blank, takes its mean from the reader's p_mean."""
    write(importable, "eq11", "return 0 * x_t")
    from my_ddpm.sampler import p_step

    x, t = torch.ones(1, 1, 1, 1), torch.tensor([2])
    assert p_step(linear_schedule(30), x, t, x, 0 * x) == 0


def test_our_own_source_is_right_in_every_blank(importable):
    """`solution` put in the place of each blank; every exercise is judged alone."""
    for module in MODULES:
        path = importable / f"my_ddpm/{module}.py"
        path.write_text((OURS / f"{module}.py").read_text(encoding="utf-8"), "utf-8")
    rooms, found = Rooms(), Reader(importable)
    for e in EXERCISES:
        assert not found.is_blank(e)
        assert judge(e, rooms.alone(e)).kind == "right"
        assert solution(e).startswith(("def ", "@"))


def test_an_exercise_is_judged_by_itself(importable):
    """Eq. 11 by eq. 15 and 7 is right though the reader's eq. 15 is wrong."""
    write(importable, "eq15", "return x_t")
    write(
        importable,
        "eq11",
        """
        x = x_t.double()
        mu, _ = q_posterior(s, x, predict_x_0(s, x, t, eps_hat), t)
        return mu.to(x_t.dtype)
        """,
    )
    rooms = Rooms()
    assert judge(NAMED["eq11"], rooms.alone(NAMED["eq11"])).kind == "right"
    assert judge(NAMED["eq15"], rooms.alone(NAMED["eq15"])).kind == "wrong"


def test_check_from_the_first_to_the_last_word(reader, capfd, monkeypatch):
    """One process: right, wrong by name, an exception, an endless loop, a death.

    What the reader's code prints goes to the screen and not into the verdicts; the list
    then knows what was right, wrong and changed; nothing is written outside my_ddpm/.
    """
    monkeypatch.setattr(command.verdicts, "__defaults__", (3.0,))
    page = (OURS.parent / "docs/exercises.md").read_text(encoding="utf-8")
    example = page.partition("```text\n")[2].partition("```")[0]
    write(reader, "eq2", EQ_2)
    write(reader, "eq4", M2)
    write(reader, "eq7", "return x_t[99]")
    write(reader, "eq15", "while True:\n    t = t")
    write(reader, "eq12", "import os\nos._exit(7)")
    write(reader, "eq14", "return None")
    assert run("check") == 1
    said = capfd.readouterr()
    assert "the reader's own print" in said.err
    for words in (
        "eq2 is right.",
        "eq4 is wrong.",
        "This is M2, a published mistake",
        "eq7 ends with an exception.",
        "my_ddpm/forward.py, line ",
        "return x_t[99]",
        "IndexError: index 99 is out of bounds",
        "eq15 took more than 3 s",
        "eq12 ended or blocked the process that checks it (exit code 7)",
        "eq14 is wrong.",
        example,
        "M31",
        "not yet: alpha_bar,",
    ):
        assert words in said.out, said.out
    assert (
        "exercises/judge.py" not in said.out
    )  # of tracebacks the reader's lines alone
    assert [p.name for p in reader.iterdir()] == ["my_ddpm"]
    states = listed(capfd)
    assert [states[n] for n in ("eq2", "eq4", "eq11")] == ["right", "wrong", "not yet"]


def listed(capsys):
    """name: state"""
    assert run("list") == 0
    lines = capsys.readouterr().out.splitlines()[: len(EXERCISES)]
    return {x[10:].split()[0]: x[:9].strip() for x in lines}


def test_the_list_knows_what_is_done(reader, capsys, monkeypatch):
    """Right stays right until the function, or its module, changes."""

    def verdicts(root, todo, seconds=0):
        yield from ((e.name, ["right", "", "", ""]) for e in todo)

    monkeypatch.setattr(command, "verdicts", verdicts)
    write(reader, "eq4", EQ_4)
    assert listed(capsys)["eq4"] == "unchecked"
    assert run("check", "eq4") == 0
    assert "Next: eq7, eq. 7, at my_ddpm/forward.py" in capsys.readouterr().out
    assert listed(capsys)["eq4"] == "right"
    write(reader, "eq2", EQ_2)  # another exercise of the same module
    states = listed(capsys)
    assert (states["eq4"], states["eq2"]) == ("right", "unchecked")
    path = reader / "my_ddpm/forward.py"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("(1 - alpha_bar).sqrt()", "1"), encoding="utf-8")
    assert listed(capsys)["eq4"] == "unchecked"


def test_hints_come_one_by_one_and_are_remembered(reader, capsys):
    """Three, then the third again; a broken memory begins anew."""
    said = []
    for _ in range(4):
        assert run("hint", "eq4") == 0
        said.append(capsys.readouterr().out)
    assert [re.search(r"hint \d", x)[0][5:] for x in said] == ["1", "2", "3", "3"]
    assert said[2] == said[3]
    (reader / "my_ddpm/.hints").write_text("{", encoding="utf-8")
    assert run("hint", "q_sample") == 0  # by the function's name
    assert "hint 1 of 3" in capsys.readouterr().out
    for e in EXERCISES:
        assert len(set(e.hints)) == 3


def test_solution_is_our_source(capsys):
    """Of a method too."""
    assert run("solution", "ema") == 0
    assert capsys.readouterr().out.startswith("@torch.no_grad()\ndef update(self)")


def damaged(root, old, new):
    path = root / "my_ddpm/forward.py"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('    return borrowed("forward.q_sample"', "    x = (", "is not Python yet"),
        ("def q_sample(", "def q_simple(", "has no q_sample any more"),
        ("x_0: Tensor, t: Tensor, eps", "x_0, t, noise", "(s, x_0, t, noise)"),
        ("t: Tensor, eps: Tensor)", "t: Tensor, eps=None)", "(s, x_0, t, eps=None)"),
        ("x_0: Tensor, t: Tensor, eps", "x_0, eps, t", "(s, x_0, eps, t: Tensor)"),
    ],
)
def test_what_must_be_mended_first_is_one_sentence(reader, capsys, old, new, said):
    """Syntax, a deleted function, a renamed argument, a changed signature: exit 2."""
    damaged(reader, old, new)
    assert run("check", "eq4") == 2
    error = capsys.readouterr().err
    assert said.replace(": Tensor", "") in error
    assert "forward.py" in error
    assert len(error.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("check", "eq44"), "no exercise 'eq44'; eq4 is near"),
        (("hint", "nothing"), "no exercise 'nothing'"),
        (("hint",), "hint needs a name"),
        (("solution",), "solution needs a name"),
        (("run", "eq4"), "run takes no name"),
    ],
)
def test_a_wrong_name_is_one_sentence(reader, capsys, args, said):
    """An unknown name, none, one too many: exit code 2."""
    assert run(*args) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("name", ["check", "hint", "run"])
def test_without_my_ddpm_one_is_told_to_start(tmp_path, monkeypatch, capsys, name):
    """Exit code 2, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    assert run(name, *(["eq4"] if name == "hint" else [])) == 2
    assert "python -m exercises start" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_module_that_cannot_be_imported_is_told(reader, capfd):
    """The reader's lines, and exit code 2."""
    write(reader, "eq4", EQ_4)
    path = reader / "my_ddpm/sampler.py"
    path.write_text(path.read_text(encoding="utf-8") + "\nnothing_here\n", "utf-8")
    assert run("check", "eq4") == 2
    error = capfd.readouterr().err
    assert "my_ddpm cannot be imported" in error
    assert "sampler.py, line" in error
    assert "NameError: name 'nothing_here' is not defined" in error


ALONE = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("numpy", "pytest", "hypothesis", "matplotlib"):
            raise ModuleNotFoundError(f"no {name}", name=name)
sys.meta_path.insert(0, Refuse())
import warnings
warnings.filterwarnings("ignore", message="Failed to initialize NumPy")
"""


def test_a_check_needs_neither_pytest_nor_numpy(reader):
    """Torch and the clone are enough, for names of mistakes too; run needs pictures."""
    write(reader, "eq4", M2)
    judged = ALONE + "from exercises.judge import main; main(20.0, ['eq4'])"
    ran = ALONE + "from exercises.__main__ import main; sys.exit(main(['run']))"
    env = os.environ | {"PYTHONPATH": str(OURS.parent)}
    done, without = (
        subprocess.run(
            [sys.executable, "-B", "-c", code],
            cwd=reader,
            env=env,
            capture_output=True,
            text=True,
            timeout=300,
        )
        for code in (judged, ran)
    )
    assert "This is M2" in done.stdout, done.stderr
    assert without.returncode == 2
    assert without.stderr.count("\n") == 1
    assert "no matplotlib" in without.stderr
    assert "pip install" in without.stderr


def test_without_torch_one_is_told_to_install_it(reader, capsys, monkeypatch):
    """Before any process is started."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run("check") == 2
    assert "torch is missing: pip install" in capsys.readouterr().err


@pytest.mark.slow
def test_run_trains_with_the_readers_modules(importable, monkeypatch):
    """A reader who trains on |ε - ε_θ| is farther above the floor than we are."""
    from exercises import toy

    write(
        importable,
        "eq14",
        "return (eps - eps_theta(q_sample(s, x_0, t, eps), t)).abs().mean()",
    )
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    said = toy.run(importable / "out", steps=300)
    yours, ours = (
        float(re.search(rf"\b{whose} +([\d.]+) %", said)[1])
        for whose in ("yours", "ours")
    )
    assert yours > ours > 0
    assert (importable / "out/samples.png").stat().st_size > 1000


def test_names_are_found_as_people_write_them():
    """eq. 4, q_sample, Algorithm 2."""
    assert command.named("eq. 4").name == "eq4"
    assert command.named("Q_sample").name == "eq4"
    assert command.named("Algorithm 2").name == "algorithm2"
    assert command.named("L_tm1").name == "L_tm1"
    with pytest.raises(UnusableError):
        command.named("")


def test_the_page_lists_the_exercises():
    """docs/exercises.md has each, in order, with its equation and function."""
    page = (OURS.parent / "docs/exercises.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| `(.*?)` in .*? \| (.*) \|$", page, re.M)
    assert rows == [(e.name, e.source, e.function, e.asks) for e in EXERCISES]
