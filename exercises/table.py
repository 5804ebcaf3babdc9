"""The exercises in the order of the paper: what is asked, where, and three hints each.

Nothing here imports torch, so that the list appears at once.
"""

from typing import NamedTuple


class Exercise(NamedTuple):
    """One blank to fill in."""

    name: str  # on the command line
    source: str  # in the paper
    module: str  # of tinyddpm/ and my_ddpm/
    function: str  # or Class.method
    asks: str
    write: str  # the comment in the blank; a line for each line
    hints: tuple[str, str, str]  # a nudge, what to use, and nearly the line itself
    given: tuple[int, int] = (0, 0)  # statements kept before and after the blank

    @property
    def path(self) -> str:
        """As `borrowed` knows the function."""
        return f"{self.module}.{self.function}"

    @property
    def file(self) -> str:
        return f"my_ddpm/{self.module}.py"


EXERCISES = (
    Exercise(
        "alpha_bar",
        "section 2",
        "schedule",
        "Schedule.__init__",
        "from β_1..β_T the tables of β_t, α_t, ᾱ_t and β̃_t for t = 0..T",
        "Set self.T, and the tables self.beta, self.alpha, self.alpha_bar and\n"
        "self.beta_tilde: (T + 1,), float64, with β_0 = 0, so that index t is t.",
        (
            "Index t of a table is the paper's t. What must stand at index 0, so that "
            "ᾱ_0 = 1: the product of no factors?",
            "torch.cat puts a zero in front of beta; cumprod(0) is the running "
            "product. β̃_t (eq. 7) takes ᾱ_{t-1} and ᾱ_t: alpha_bar[:-1] and "
            "alpha_bar[1:]; β̃_0 and β̃_1 are 0.",
            "self.beta = torch.cat([beta.new_zeros(1), beta]), self.alpha = 1 - "
            "self.beta, self.alpha_bar = self.alpha.cumprod(0), and for t >= 1 "
            "β̃_t = (1 - alpha_bar[:-1]) / (1 - alpha_bar[1:]) * beta",
        ),
        (4, 1),
    ),
    Exercise(
        "eq2",
        "eq. 2",
        "forward",
        "q_step",
        "one step of the forward process, x_t from x_{t-1}",
        "Return x_t. at(s.beta, t, x_tm1) is β_t in float64, shaped to multiply\n"
        "x_tm1; the answer has the dtype of x_tm1.",
        (
            "In N(m, v) v is a variance. By what must z ~ N(0, I) be multiplied to "
            "have it?",
            "beta = at(s.beta, t, x_tm1) is β_t for each picture of the batch.",
            "(1 - beta).sqrt() times x_tm1, plus beta.sqrt() times z, .to(x_tm1.dtype)",
        ),
    ),
    Exercise(
        "eq4",
        "eq. 4",
        "forward",
        "q_sample",
        "t steps of the forward process at once, x_t from x_0",
        "Return x_t. at(s.alpha_bar, t, x_0, first=0) is ᾱ_t in float64, shaped to\n"
        "multiply x_0; the answer has the dtype of x_0.",
        (
            "Of eq. 4 take the root of the variance: if x_0 and ε have variance 1, so "
            "has x_t.",
            "alpha_bar = at(s.alpha_bar, t, x_0, first=0); ᾱ_t is indexed by t itself.",
            "alpha_bar.sqrt() times x_0, plus (1 - alpha_bar).sqrt() times eps, "
            ".to(x_0.dtype)",
        ),
    ),
    Exercise(
        "eq7",
        "eq. 7",
        "forward",
        "q_posterior",
        "the mean and the variance of x_{t-1} for known x_t and x_0",
        "Return mu_tilde, the shape of x_t, and beta_tilde_t, (B, 1, ..., 1), both\n"
        "in the dtype of x_t. at([s.beta, s.alpha, s.alpha_bar], t, x_t) gives all\n"
        "three; t - 1 may be 0, which at(..., first=0) allows.",
        (
            "Four symbols with an index: β_t, α_t, ᾱ_t, ᾱ_{t-1}. At t = 1 x_{t-1} is "
            "x_0, which is known: what must the mean and the variance be?",
            "at(s.alpha_bar, t - 1, x_t, first=0) is ᾱ_{t-1}. Bind the two factors to "
            "names before you add.",
            "c_0 = √ᾱ_{t-1} β_t / (1-ᾱ_t), c_t = √α_t (1-ᾱ_{t-1}) / (1-ᾱ_t); return "
            "c_0 x_0 + c_t x_t, and at(s.beta_tilde, t, x_t); each .to(x_t.dtype)",
        ),
    ),
    Exercise(
        "L_tm1",
        "eq. 5, 8",
        "bound",
        "L_tm1",
        "a term L_{t-1} of the bound: a KL divergence in nats",
        "Return L_{t-1}, (B,), float64. gaussian_kl(mean1, var1, mean2, var2) is the\n"
        "KL of two Gaussians, number by number; _sum adds those of a picture.",
        (
            "KL of which to which? Both are Gaussians for x_{t-1}, with the means of "
            "eq. 7 for x_0 and for x̂_0.",
            "q_posterior(s, x_t, x_0, t) gives the first mean and variance; any x_t "
            "will do, such as zeros. The second variance is at(s.sigma2(sigma2), t, "
            "x_0). Compute in float64: x_0.double().",
            "_sum(gaussian_kl(mu_tilde, beta_tilde_t, mu_theta, sigma2_t)), where "
            "mu_theta is q_posterior's mean for x_0_hat",
        ),
    ),
    Exercise(
        "eq11",
        "eq. 11",
        "sampler",
        "p_mean",
        "the mean of x_{t-1} that the predicted noise gives",
        "Return mu_theta, in the dtype of x_t.",
        (
            "There are two ways: eq. 11 as printed, or eq. 7 with eq. 15's x̂_0.",
            "beta, alpha, alpha_bar = at([s.beta, s.alpha, s.alpha_bar], t, x_t). "
            "Which of α_t and ᾱ_t stands where?",
            "x_t minus beta / (1 - alpha_bar).sqrt() * eps_hat, all divided by "
            "alpha.sqrt(), .to(x_t.dtype)",
        ),
    ),
    Exercise(
        "step",
        "eq. 1, Algorithm 2 line 4",
        "sampler",
        "p_step",
        "one step of Algorithm 2, x_{t-1} from x_t and z",
        "Return x_{t-1}, in the dtype of x_t. s.sigma2(sigma2) is the table of σ_t².\n"
        "Use p_mean, and for clip_x_0 predict_x_0 and q_posterior.",
        (
            "σ_t multiplies z. The table holds σ_t².",
            "sigma = at(s.sigma2(sigma2), t, x_t).sqrt(); with clip_x_0 the mean is "
            "that of eq. 7 for x̂_0 clamped to [-1, 1].",
            "mu_theta = p_mean(s, x_t, t, eps_hat), or with clip_x_0 the first of "
            "q_posterior(s, x_t, predict_x_0(...).clamp(-1, 1), t); then mu_theta + "
            "sigma * z",
        ),
    ),
    Exercise(
        "algorithm2",
        "Algorithm 2",
        "sampler",
        "p_sample_loop",
        "sampling: all the steps from x_T to x_0, one yielded at a time",
        "Yield (t, x_t, x_0_hat) for t = T..1, then (0, x_0, x_0). asked(eps_theta)\n"
        "is the network as sampling uses it: no dropout, no gradients. p_step takes\n"
        "the step; randn_like(x_t, generator) draws z.",
        (
            "How often is the network called, with which t at the end, and what is z "
            "then?",
            "for step in range(s.T, 0, -1), and t = torch.full(x_t.shape[:1], step); "
            "yield before the step is taken; after the loop yield (0, x_t, x_t).",
            "In the loop: z = randn_like(x_t, generator) if step > 1 else zeros; "
            "eps_hat = eps_theta(x_t, t); yield step, x_t, predict_x_0(s, x_t, t, "
            "eps_hat), clamped if clip_x_0; x_t = p_step(s, x_t, t, eps_hat, z, "
            "sigma2, clip_x_0). Before it: eps_theta = asked(eps_theta), x_t = x_T",
        ),
    ),
    Exercise(
        "eq12",
        "eq. 12",
        "train",
        "weight",
        "the weight of ‖ε - ε_θ‖² in L_{t-1}",
        "Return the weight at each t, (B,), float64. s.sigma2(sigma2) is the table of\n"
        "σ_t²; at(table, t, t.double()) is a table's entries, (B,).",
        (
            "A product of five tables' entries; nothing is summed.",
            "Look at what is squared: β_t is, α_t and 1-ᾱ_t are not, and the table of "
            "σ_t² holds squares already.",
            "beta**2 / (2 * sigma2_t * alpha * (1 - alpha_bar))",
        ),
    ),
    Exercise(
        "eq13",
        "eq. 13",
        "bound",
        "log_decoder",
        "the log probability of an 8-bit level under N(μ, σ_1²)",
        "Return ln of the integral for each number. Level v is the bin from\n"
        "(v - ½)/127.5 - 1 to (v + ½)/127.5 - 1. torch.special.ndtr is Φ, log_ndtr\n"
        "is ln Φ. FAR stands for ∞, in units of σ_1.",
        (
            "The integral of a Gaussian between two ends is a difference of two Φ. The "
            "first and the last bin reach to infinity.",
            "Far from the mean Φ(b) - Φ(a) is 1 - 1 in float64. To the left of the "
            "mean ln Φ keeps its digits: mirror a bin that lies right of it, (a, b) to "
            "(-b, -a).",
            "With a, b the ends minus the mean, over variance**0.5, mirrored where a "
            "> -b: log_ndtr(b) + log(-expm1(log_ndtr(a) - log_ndtr(b))); ±1e30 stands "
            "for ±∞",
        ),
    ),
    Exercise(
        "eq14",
        "eq. 14",
        "train",
        "L_simple",
        "the loss that is trained on",
        "Return the loss, a scalar. Call eps_theta(x_t, t, *c) once.",
        (
            "What does the network see, and what must it tell?",
            "x_t = q_sample(s, x_0, t, eps). The mean is over the numbers of a picture "
            "and over the batch.",
            "(eps - eps_theta(x_t, t, *c)).square().mean()",
        ),
    ),
    Exercise(
        "algorithm1",
        "Algorithm 1",
        "train",
        "algorithm_1",
        "training: lines 1 to 6, one step yielded at a time",
        "For step = first..h.steps: draw what lines 2 to 4 name, all from\n"
        "Generator(device).manual_seed(random_seed(h.seed, step)); line 5 is\n"
        "gradient(s, net, x_0, t, eps, *c), which adds to each p.grad and returns the\n"
        "loss; then clip_grad_norm_(theta, h.max_norm), learning_rate(h, step) into\n"
        'optimiser.param_groups[0]["lr"], optimiser.step(), ema.update(); the next\n'
        "step starts from gradients of zero. Yield (step, loss).",
        (
            "t is uniform on {1..T}, both ends included. Every picture of the batch "
            "has its own t and its own ε.",
            "x_0, *c = draw(B, generator); torch.randint(low, high, (B,), "
            "generator=generator, device=device) never gives high; "
            "randn_like(x_0, generator).",
            "In the order: generator, draw, torch.randint(1, s.T + 1, ...), eps, loss "
            "= gradient(s, net, x_0, t, eps, *c), clip_grad_norm_, lr, "
            "optimiser.step(), optimiser.zero_grad(), ema.update(), yield step, loss",
        ),
        (2, 0),
    ),
    Exercise(
        "beta",
        "section 4",
        "schedule",
        "linear_schedule",
        "β_1..β_T on a straight line from β_1 to β_T",
        "Set beta = β_1..β_T: (T,), float64. The end points are given above.",
        (
            "T numbers, the first is beta_1, the last is beta_T.",
            "torch.linspace; look at its dtype argument.",
            "beta = torch.linspace(beta_1, beta_T, T, dtype=...)",
        ),
        (1, 1),
    ),
    Exercise(
        "eq15",
        "eq. 15",
        "sampler",
        "predict_x_0",
        "what x_t and the predicted noise say of x_0",
        "Return x_0_hat, in the dtype of x_t.",
        (
            "Solve eq. 4 for x_0.",
            "alpha_bar = at(s.alpha_bar, t, x_t); take away the noise first, then "
            "divide.",
            "(x_t - (1 - alpha_bar).sqrt() * eps_hat) divided by the root of "
            "alpha_bar, .to(x_t.dtype)",
        ),
    ),
    Exercise(
        "ema",
        "appendix B",
        "train",
        "EMA.update",
        "the moving average of the weights, one step of it",
        "Move self._ema, the list of averaged weights, towards self._theta, the\n"
        "network's; set the averages' buffers to the network's: self._buffers holds\n"
        "pairs (of_ema, of_net). Change tensors in place.",
        (
            "A decay near 1 keeps nearly all of the average.",
            "for ema, theta in zip(self._ema, self._theta): ... in place, with mul_, "
            "add_, lerp_ or copy_. Buffers are copied, not averaged.",
            "ema.mul_(self.decay).add_(theta, alpha=1 - self.decay), and "
            "of_ema.copy_(of_net)",
        ),
    ),
    Exercise(
        "embedding",
        "appendix B",
        "mlp",
        "time_embedding",
        "the sinusoids that tell the network t",
        "Return the embedding, (B, dim), computed in float64; float32 unless t is\n"
        "float64.",
        (
            "dim/2 frequencies, from 1 down to 1/10000.",
            "i = torch.arange(dim // 2, dtype=torch.float64); the last i is dim/2 - 1, "
            "where the exponent must be -1.",
            "omega = 10000 ** (-i / (dim // 2 - 1)); angle = t.double()[:, None] * "
            "omega; torch.cat([angle.sin(), angle.cos()], dim=1)",
        ),
        (1, 0),
    ),
    Exercise(
        "block",
        "appendix B",
        "unet",
        "ResBlock.forward",
        "a residual block of the U-Net, told t by an embedding",
        "Return (B, out, H, W). The layers are made in __init__ above.",
        (
            "The class's docstring is the formula. emb went through SiLU already.",
            "h = conv1(SiLU(norm1(x))); dense(emb) is (B, out): give it two axes to "
            "add it to h, (B, out, H, W).",
            "h = h + self.dense(emb)[:, :, None, None]; h = self.conv2(self.dropout("
            "F.silu(self.norm2(h)))); return self.shortcut(x) + h",
        ),
    ),
)

NAMED = {e.name: e for e in EXERCISES}
