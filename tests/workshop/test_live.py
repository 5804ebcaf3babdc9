"""live.html holds what it was given, and its JavaScript computes what Python does.

The second half needs Debian's Chromium and the extra [browser], and is skipped without.
"""

import base64
import json
import math
import re
import shutil
import struct
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from tests.strategies import normal
from tinyddpm.beyond.gradients import gradient_images
from tinyddpm.beyond.oracle import gradient_oracle
from tinyddpm.forward import q_posterior, q_sample
from tinyddpm.mlp import MLP
from tinyddpm.sampler import p_sample_loop, predict_x_0
from tinyddpm.schedule import Schedule, linear_schedule
from tinyddpm.workshop.checkpoint import description
from tinyddpm.workshop.live import PLACE, TEMPLATE, save_live

COMMITTED = Path(__file__).parents[2] / "docs" / "live" / "live.html"


class Page(HTMLParser):
    """What a page refers to, and the JSON in it."""

    def __init__(self, path):
        super().__init__()
        self.refers_to, self.inside, self.json = [], None, ""
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.inside = attributes.get("type")
        self.refers_to += [v for k, v in attrs if k in ("src", "href", "srcset")]

    def handle_data(self, data):
        if self.inside == "application/json":
            self.json += data

    def handle_endtag(self, tag):
        self.inside = None


def read(path):
    """The schedule and the network that a page holds."""
    held = json.loads(Page(path).json)
    numbers = struct.iter_unpack("<f", base64.b64decode(held["float32"]))
    flat = torch.tensor([x for (x,) in numbers])
    shapes = held["weights"].values()
    parts = flat.split([math.prod(shape) for shape in shapes])
    tensors = [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
    weights = dict(zip(held["weights"], tensors, strict=True))
    width = len(weights["first.bias"])
    net = MLP(tuple(held["shape"]), width, held["depth"], held["emb"])
    net.load_state_dict(weights)
    assert held["beta"][0] == 0  # β_0 of a table of T + 1 entries
    return Schedule(torch.tensor(held["beta"][1:], dtype=torch.float64)), net


def random_mlp(seed, shape, width=8, depth=2, emb=8):
    """A network of random weights, none 0 as the last ones of a new network are.

    ε_θ is about x_t, so that Algorithm 2 ends near 0 and not beyond all levels.
    """
    net = MLP(shape, width, depth, emb)
    for i, p in enumerate(net.parameters()):
        p.data = normal(seed + i, tuple(p.shape), torch.float32) / 8
    net.gate.bias.data += 1
    return net


@pytest.mark.parametrize("shape", [(3, 2, 3), (3, 1, 4)])
def test_the_page_holds_the_schedule_and_the_weights(tmp_path, shape):
    """Every β_t to its last digit, T of them, and every weight bit for bit."""
    s, net = linear_schedule(25), random_mlp(0, shape)
    save_live(tmp_path / "live.html", s, net)
    held_s, held_net = read(tmp_path / "live.html")
    assert held_s.T == 25
    assert torch.equal(held_s.beta, s.beta)
    expected = net.state_dict()
    held = held_net.state_dict()
    assert list(held) == list(expected)
    assert all(torch.equal(held[name], expected[name]) for name in expected)


def test_the_page_refers_to_nothing(tmp_path):
    """No address in an attribute but an empty icon, none in the style or the script."""
    path = tmp_path / "live.html"
    save_live(path, linear_schedule(25), random_mlp(0, (3, 2, 3)))
    assert Page(path).refers_to == ["data:,"]
    forbidden = r"https?:|url\(|@import|\bimport\b|fetch\(|XMLHttpRequest|WebSocket"
    assert re.findall(forbidden, path.read_text("utf-8")) == []


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (MLP((1, 4, 4)), r"MLP of shape \(1, 4, 4\)"),
        (MLP((3, 16)), r"MLP of shape \(3, 16\)"),
        (torch.nn.Linear(2, 2), "Linear of shape None"),
    ],
)
def test_other_networks_are_refused_before_a_file_is_made(tmp_path, net, message):
    """The page knows colour gradients, and the toy's network, alone."""
    with pytest.raises(ValueError, match=message):
        save_live(tmp_path / "live.html", linear_schedule(25), net)
    assert list(tmp_path.iterdir()) == []


def test_the_page_of_the_documentation_is_of_this_template():
    """docs/live/live.html is what save_live writes today, and below 700 kB.

    Where it is not, docs/live.md says how to make it again.
    """
    before, after = TEMPLATE.read_text("utf-8").split(PLACE)
    page = COMMITTED.read_text("utf-8")
    assert page.startswith(before)
    assert page.endswith(after)
    assert COMMITTED.stat().st_size < 700_000


def test_the_network_of_the_documentation_is_trained():
    """‖ε_θ - ε*‖² is below a hundredth of ‖ε*‖², the loss of the answer 0."""
    s, net = read(COMMITTED)
    _, H, W = net.shape
    generator = torch.Generator().manual_seed(0)
    x_0 = gradient_images(200, H, W, generator)
    t = torch.tensor([1, s.T // 4, s.T // 2, s.T]).repeat(50)
    x_t = q_sample(s, x_0, t, torch.randn(x_0.shape, generator=generator))
    best = gradient_oracle(s, H, W)(x_t, t)
    with torch.no_grad():
        off = net(x_t, t) - best
    assert float(off.square().sum()) < float(best.square().sum()) / 100


@pytest.fixture(scope="module")
def chromium():
    """A headless browser without a network."""
    sync_api = pytest.importorskip(
        "playwright.sync_api",
        reason="the extra [browser] is not installed",
    )
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("Chromium is not installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program)
        yield browser
        browser.close()


def opened(chromium, path, **options):
    """The page, with a list of what it asked for and of what it complained of."""
    page = chromium.new_context(offline=True, **options).new_page()
    page.asked_for, page.complaints = [], []
    page.on("request", lambda request: page.asked_for.append(request.url))
    page.on("console", lambda message: page.complaints.append(message.text))
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.goto(path.as_uri())
    return page


@pytest.fixture(scope="module", params=["small", "one row", "documentation"])
def live(request, chromium, tmp_path_factory):
    """(page, s, the network in float64)."""
    path = COMMITTED
    if request.param != "documentation":
        path = tmp_path_factory.mktemp("live") / "live.html"
        shape = (3, 2, 3) if request.param == "small" else (3, 1, 4)
        save_live(path, linear_schedule(25), random_mlp(0, shape))
    s, net = read(path)
    return opened(chromium, path), s, net


def noisy_gradients(s, net, seed):
    """(t, x_t) at t = 1, T and three between, x_t by eq. 4, float64."""
    for t in (1, 2, s.T // 2, s.T - 1, s.T):
        generator = torch.Generator().manual_seed(seed + t)
        x_0 = gradient_images(1, *net.shape[1:], generator).double()
        step, eps = torch.tensor([t]), normal(seed + t, x_0.shape)
        yield step, q_sample(s, x_0, step, eps)


def called(page, name, *arguments):
    """window.tinyddpm[name](...arguments), pictures being flat there."""
    plain = [
        x.flatten().tolist() if isinstance(x, torch.Tensor) and x.ndim > 1 else x
        for x in arguments
    ]
    plain = [int(x) if isinstance(x, torch.Tensor) else x for x in plain]
    script = "([name, x]) => Array.from(window.tinyddpm[name](...x))"
    return torch.tensor(page.evaluate(script, [name, plain]), dtype=torch.float64)


@pytest.mark.slow
def test_eps_theta_and_x_0_hat_are_python_s(live):
    """ε_θ(x_t, t) and eq. 15: to 1e-10 in float64, where both have 15 digits, and to
    1e-5 in the float32 that the network was trained in."""
    page, s, net = live
    exact = MLP(**description(net)[1]).double()
    exact.load_state_dict(net.state_dict())
    for t, x_t in noisy_gradients(s, net, seed=1):
        with torch.no_grad():
            eps_hat, single = exact(x_t, t), net(x_t.float(), t).double()
        found = called(page, "eps_theta", x_t, t).view_as(x_t)
        torch.testing.assert_close(found, eps_hat, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(found, single, rtol=1e-5, atol=1e-5)
        x_0_hat = called(page, "predict_x_0", x_t, t, eps_hat).view_as(x_t)
        expected = predict_x_0(s, x_t, t, eps_hat)
        torch.testing.assert_close(x_0_hat, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)]
)
def test_a_whole_reverse_process_is_python_s(live, dtype, tolerance):
    """Algorithm 2 from one x_T and one z for each t: every x_t, t = T..0."""
    page, s, net = live
    x_T = normal(2, (1, *net.shape), dtype)
    same = MLP(**description(net)[1]).to(dtype)
    same.load_state_dict(net.state_dict())
    loop = p_sample_loop(s, same, x_T, torch.Generator().manual_seed(3))
    path = {t: x_t.double() for t, x_t, _ in loop}
    again = torch.Generator().manual_seed(3)
    z = [torch.randn(x_T.shape, generator=again, dtype=dtype) for _ in range(s.T)]
    noise = [[], *(z_t.flatten().tolist() for z_t in reversed(z))]  # z[t] for 1..T
    found = page.evaluate(
        "([x_T, z]) => window.tinyddpm.reverse(x_T, z).map((x) => Array.from(x))",
        [x_T.flatten().tolist(), noise],
    )
    assert len(found) == s.T + 1
    for t, x_t in path.items():
        apart = torch.tensor(found[t], dtype=torch.float64).view_as(x_t) - x_t
        assert float(apart.abs().max()) < tolerance, t


@pytest.mark.slow
def test_the_exact_x_0_hat_is_the_oracle_s(live):
    """E[x_0|x_t] = eq. 15 of ε*, to 1e-6, in float64 on both sides."""
    page, s, net = live
    oracle = gradient_oracle(s, *net.shape[1:])
    for t, x_t in noisy_gradients(s, net, seed=4):
        found = called(page, "exact_x_0", x_t, t).view_as(x_t)
        expected = predict_x_0(s, x_t, t, oracle(x_t, t))
        assert float((found - expected).abs().max()) < 1e-6, int(t)


@pytest.mark.slow
def test_eq_7_is_python_s(live):
    """μ̃_t and β̃_t of one number, for every t; c_0 x_0 + c_t x_t is that μ̃_t."""
    page, s, _ = live
    x_t, x_0 = 0.7, -0.4
    for t in range(1, s.T + 1):
        found = page.evaluate("x => window.tinyddpm.q_posterior(...x)", [x_t, x_0, t])
        now = torch.full((1, 1), x_t).double(), torch.full((1, 1), x_0).double()
        mu_tilde, variance = q_posterior(s, *now, torch.tensor([t]))
        assert found["mu_tilde"] == pytest.approx(float(mu_tilde), abs=1e-6)
        assert found["variance"] == pytest.approx(float(variance), abs=1e-12)
        assert found["c_0"] * x_0 + found["c_t"] * x_t == found["mu_tilde"]


@pytest.mark.slow
def test_the_page_s_noise_is_normal(live):
    """20,000 numbers of a seed against N(0, 1) by Kolmogorov's test: D_n √n < 1.95,
    which is exceeded by chance in 1 of 1,000 seeds; another seed gives others."""
    page, _, _ = live
    n = 20_000
    z = called(page, "normal", 1, 0, n)
    u = (1 + torch.erf(z / math.sqrt(2))).sort().values / 2
    above = torch.arange(1, n + 1, dtype=torch.float64) / n - u
    assert float(torch.maximum(above, 1 / n - above).max()) * math.sqrt(n) < 1.95
    assert torch.equal(called(page, "normal", 1, 100, 9), z[100:109])
    other = called(page, "normal", 2, 0, n)
    # uncorrelated: within 4.5 standard errors 1/√n, exceeded in 7 of a million
    assert abs(float((z * other).mean())) < 4.5 / math.sqrt(n)


@pytest.mark.slow
def test_the_pictures_are_x_t_and_the_predictions(live):
    """At t = 0 x_t shows x_0, which the last step makes x̂_0(x_1) (β̃_1 = 0)."""
    page, _, net = live
    page.evaluate("show(0)")
    pixels = """id => Array.from(document.getElementById(id).getContext("2d")
                .getImageData(0, 0, W, H).data)"""
    x_0 = torch.tensor(page.evaluate("Array.from(path[0])"), dtype=torch.float64)
    levels = ((x_0 + 1) * 127.5).clamp(0, 255).view(net.shape)
    for name in ("x_t", "x_0_hat"):
        shown = torch.tensor(page.evaluate(pixels, name)).view(*net.shape[1:], 4)
        assert bool((shown[..., 3] == 255).all())
        apart = shown[..., :3].permute(2, 0, 1) - levels
        assert float(apart.abs().max()) < 0.501  # the nearest level
    page.evaluate("show(T)")


@pytest.mark.slow
def test_every_control_does_what_it_says(chromium):
    """By keyboard and by mouse; no request but the page itself, no complaint."""
    page = opened(chromium, COMMITTED)
    s, net = read(COMMITTED)
    t = page.locator("#t")
    now = page.locator("#now")

    def stops_at(step):
        return now.inner_text() == str(step)

    reached = []
    for _ in range(8):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id"))
    assert reached == ["play", "step", "new", "seed", "t", "row", "column", "channel"]
    assert stops_at(s.T)
    t.press("ArrowRight")  # towards the picture
    assert stops_at(s.T - 1)
    page.locator("#step").press("Enter")
    page.locator("#play").press("Space")
    page.wait_for_function("Number(document.getElementById('now').textContent) < T - 5")
    page.locator("#play").click()
    assert page.locator("#play").inner_text() == "Play"
    paused = now.inner_text()
    page.wait_for_timeout(300)
    assert stops_at(paused)
    page.evaluate("show(2)")
    page.locator("#play").click()
    page.wait_for_function("document.getElementById('play').textContent === 'Play'")
    assert stops_at(0)
    first, seed = page.evaluate("[Array.from(path[T]), element('seed').value]")
    page.locator("#new").click()
    assert page.locator("#seed").input_value() == str(int(seed) + 1)
    assert stops_at(s.T)
    assert page.evaluate("Array.from(path[T])") != first
    page.locator("#seed").fill(seed)
    page.locator("#seed").press("Enter")
    assert page.evaluate("Array.from(path[T])") == first
    _, H, W = net.shape
    box = page.locator("#exact").bounding_box()
    page.mouse.click(box["x"] + box["width"] - 3, box["y"] + box["height"] - 3)
    assert page.locator("#row").input_value() == str(H)
    assert page.locator("#column").input_value() == str(W)
    page.locator("#channel").select_option("blue")
    last = page.evaluate("path[T][D - 1].toFixed(3)").replace("-", "−")
    assert last in page.locator("#numbers").inner_text()
    assert page.locator("#plot path.q").count() == 2  # the Gaussian and its mean
    assert [url for url in page.asked_for if url != "data:,"] == [COMMITTED.as_uri()]
    assert page.complaints == []


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 768, 1440])
def test_it_fits_and_follows_the_colour_scheme(chromium, width):
    """Nothing is wider than the window, at any t; text and page swap their shades."""
    shades = {}
    for scheme in ("light", "dark"):
        viewport = {"width": width, "height": 800}
        page = opened(chromium, COMMITTED, viewport=viewport, color_scheme=scheme)
        for t in (0, 1, 50, read(COMMITTED)[0].T):
            page.evaluate("t => show(t)", t)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        colours = page.evaluate(
            "[getComputedStyle(document.body).color, "
            "getComputedStyle(document.body).backgroundColor]"
        )
        shades[scheme] = [
            sum(map(int, re.findall(r"\d+", colour))) for colour in colours
        ]
    (text, page_), (text_dark, page_dark) = shades["light"], shades["dark"]
    assert text < 200 < 700 < page_
    assert page_dark < 200 < 600 < text_dark
