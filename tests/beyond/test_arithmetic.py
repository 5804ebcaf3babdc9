"""The arithmetic coder: symbols of known probability to bits, and back."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from tinyddpm.beyond.arithmetic import PRECISION, Reader, Writer, cumulative

from ..strategies import normal

# Laws of 1 to 300 symbols; weights down to 0, which must still be sendable.
weights = st.lists(st.floats(0, 1), min_size=1, max_size=300).filter(any)


@example([1.0, 1.0, 1.0])  # all are the likeliest, and one takes what is left
@given(weights)
def test_every_symbol_has_a_place(p):
    """The tables hold whole counts that sum to 2^40, each within a few counts of its
    share, and one where that is 0. A likelier symbol never has fewer, and what rounding
    leaves is not taken from the likeliest but given to it.
    """
    p = torch.tensor(p, dtype=torch.float64)
    table = cumulative(p)
    counts = table.diff()
    assert int(table[0]) == 0
    assert int(table[-1]) == 1 << PRECISION
    assert int(counts.min()) >= 1
    share_of = (p / p.sum() * 2**PRECISION).round()
    assert float((counts - share_of).abs().max()) <= 2 * len(p) + 2
    assert bool((counts[p / p.sum() < 2.0**-50] == 1).all())
    rising = sorted(zip(p.tolist(), counts.tolist(), strict=True))
    assert all(x[1] <= y[1] for x, y in pairwise(rising))
    assert int(counts[p.argmax()]) == int(counts.max())


def test_each_law_of_a_batch_has_the_table_that_it_has_alone():
    """(..., n) -> (..., n + 1)."""
    p = normal(0, (3, 2, 5)).abs()
    tables = cumulative(p)
    assert tables.shape == (3, 2, 6)
    for i in range(3):
        for j in range(2):
            assert torch.equal(tables[i, j], cumulative(p[i, j]))


@given(st.data())
def test_symbols_come_back_and_cost_their_information(data):
    """What was written is read, by tables alone; the message has at most
    Σ -log2 p + 1 bits, filled up to whole bytes, and no fewer than it needs.
    """
    laws = data.draw(st.lists(weights, max_size=40))
    symbols = [data.draw(st.integers(0, len(p) - 1)) for p in laws]
    tables = [cumulative(torch.tensor(p, dtype=torch.float64)) for p in laws]
    writer, spent = Writer(), 0.0
    for table, symbol in zip(tables, symbols, strict=True):
        writer.write(table, symbol)
        spent += PRECISION - math.log2(int(table[symbol + 1] - table[symbol]))
    assert writer.bits == pytest.approx(spent, abs=1e-6)
    message = writer.message()
    assert 8 * len(message) < spent + 1e-6 + 1 + 8
    reader = Reader(message)
    assert [reader.read(table) for table in tables] == symbols


def test_a_likely_message_is_short():
    """1,000 symbols of probability 0.999 cost 1,000 · 0.00144 = 1.4 bits: one byte."""
    table = cumulative(torch.tensor([0.999, 0.001]).double())
    writer = Writer()
    for _ in range(1000):
        writer.write(table, 0)
    assert len(writer.message()) == 1
    assert Writer().message() == b""
