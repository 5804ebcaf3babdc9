"""The grader: right answers pass however they are written, mistakes are named."""

import ast

import pytest
import torch

from exercises.judge import Verdict, allowed, digits, judge, same, subject
from exercises.known import KNOWN, Known, published, wrong
from exercises.laws import LAWS
from exercises.rooms import MODULES, OURS, blanked, find
from exercises.table import EXERCISES, NAMED
from tests.mutation.mistakes import MISTAKES

from .answers import ANSWERS
from .mistaken import MISTAKEN

# Published mistakes in the modules of the exercises that the grader cannot name.
UNNAMED = {
    "M6b": "the warning stands in lines that are given",
    "M24": "the U-Net's way up is given",
    "M25": "the U-Net's levels are given",
    "M26": "group norm is a layer, which is given",
    "M27": "where the U-Net feeds its embedding is given",
    "M28b": "the width is refused in a line that is given",
    "M30": "the U-Net's door is given",
    "M33": "names are given to the state of a run by what is around Algorithm 1",
    "M44": "no answer is wrong by it, only late, and only on a GPU",
    "M47": "interpolation is no exercise",
    "M47b": "interpolation is no exercise",
    "P2": "interpolation is no exercise",
    "P11": "interpolation is no exercise",
    "P11b": "interpolation is no exercise",
    "D2": "the schedule's door is given",
    "D3": "which t a reader's function refuses is left to the reader",
    "D6": "how layers start is given",
    "D7": "how layers start is given",
    "D8": "group norm is a layer, which is given",
}


def name_of(k: Known) -> str:
    return f"{k.exercise}-{k.id or k.says[:40]}"


def test_ours_is_right():
    """Each exercise has laws, and our function keeps them all."""
    assert set(LAWS) == set(NAMED)
    for e in EXERCISES:
        assert judge(e, subject(e)).kind == "right", e.name


@pytest.mark.parametrize(
    ("name", "f"), ANSWERS, ids=[f"{n}-{f.__name__}" for n, f in ANSWERS]
)
def test_a_right_answer_written_another_way_is_right(name, f):
    """A function that computes the equation is right, whatever it looks like."""
    verdict = judge(NAMED[name], f)
    assert verdict.kind == "right", verdict.text


@pytest.mark.parametrize("k", KNOWN, ids=name_of)
def test_a_known_mistake_is_wrong_and_called_by_its_name(k):
    """Each breaks a law, and no other known mistake is taken for it."""
    verdict = judge(NAMED[k.exercise], wrong(k))
    assert (verdict.kind, verdict.known, verdict.says) == ("wrong", k.id, k.says)
    if k.id:
        assert published(k.id)[0] in verdict.text


@pytest.mark.parametrize(
    ("name", "known", "f"), MISTAKEN, ids=[f"{n}-{f.__name__}" for n, _, f in MISTAKEN]
)
def test_a_mistake_in_other_words_is_called_by_its_name(name, known, f):
    """What a function does is compared, not how it is written."""
    verdict = judge(NAMED[name], f)
    assert (verdict.kind, verdict.known) == ("wrong", known), verdict.text


def test_every_published_mistake_is_named_or_has_a_reason():
    """All that stand in the modules of the exercises, and no reason is out of date."""
    files = {f"{e.module}.py" for e in EXERCISES}
    here = {x for m in MISTAKES if m.file in files for x in m.name.split(", ")}
    named = {x for k in KNOWN if k.id for x in k.id.split(", ")} | {"M31"}
    assert not here - named - set(UNNAMED), "name them in known.py, or give a reason"
    assert not named & set(UNNAMED)


def test_the_smallest_failing_case_is_shown_in_the_papers_letters():
    """M2 in eq. 4: x_0 = 0, ε = 1, t = 1, with what is yours and what is right."""
    f = next(f for n, known, f in MISTAKEN if (n, known) == ("eq4", "M2"))
    lines = [line.strip() for line in judge(NAMED["eq4"], f).text.split("\n")]
    assert lines[1] == "x_0 = 0, ε = 1, t = 1, β = 0.1, 0.2, 0.3:"
    assert lines[2].split() == ["yours", "0.1"]
    assert lines[3].split() == ["eq.", "4", "0.316"]  # √0.1
    assert lines[4] == "The law: x_t = √ᾱ_t x_0 + √(1-ᾱ_t) ε."


def altered(change):
    """q_sample with something done before or after it."""
    right = subject(NAMED["eq4"])

    def f(s, x_0, t, eps):
        return change(right, s, x_0, t, eps)

    return judge(NAMED["eq4"], f)


def changes_its_input(right, s, x_0, t, eps):
    found = right(s, x_0, t, eps)
    with torch.no_grad():
        x_0.mul_(2)
    return found


def changes_the_schedule(right, s, x_0, t, eps):
    found = right(s, x_0, t, eps)
    s.alpha_bar = s.alpha_bar * 1.0
    s.alpha_bar[2] += 0.1
    return found


def draws(right, s, x_0, t, eps):
    return right(s, x_0, t, eps + 0 * torch.randn_like(eps))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (changes_its_input, "are the arguments changed?"),
        (changes_the_schedule, "are the arguments changed?"),
        (draws, "is torch's random generator used?"),
        (lambda right, *a: right(*a).double(), "torch.float32"),
        (lambda right, *a: right(*a).flatten(), "shape (1,)"),
        (lambda right, *a: right(*a).detach(), "can be differentiated"),
        (lambda right, *a: float(right(*a)), "A tensor is asked for"),
        (lambda right, s, x, t, e: 0.9 * torch.ones_like(x), "whatever it is given"),
        (lambda right, s, x, t, e: right(s, x, t - 1, e), "the equation at t - 1"),
        (lambda right, s, x, t, e: right(s, x, t[:1].expand_as(t), e), "its own t"),
        (lambda right, *a: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda right, *a: exit(3), "SystemExit: 3"),
    ],
)
def test_what_is_wrong_in_kind_is_said(change, said):
    """Inputs, randomness, dtype, shape, gradients, types, constants, exceptions."""
    verdict = altered(change)
    assert verdict.kind in ("wrong", "raised")
    assert said in verdict.text, verdict.text


def test_an_answer_that_knows_the_first_cases_by_heart_is_wrong():
    """The cases that follow the simple ones are numbers nobody guesses."""
    table = {}

    def heart(right, s, x_0, t, eps):
        if s.T == 3 and all(v in (0.0, 1.0) for v in (float(x_0), float(eps))):
            return right(s, x_0, t, eps)
        return table.get(float(x_0), torch.zeros_like(x_0))

    assert altered(heart).kind == "wrong"


def test_numbers_are_shown_with_the_digits_that_tell_them_apart():
    """Three at least."""
    assert digits(0.9, 0.81) == ("0.9", "0.81")
    assert digits(1.00001, 1.00002) == ("1.00001", "1.00002")


def test_same_sees_shape_dtype_nan_and_infinity():
    """Values within a relative bound are the same; a nan is the same as a nan alone."""
    one = torch.ones(2, dtype=torch.float64)
    assert same(one, one + 1e-12, 1e-9)
    assert not same(one, one + 1e-6, 1e-9)
    assert not same(one, one[:1], 1e-9)
    assert not same(one.float(), one, 1e-9)
    assert not same(one * torch.nan, one, 1e-9)
    assert same(one * torch.nan, one * torch.nan, 1e-9)
    assert same(one * torch.inf, one * torch.inf, 1e-9)
    assert not same(one, one * torch.inf, 1e-9)
    assert not same(None, one, 1e-9)
    assert not same(1, True, 1e-9)
    assert allowed(0.0, 1e-9) < 1e-12 < allowed(0.0, 0.1)


def test_blanks_keep_signatures_and_docstrings():
    """A blank differs from ours in its body alone, the rest of the file in nothing."""
    for module in MODULES:
        ours = ast.parse((OURS / f"{module}.py").read_text(encoding="utf-8"))
        theirs = ast.parse(blanked(module))
        for e in EXERCISES:
            if e.module != module:
                continue
            a, b = find(ours, e.function), find(theirs, e.function)
            assert ast.dump(a.args) == ast.dump(b.args)
            assert ast.get_docstring(a) == ast.get_docstring(b)
            assert ast.dump(b) != ast.dump(a)
            a.body = b.body = []
        theirs.body = [
            n
            for n in theirs.body
            if not (isinstance(n, ast.ImportFrom) and n.module == "exercises.borrow")
        ]
        assert ast.dump(ours) == ast.dump(theirs)
        longest = max(map(len, blanked(module).splitlines()))
        assert longest <= 88, module


def test_a_verdict_is_plain_text():
    """It goes through a pipe as JSON."""
    verdict = judge(NAMED["eq2"], lambda *a: None)
    assert all(isinstance(x, str) for x in verdict)
    assert isinstance(verdict, Verdict)
