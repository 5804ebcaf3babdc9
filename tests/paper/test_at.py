"""The index function that every equation reads its tables with, and its refusals."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode

from tinyddpm import at, linear_schedule, q_posterior, schedule
from tinyddpm.schedule import check_index, check_range

from ..helpers import SHAPE, WRONG_SHAPES, shape_refused
from ..strategies import dtypes, schedules, shapes


@given(schedules(max_T=50), shapes, dtypes, st.data())
def test_at_picks_each_items_entry_for_any_rank(s, shape, dtype, data):
    """at(table, t, like)[b] = table[t_b], shaped (B, 1, ..., 1), in float64.

    Several tables are looked up together, and come one after another.
    """
    t = data.draw(st.lists(st.integers(0, s.T), min_size=shape[0], max_size=shape[0]))
    like = torch.zeros(shape, dtype=dtype)
    entries = at(s.alpha_bar, torch.tensor(t), like, first=0)
    assert entries.dtype == torch.float64
    assert tuple(entries.shape) == (shape[0],) + (1,) * (len(shape) - 1)
    assert entries.flatten().tolist() == [float(s.alpha_bar[i]) for i in t]
    beta, alpha_bar = at([s.beta, s.alpha_bar], torch.tensor(t), like, first=0)
    assert torch.equal(alpha_bar, entries)
    assert torch.equal(beta, at(s.beta, torch.tensor(t), like, first=0))


@given(schedules(max_T=50), shapes, st.sampled_from([0, 1, 2]), st.data())
def test_at_takes_every_step_from_first_to_T(s, shape, first, data):
    """first..T is taken, first - 1 and T + 1 are refused, alone or among good ones."""
    first, x = min(first, s.T), torch.zeros(shape)
    good = st.lists(st.integers(first, s.T), min_size=shape[0], max_size=shape[0])
    t = torch.tensor(data.draw(good))
    for taken in (t, torch.full_like(t, first), torch.full_like(t, s.T)):
        at(s.beta, taken, x, first)
    for bad in (first - 1, s.T + 1):
        t[data.draw(st.integers(0, shape[0] - 1))] = bad
        low, high = int(t.min()), int(t.max())
        message = rf"^t must lie in {first}\.\.{s.T}, got {low}\.\.{high}$"
        with pytest.raises(ValueError, match=message):
            at(s.beta, t, x, first)
        t.fill_(first)


def test_at_starts_at_1_unless_told():
    """The paper's t is 1..T; 0 is asked for by name where eq. 4 means x_0."""
    with pytest.raises(ValueError, match=r"t must lie in 1\.\.1000, got 0\.\.0"):
        at(linear_schedule().beta, torch.zeros(2, dtype=torch.long), torch.zeros(2, 3))


@pytest.mark.parametrize("t", [-1, -50, 51, 1000])
def test_at_refuses_what_python_would_wrap(monkeypatch, t):
    """Plain indexing reads -1 as T, in silence; the look-up itself refuses it.

    Where the values of t are not looked at, on a GPU, this is what stands behind them.
    """
    monkeypatch.setattr(schedule, "check_range", lambda *_: None)
    with pytest.raises(IndexError, match="out of range"):
        at(linear_schedule(50).alpha_bar, torch.tensor([t]), torch.zeros(1))


class NoWaiting(TorchFunctionMode):
    """Refuses what makes the host wait for a device: fetching a tensor's values."""

    FETCHES = ("cpu", "item", "tolist", "numpy", "__bool__", "__int__", "__float__")

    def __torch_function__(self, f, types, args=(), kwargs=None):
        assert f.__name__ not in self.FETCHES, f"{f.__name__} waits for the device"
        return f(*args, **(kwargs or {}))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_at_never_makes_the_host_wait(monkeypatch, device):
    """On a device no value of t or of a table is fetched, and the look-up is there.

    "meta" tensors have no values to fetch. With a CPU's, the branch that a GPU takes is
    taken by saying that a graph is being compiled.
    """
    s, like = linear_schedule(50), torch.zeros(4, 3, 2, device=device)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    t = torch.tensor([1, 2, 50, 50], device=device)
    with NoWaiting():
        entries = at([s.beta, s.alpha_bar], t, like, other=like)
    assert entries.device.type == device
    assert entries.shape == (2, 4, 1, 1)


def test_what_a_gpu_runs_refuses_a_wrong_step(monkeypatch):
    """As compiled: the kernel takes t = 1 and stops below it, and says at what."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    s, x = linear_schedule(50), torch.zeros(2, 3)
    at(s.beta, torch.tensor([1, 50]), x)
    with pytest.raises(RuntimeError, match=r"t must lie in 1\.\.50, got one below 1"):
        at(s.beta, torch.tensor([1, 0]), x)


@pytest.mark.slow  # torch.compile takes seconds to wake up
@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_compiled_a_wrong_step_stops_the_kernel(backend):
    """In one graph, without a look at t: 1..T is taken, 0, -1 and T + 1 are refused.

    Without the line of `check_range` that a GPU runs too, inductor reads -1 as T.
    """
    s, x = linear_schedule(50), torch.ones(2, 3)

    def eq_7(t):
        return q_posterior(s, x, x, t)[0]

    compiled = torch.compile(eq_7, fullgraph=True, backend=backend)
    t = torch.tensor([1, 50])
    torch.testing.assert_close(compiled(t), eq_7(t))
    for bad in (0, -1):
        with pytest.raises(
            RuntimeError, match=r"t must lie in 1\.\.50, got one below 1"
        ):
            compiled(torch.tensor([1, bad]))
    with pytest.raises((RuntimeError, IndexError), match="out of"):
        compiled(torch.tensor([1, 51]))


def test_an_entry_can_be_kept_for_the_backward_pass():
    """Tables are ordinary tensors; autograd refuses those made in inference mode."""
    s = linear_schedule()
    for name in ("beta", "alpha", "alpha_bar", "beta_tilde"):
        table = getattr(s, name)
        assert not table.is_inference()
        assert not at(table, torch.tensor([1]), torch.zeros(1, 2)).is_inference()


@given(shapes)
def test_an_empty_batch_has_no_wrong_step(shape):
    """B = 0 passes, with entries of shape (0, 1, ..., 1): there is no t to be wrong."""
    t, x = torch.zeros(0, dtype=torch.long), torch.zeros(0, *shape)
    entries = at(linear_schedule().beta, t, x)
    assert tuple(entries.shape) == (0,) + (1,) * len(shape)


@pytest.mark.parametrize(
    ("t", "message"),
    [
        (torch.ones(4, dtype=torch.int32), "got torch.int32"),
        (torch.ones(4), "got torch.float32"),
        (torch.ones(4, dtype=torch.bool), "got torch.bool"),
        (5, "got int"),
        ([1, 2, 3, 4], "got list"),
        (None, "got NoneType"),
        (torch.ones(3, dtype=torch.long), r"\(4, 2\), got \(3,\)"),
        (torch.ones(1, dtype=torch.long), r"\(4, 2\), got \(1,\)"),
        (torch.ones((), dtype=torch.long), r"\(4, 2\), got \(\)"),
        (torch.ones(4, 1, dtype=torch.long), r"\(4, 2\), got \(4, 1\)"),
        (torch.ones(4, 2, dtype=torch.long), r"\(4, 2\), got \(4, 2\)"),
    ],
)
def test_t_of_another_kind_is_refused(t, message):
    """t is a LongTensor (B,); anything that would broadcast is named and refused."""
    with pytest.raises(ValueError, match=rf"^t must be .*{message}$"):
        at(linear_schedule().beta, t, torch.zeros(4, 2))


def test_a_batch_without_an_axis_is_refused():
    """A number has no batch axis for t to stand beside."""
    with pytest.raises(ValueError, match=r"items of a batch \(\), got \(\)$"):
        at(linear_schedule().beta, torch.tensor(1), torch.tensor(1.0))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.long, torch.bool])
def test_8_bit_pictures_are_refused(dtype):
    """The formulas are for data scaled to [-1, 1]; the error says what scales."""
    with pytest.raises(ValueError, match=f"floating point, got {dtype}; to_float"):
        at(linear_schedule().beta, torch.ones(2).long(), torch.ones(2, 3, dtype=dtype))


@pytest.mark.parametrize("shape", WRONG_SHAPES)
def test_what_stands_beside_must_have_the_same_shape(shape):
    """Each further tensor that an equation names has the batch's own shape."""
    t, x = torch.ones(4, dtype=torch.long), torch.zeros(SHAPE)
    at(linear_schedule().beta, t, x, eps=x, z=x)
    with pytest.raises(ValueError, match=shape_refused("z", shape)):
        at(linear_schedule().beta, t, x, eps=x, z=torch.zeros(shape))


def test_a_class_is_checked_as_t_is():
    """The same two doors serve the class c of a picture, by its own name."""
    c, x = torch.tensor([0, 4]), torch.zeros(2, 3)
    check_index("c", c, x)
    check_range("c", c, 0, 4)
    with pytest.raises(ValueError, match=r"^c must be a LongTensor of shape \(B,\)"):
        check_index("c", c.double(), x)
    with pytest.raises(ValueError, match=r"^c must lie in 0\.\.3, got 0\.\.4$"):
        check_range("c", c, 0, 3)
