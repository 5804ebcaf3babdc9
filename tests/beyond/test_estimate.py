"""The bound for many pictures: in pieces it is eq. 5, with sampled t an estimate."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tinyddpm import (
    Schedule,
    bits_per_dim,
    bound,
    linear_schedule,
    rate_distortion,
    to_float,
    to_uint8,
)
from tinyddpm.beyond import estimate
from tinyddpm.beyond.estimate import draw_t, estimate_bits_per_dim
from tinyddpm.beyond.gradients import gradient_images
from tinyddpm.beyond.oracle import gradient_oracle

from ..helpers import (
    constant,
    gaussian,
    quiet,
    random_pictures,
    same_bounds,
    some_network,
    terms_of_constant,
)
from ..strategies import choices_of_sigma2, normal, seeds, share


@share(40)
@given(
    st.integers(1, 4),
    st.integers(2, 12),
    st.integers(1, 20),
    choices_of_sigma2,
    st.booleans(),
    seeds,
)
def test_with_every_t_it_is_the_plain_sum(N, T, chunk, sigma2, clip_x_0, seed):
    """Eq. 5: with the same ε for each picture and t, the terms of `bits_per_dim`.

    It goes from t = 1 to T, all pictures of a t together, in pieces of any size; the
    sum goes from T to 1. So the noise is dealt out here to both, by t. A picture's
    error is averaged in another way: a rounding.
    """
    s, x_0 = quiet(linear_schedule, T, 1e-2, 0.7), random_pictures(seed, (N, 1, 2, 3))
    eps = normal(seed, (T, *x_0.shape), torch.float32)
    from_T, from_1 = iter(eps.flip(0)), iter(eps.flatten(0, 1))

    def in_pieces(x, generator):
        return torch.stack(list(itertools.islice(from_1, len(x))))

    choices = {"sigma2": sigma2} | ({"clip_x_0": True} if clip_x_0 else {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bound, "randn_like", lambda x, generator: next(from_T))
        patch.setattr(estimate, "randn_like", in_pieces)
        whole = bits_per_dim(s, some_network, x_0, **choices)
        pieces = estimate_bits_per_dim(s, some_network, x_0, chunk=chunk, **choices)
    for name, a, b in zip(whole._fields, whole, pieces, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14, msg=name)
    assert next(from_T, None) is next(from_1, None) is None


@pytest.mark.parametrize("chunk", [1, 2, 5, 1000])
def test_calls_are_full_and_progress_is_told(chunk):
    """N T pictures, each t of 1..T N times; t = 1 is never in a call with another t."""
    s, net, x_0 = constant(N=5, T=12)
    told = []
    estimate_bits_per_dim(
        s, net, x_0, chunk=chunk, progress=lambda *seen: told.append(seen)
    )
    asked = list(itertools.chain(*net.asked))
    assert sorted(asked) == sorted(list(range(1, 13)) * 5)
    sizes = list(map(len, net.asked))
    ones = sum(t == 1 for t in asked)
    assert asked[:ones] == [1] * ones
    full = [*[chunk] * (5 // chunk), 5 % chunk, *[chunk] * (55 // chunk), 55 % chunk]
    assert sizes == [n for n in full if n]
    assert told == [(seen, 60) for seen in itertools.accumulate(sizes)]


def test_a_call_has_128_pictures_unless_told():
    """30 pictures at t = 1, then 11 · 30 in calls of 128."""
    s, net, x_0 = constant(N=30, T=12)
    estimate_bits_per_dim(s, net, x_0)
    assert list(map(len, net.asked)) == [30, 128, 128, 74]


@pytest.mark.parametrize("draws", [None, 4])
def test_it_leaves_the_network_and_the_random_state_alone(draws):
    """Training flags are as found, torch's own generator is not touched, nor its
    default device asked, and equal seeds give equal estimates."""
    s, net, x_0 = constant()
    net.train()
    before, g = torch.get_rng_state(), torch.Generator()

    def run(eps_theta, x_0):
        return estimate_bits_per_dim(s, eps_theta, x_0, g.manual_seed(3), draws=draws)

    assert same_bounds(run(gaussian(s), x_0.float()), run(gaussian(s), x_0.float()))
    here = run(net, x_0)
    with torch.device("meta"):
        there = run(net, x_0)
    assert same_bounds(here, there)
    assert torch.equal(torch.get_rng_state(), before)
    assert net.training
    assert net.dropout.training


@pytest.mark.parametrize("draws", [1, 4, 30])
def test_sampled_t_is_unbiased_and_knows_its_error(draws):
    """E over t of Σ L_{t-1} / (draws P(t)) is Σ_t L_{t-1}, column by column too.

    4,000 copies of one picture and a network whose terms are known: the estimate is
    within 5 of its standard errors (false alarm 6e-7, and as much for each column).
    Power: one of them is below 2 % of the sum.
    """
    s, net, x_0 = constant(N=1)
    exact = terms_of_constant(s, net, x_0)[0]
    g = torch.Generator().manual_seed(1)
    bound = estimate_bits_per_dim(s, net, x_0.expand(4000, -1, -1, -1), g, draws=draws)
    total = float(bound.L_tm1.sum(1).mean())
    error = float(bound.L_tm1.sum(1).std()) / 4000**0.5
    aim = float(exact[2:].sum())
    assert abs(total - aim) <= 5 * error
    assert error < 0.02 * aim
    column = bound.L_tm1.mean(0)
    spread = bound.L_tm1.std(0) / 4000**0.5
    assert bool(((column - exact).abs() <= 5 * spread)[2:].all())
    assert bool((column[2:] > 0).all())
    # Of the `draws` parts, P(t) draws lie in t whole: the others are at its two ends.
    P = torch.arange(2, s.T + 1).double() ** -1.5
    hits = draws * P / P.sum()
    drawn = bound.L_tm1[:, 2:] / exact[2:] * hits
    torch.testing.assert_close(drawn, drawn.round(), rtol=0, atol=1e-6)
    assert float((drawn - hits).abs().max()) < 2
    off = (x_0 - net.x_0_hat).square().mean().double()
    mse = torch.where(drawn > 0.5, off, torch.nan)  # nan where t was not drawn
    torch.testing.assert_close(bound.mse[:, 2:], mse, equal_nan=True)
    torch.testing.assert_close(bound.L_0, exact[1].expand(4000))  # never sampled
    assert sum(map(len, net.asked)) == 4000 * (draws + 1)


def test_t_is_drawn_as_the_terms_fall():
    """Table 4: most of the rate is in the last steps. With the exact predictor of the
    gradients, t drawn as t^-1.5 has less than a sixth of the deviation of uniform t.

    n = 2,000 pictures, one t each; uniform t by hand from the terms of every t of 100
    of them. The ratio is 9.5 to 9.7 for three seeds: six is far out of its error.
    """
    s, g = linear_schedule(200), torch.Generator().manual_seed(0)
    x_0 = to_float(to_uint8(gradient_images(2000, 3, 3, g)))
    oracle = gradient_oracle(s, 3, 3)
    terms = estimate_bits_per_dim(s, oracle, x_0[:100], g).L_tm1
    uniform = (199 * terms[:, 2:]).std()
    sampled = estimate_bits_per_dim(s, oracle, x_0, g, draws=1).L_tm1.sum(1)
    assert float(sampled.std()) < float(uniform) / 6


def test_a_sampled_bound_shows_the_distortion_it_saw():
    """Where t was drawn the error is that of the whole bound; where it was not, nan."""
    s, net, x_0 = constant(N=4)
    whole = bits_per_dim(s, net, x_0)
    g = torch.Generator().manual_seed(0)
    some = estimate_bits_per_dim(s, net, x_0, g, draws=2)
    drawn = ~some.mse.isnan()
    assert set(drawn[:, 1:].sum(1).tolist()) <= {2, 3}  # t = 1, and one or two others
    assert bool(drawn[:, :2].all())
    torch.testing.assert_close(some.mse[drawn], whole.mse[drawn])
    _, distortion = rate_distortion(some)
    assert torch.equal(distortion.isnan(), ~drawn.any(0))
    both = drawn.all(0)
    torch.testing.assert_close(distortion[both], rate_distortion(whole)[1][both])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_0": torch.zeros(2, 1, 2, 2)}, "8-bit pictures"),
        (
            {"x_0": torch.zeros(0, 1, 2, 2)},
            "^need a picture and chunk >= 1, got 0 and 128$",
        ),
        ({"chunk": 0}, "^need a picture and chunk >= 1, got 2 and 0$"),
        ({"draws": 0}, r"^draws must be >= 1, of t = 2\.\.T, got 0 and T = 10$"),
        ({"sigma2": "learned"}, "'beta', 'beta_tilde' or"),
        ({"s": Schedule([0.9]), "draws": 1}, r"draws must be >= 1.* T = 1"),
    ],
)
def test_bad_input_is_refused(change, message):
    """Errors are sentences that name what was given and what was expected."""
    arguments = {
        "s": linear_schedule(10, 1e-2, 0.8),
        "eps_theta": lambda x, t: x,
        "x_0": random_pictures(0, (2, 1, 2, 2)),
    }
    with pytest.raises(ValueError, match=message):
        estimate_bits_per_dim(**arguments | change)


@pytest.mark.parametrize("draws", [None, 2])
def test_what_terms_count_for_is_float64(draws):
    """As the terms are, whether every t is taken or some are drawn."""
    s = quiet(linear_schedule, 9, 0.1, 0.4)
    t, weight = draw_t(s, torch.zeros(4, 3), draws, None)
    assert (t.dtype, weight.dtype) == (torch.int64, torch.float64)
    assert t.shape == weight.shape
