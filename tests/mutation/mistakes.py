"""The mistakes of published DDPM code and texts, each put into our code to see it die.

An entry of code is a patch (`old` -> `new` in one file of the package) and the one test
that must fail of it; an entry of prose says where a text is wrong and what is right.
`patched.py` tries a patch.

    python -m tests.mutation.mistakes            # tries them all, prints the table
    python -m tests.mutation.mistakes M2 P1      # these alone

A mistake is "caught" if its test fails by its law (`patched.because_of_its_law`) with
the patch and passes without it. S0..S4 are the five texts 000..004, HO the authors'
code (hojonathanho/diffusion), ID improved-diffusion, LU lucidrains, HF diffusers,
SM smalldiffusion, TI tiny-diffusion, LA labml, MI minDiffusion, W8 w86763777. O1, O2,
... were published by nobody: they are those that the way ours is written invites.
"""

import sys
from collections.abc import Sequence
from typing import NamedTuple

PACKAGE = "tinyddpm/"


class Mistake(NamedTuple):
    """One mistake; without `file` it is one of prose."""

    name: str
    who: str  # where it stands
    right: str  # what is right, with its equation
    file: str = ""  # in tinyddpm/, or an example's path from the project's root
    old: str = ""  # occurs once in the file
    new: str = ""
    test: str = ""  # the test that must fail of it, file::name

    @property
    def path(self) -> str:
        here = not self.file or self.file.startswith("examples/")
        return self.file if here else PACKAGE + self.file


SCHEDULE = (
    Mistake(
        "M3",
        "S2:346 cumprod over linspace(0, 1, T+1), then ab_t[0] = 1",
        "ᾱ_t = ∏_{s=1}^t α_s; theirs has ᾱ_1 = α_0 α_1",
        "schedule.py",
        "self.alpha_bar = self.alpha.cumprod(0)",
        "self.alpha_bar = torch.cat([beta.new_ones(1), (1 - beta[0]) * "
        "(1 - beta).cumprod(0)])",
        "paper/test_schedule.py::test_alpha_bar_is_the_product_of_the_alphas",
    ),
    Mistake(
        "M3b",
        "MI superminddpm: index 0 holds β_1, so ᾱ_t has a factor too many",
        "β_0 = 0, ᾱ_0 = 1",
        "schedule.py",
        "torch.cat([beta.new_zeros(1), beta])",
        "torch.cat([beta[:1], beta])",
        "paper/test_schedule.py::test_index_0_means_no_noise_and_t_is_the_papers_t",
    ),
    Mistake(
        "M6",
        "S0:146, S2: the paper's end points kept at T = 100, 200, 500",
        "scaled by 1000/T, so that ᾱ_T stays near 0 (section 4)",
        "schedule.py",
        "return T, 1e-4 * 1000 / T, 0.02 * 1000 / T",
        "return T, 1e-4, 0.02",
        "paper/test_schedule.py::test_default_end_points_keep_the_noise_of_T_steps",
    ),
    Mistake(
        "M6b",
        'S0:205 "after 200 steps … pure noise", without looking at ᾱ_200 = 0.13',
        "a schedule whose x_T keeps signal says so",
        "schedule.py",
        "if left > 0.1:",
        "if left > 1:",
        "paper/test_schedule.py::test_a_schedule_that_leaves_signal_warns",
    ),
    Mistake(
        "M7",
        "S2:731 the posterior variance is (1-ᾱ_{t-1})/(1-ᾱ_t)",
        "times β_t (eq. 7)",
        "schedule.py",
        "one_minus[:-1] / one_minus[1:] * beta",
        "one_minus[:-1] / one_minus[1:]",
        "paper/test_schedule.py::test_beta_tilde_adds_precisions",
    ),
    Mistake(
        "M9",
        "S1:23 b_t = b_start + t (b_end - b_start)/T for t = 1..T",
        "β_t = β_1 + (t-1)/(T-1) (β_T - β_1) (section 4)",
        "schedule.py",
        "beta = torch.linspace(beta_1, beta_T, T, dtype=torch.float64)",
        "beta = torch.linspace(beta_1, beta_T, T + 1, dtype=torch.float64)[1:]",
        "paper/test_schedule.py::test_linear_schedule_is_a_straight_line",
    ),
    Mistake(
        "M32",
        "S0:255 @inference_mode() on the getters of the schedule",
        "x_0 and ε can be differentiated through eq. 4",
        "schedule.py",
        "def at(\n",
        "@torch.inference_mode()\ndef at(\n",
        "paper/test_at.py::test_an_entry_can_be_kept_for_the_backward_pass",
    ),
    Mistake(
        "M44",
        "S3:605 a.gather(-1, t.cpu()): the host waits for the device at every step",
        "the look-up happens where t lives",
        "schedule.py",
        "x.to(t.device).index_select(0, t)",
        "x.cpu().index_select(0, t.cpu())",
        "paper/test_at.py::test_at_never_makes_the_host_wait",
    ),
    Mistake(
        "M46",
        "S0:151, S1:205, S3:581, HF, LA, TI: tables in float32",
        "float64, rounded once at the end: else 1-ᾱ_1 is wrong by 1.7e-4",
        "schedule.py",
        "self.alpha_bar = self.alpha.cumprod(0)",
        "self.alpha_bar = self.alpha.float().cumprod(0).double()",
        "paper/test_schedule.py::test_tables_are_right_to_float32s_last_digit",
    ),
    Mistake(
        "M46b",
        "HF add_noise: the table is cast to the pictures' dtype before the formula",
        "1-ᾱ_t, its root and the sum in float64, then rounded",
        "schedule.py",
        ".index_select(0, t).view(",
        ".index_select(0, t).to(like.dtype).view(",
        "paper/test_every_equation.py::test_float32_is_float64_rounded_once",
    ),
    Mistake(
        "D1",
        "W8 linspace(...).double(): float32 in a float64 coat",
        "made in float64",
        "schedule.py",
        "beta = torch.linspace(beta_1, beta_T, T, dtype=torch.float64)",
        "beta = torch.linspace(beta_1, beta_T, T).double()",
        "paper/test_schedule.py::test_linear_schedule_is_a_straight_line",
    ),
    Mistake(
        "D2",
        "LU's rescaled schedule at T = 10 gives β = 2.0; HF takes beta_end = 2",
        "0 < β_t < 1 (eq. 2), refused by its t otherwise",
        "schedule.py",
        "(beta > 0) & (beta < 1)",
        "beta > 0",
        "paper/test_schedule.py::test_a_beta_outside_0_1_is_refused_by_its_t",
    ),
    Mistake(
        "D3",
        "plain indexing: index -1 is T in silence",
        "t outside its range is refused",
        "schedule.py",
        "x.to(t.device).index_select(0, t)",
        "x.to(t.device)[t]",
        "paper/test_at.py::test_at_refuses_what_python_would_wrap",
    ),
)

FORWARD = (
    Mistake(
        "M2",
        "S2:389 (1 - ab_t[t]) * noise",
        "√(1-ᾱ_t) (eq. 4)",
        "forward.py",
        "(1 - alpha_bar).sqrt() * eps",
        "(1 - alpha_bar) * eps",
        "paper/test_eq_02_is_eq_04.py::test_unit_variance_data_keep_unit_variance",
    ),
    Mistake(
        "M4",
        "S0:280 alpha_bars[n] after n steps against S0:221 prod(alphas[:n])",
        "one index for both: eq. 2 iterated t times is eq. 4 at t",
        "forward.py",
        "alpha_bar = at(s.alpha_bar, t, x_0",
        "alpha_bar = at(s.alpha_bar, (t + 1).clamp(max=s.T), x_0",
        "paper/test_eq_02_is_eq_04.py::test_eq_2_iterated_is_eq_4",
    ),
    Mistake(
        "M8",
        'S1:11 "x_1 = (1-variance) times x_0 + variance times e_1"',
        "√(1-β_t) and √β_t (eq. 2)",
        "forward.py",
        "(1 - beta).sqrt() * x_tm1 + beta.sqrt() * z",
        "(1 - beta) * x_tm1 + beta * z",
        "paper/test_eq_02_is_eq_04.py::test_unit_variance_data_keep_unit_variance",
    ),
    Mistake(
        "M20",
        'S4:127 "scaling factor ᾱ_t"',
        "√ᾱ_t (eq. 4)",
        "forward.py",
        "x_t = alpha_bar.sqrt() * x_0",
        "x_t = alpha_bar * x_0",
        "paper/test_eq_02_is_eq_04.py::test_unit_variance_data_keep_unit_variance",
    ),
    Mistake(
        "M31",
        "S0:290 noise_img ends without a return",
        "every function gives what its docstring says",
        "forward.py",
        "return x_t.to(x_0.dtype)",
        "x_t.to(x_0.dtype)",
        "paper/test_every_equation.py::test_a_batch_of_mixed_t_is_its_items",
    ),
)

SAMPLER = (
    Mistake(
        "M1",
        "S0:726 sigma = schedule.beta(step)",
        "σ_t = √β_t (Alg. 2 line 4, section 3.2)",
        "sampler.py",
        "sigma = at(s.sigma2(sigma2), t, x_t, z=z).sqrt()",
        "sigma = at(s.sigma2(sigma2), t, x_t, z=z)",
        "paper/test_eq_01.py::test_unit_gaussian_data_stay_so_at_every_step",
    ),
    Mistake(
        "M10",
        'S1:45 "the variance simply equals sqrt(b_t)"',
        "variance β_t, standard deviation √β_t",
        "sampler.py",
        "sigma = at(s.sigma2(sigma2), t, x_t, z=z).sqrt()",
        "sigma = at(s.sigma2(sigma2), t, x_t, z=z) ** 0.25",
        "paper/test_eq_01.py::test_unit_gaussian_data_stay_so_at_every_step",
    ),
    Mistake(
        "M17",
        'S2:667 "σ_t z is … optional for improved diversity"',
        "it is part of p_θ (eq. 1): without it the variance of x_0 falls below the "
        "data's",
        "sampler.py",
        "x_tm1 = mu_theta + sigma * z",
        "x_tm1 = mu_theta + 0 * sigma * z",
        "paper/test_eq_01.py::test_unit_gaussian_data_stay_so_at_every_step",
    ),
    Mistake(
        "M18, P3, P6",
        'S3:101 "fully denoised at t=1"; MI ddim.py range(n_T, 1, -1); SM ends at σ_1',
        "x_0: T network calls, the last with t = 1 (Alg. 2)",
        "sampler.py",
        "range(s.T, 0, -1)",
        "range(s.T, 1, -1)",
        "paper/test_algorithm_2.py::test_a_point_mass_is_returned_exactly",
    ),
    Mistake(
        "M34",
        "S0:713, S1:223 model.eval() in sample, never undone",
        "every training flag is as it was",
        "sampler.py",
        "m.training = True",
        "m.training = False",
        "paper/test_algorithm_2.py::test_sampling_changes_no_state",
    ),
    Mistake(
        "M47",
        "the paper itself, section 4.4: x̄_t = (1-λ) x_0 + λ x'_0",
        "x_t and x'_t, as the sentence around it and HO have it",
        "sampler.py",
        "(1 - lam) * x_t + lam * x_t_prime",
        "(1 - lam) * x_0 + lam * x_0_prime",
        "paper/test_section_4_4_interpolation.py::test_interpolation_mixes_x_t_not_x_0",
    ),
    Mistake(
        "M47b",
        "the same read as a cross-fade that is then diffused",
        "two pictures, each with its own noise, mixed at step t",
        "sampler.py",
        "x_t_prime = q_sample(s, x_0_prime, t_B, randn_like(x_0, generator))",
        "x_t_prime = x_t + at(s.alpha_bar, t_B, x_0).sqrt() * (x_0_prime - x_0)",
        "paper/test_section_4_4_interpolation.py::test_interpolation_mixes_x_t_not_x_0",
    ),
    Mistake(
        "P1",
        "LA p_sample adds noise at every step",
        "z = 0 at t = 1 (Alg. 2 line 3)",
        "sampler.py",
        "z = randn_like(x_t, generator) if step > 1 else torch.zeros_like(x_t)",
        "z = randn_like(x_t, generator)",
        "paper/test_algorithm_2.py::test_the_last_step_adds_no_noise",
    ),
    Mistake(
        "P2",
        "LA, LU interpolate: diffused to t, decoded from t - 1",
        "decoded from t, as HO (section 4.4)",
        "sampler.py",
        "for step in range(t, 0, -1)",
        "for step in range(t - 1, 0, -1)",
        "paper/test_section_4_4_interpolation.py::test_interpolation_starts_at_t",
    ),
    Mistake(
        "P5",
        "clip_x_0 has no effect; W8 does the same: it clips after the mean is computed",
        "eq. 7's mean of the clamped x̂_0",
        "sampler.py",
        "mu_theta, _ = q_posterior(s, x_t, x_0_hat, t)",
        "mu_theta = p_mean(s, x_t, t, eps_hat)",
        "paper/test_eq_01.py::test_clip_takes_eq_7_of_the_clamped_estimate",
    ),
    Mistake(
        "P11",
        "HO's commented constant-variance mix, x̄_t / √((1-λ)² + λ²)",
        "(1-λ) x_t + λ x'_t; the noise shared by all λ (section 4.4)",
        "sampler.py",
        "((1 - lam) * x_t + lam * x_t_prime)",
        "(((1 - lam) * x_t + lam * x_t_prime) / ((1 - lam) ** 2 + lam**2).sqrt())",
        "paper/test_section_4_4_interpolation.py::test_interpolation_mixes_x_t_not_x_0",
    ),
    Mistake(
        "P11b",
        "HO's TODO: the reverse noise is not shared across λ",
        "λ alone moves the picture (section 4.4)",
        "sampler.py",
        "z = z.expand(shape).flatten(0, 1)",
        "z = randn_like(x_bar, generator) if step > 1 else torch.zeros_like(x_bar)",
        "paper/test_section_4_4_interpolation.py::test_every_lambda_shares_the_noise",
    ),
    Mistake(
        "D4",
        "HO, LU, HF clamp x̂_0 unless told not to",
        "Algorithm 2 does not: a departure is asked for by name",
        "sampler.py",
        '    z: Tensor,\n    sigma2: str = "beta",\n    clip_x_0: bool = False,',
        '    z: Tensor,\n    sigma2: str = "beta",\n    clip_x_0: bool = True,',
        "paper/test_algorithm_2.py::test_the_loops_defaults_are_the_papers",
    ),
)

TRAINING = (
    Mistake(
        "M14",
        'S4:261 "noise ε_t added at step t" as the target',
        "ε of eq. 4, the whole noise of x_t; E[z_t|ε] = √(β_t/(1-ᾱ_t)) ε",
        "train.py",
        "(eps - eps_hat)",
        "(at(s.beta / (1 - s.alpha_bar), t, eps).sqrt() * eps - eps_hat)",
        "paper/test_eq_14_loss.py::test_the_exact_answer_costs_nothing",
    ),
    Mistake(
        "M15",
        'S1:9 the loss is the "mse" of p(x_t, t) and "our actual image x_0"',
        "of ε_θ and the true ε (eq. 14)",
        "train.py",
        "(eps - eps_hat)",
        "(x_0 - eps_hat)",
        "paper/test_eq_14_loss.py::test_the_exact_answer_costs_nothing",
    ),
    Mistake(
        "M16",
        "S3:730 loss_type='L1'",
        "a square (eq. 14): L1's best constant is the median",
        "train.py",
        "(eps - eps_hat).square()",
        "(eps - eps_hat).abs()",
        "paper/test_eq_14_loss.py::test_the_loss_is_the_mean_square_of_the_error",
    ),
    Mistake(
        "P9",
        "ermongroup/ddim losses.py sums over C, H, W",
        "ours is the mean over D, said where it is taken",
        "train.py",
        "(eps - eps_hat).square().mean()",
        "(eps - eps_hat).square().sum() / len(eps)",
        "paper/test_eq_14_loss.py::test_the_loss_is_the_mean_square_of_the_error",
    ),
    Mistake(
        "M5",
        "S0:309 randint(1, max_steps) indexes an array: t = 1 is never trained",
        "t ~ U{1..T}, both ends included (Alg. 1 line 3)",
        "train.py",
        "torch.randint(1, s.T + 1",
        "torch.randint(2, s.T + 1",
        "paper/test_algorithm_1.py::test_t_is_uniform_on_1_to_T_and_eps_is_standard_normal",
    ),
    Mistake(
        "M5b",
        "MI superminddpm.py randint(1, n_T): T is never trained",
        "t ~ U{1..T}, both ends included (Alg. 1 line 3)",
        "train.py",
        "torch.randint(1, s.T + 1",
        "torch.randint(1, s.T",
        "paper/test_algorithm_1.py::test_t_is_uniform_on_1_to_T_and_eps_is_standard_normal",
    ),
    Mistake(
        "M33",
        "S0:421 the schedule becomes a part of the model in train(): new names in its "
        "state_dict",
        "training changes the weights' numbers, not their names",
        "workshop/run.py",
        "    s, shares = s.to(device)",
        '    plain.register_buffer("beta", s.beta)\n    s, shares = s.to(device)',
        "workshop/test_checkpoint.py::test_it_holds_the_run",
    ),
    Mistake(
        "M41",
        "S3:968 saves DataParallel's state_dict: every name begins with module.",
        "a checkpoint loads into the network alone, on a CPU",
        "workshop/state.py",
        "weights=self.net.state_dict(),\n            ema=self.ema.state_dict(),",
        "weights=nn.DataParallel(self.net).state_dict(), "
        "ema=nn.DataParallel(self.ema).state_dict(),",
        "workshop/test_checkpoint.py::test_it_holds_the_run",
    ),
    Mistake(
        "M43",
        'S2:355 "Train it anyway" goes on from the weights that were loaded',
        "without --resume a run that is there is refused, and kept",
        "workshop/state.py",
        "if exists and not resume:",
        "if exists and resume is None:",
        "workshop/test_checkpoint.py::test_a_checkpoint_is_never_overwritten_unasked",
    ),
    Mistake(
        "D9",
        "the average's weights swapped into the network and never back",
        "the average is a copy of its own (App. B)",
        "train.py",
        "copy.deepcopy(net).eval()",
        "net.eval()",
        "paper/test_ema.py::test_the_average_in_closed_form",
    ),
    Mistake(
        "D10",
        "ID and others: the average starts again from the weights on resuming",
        "it goes on where it was: resumed = uninterrupted",
        "workshop/state.py",
        "self.ema.load_state_dict(found.ema)",
        "self.ema.load_state_dict(found.weights)",
        "workshop/test_kill.py::"
        "test_killed_and_resumed_is_bit_for_bit_the_run_that_was_not",
    ),
)

NETWORKS = (
    Mistake(
        "M21",
        "S2:149 shortcut = nn.Conv2d(…) inside forward: new random weights each call",
        "made in __init__: a network in eval mode is a function",
        "unet.py",
        "out: Tensor = self.shortcut(x) + h",
        "out: Tensor = nn.Conv2d(x.shape[1], h.shape[1], 1).to(x)(x) + h",
        "paper/test_unet.py::test_asking_changes_nothing",
    ),
    Mistake(
        "M22",
        "S3:230 h = rearrange(time_emb, …): the embedding replaces the features",
        "h + …: it is added to what the depthwise convolution found",
        "beyond/convnext.py",
        "h = self.depthwise(x) + self.dense(emb)[:, :, None, None]",
        "h = self.dense(emb)[:, :, None, None].expand_as(x)",
        "beyond/test_convnext.py::test_the_embedding_is_added_to_the_features",
    ),
    Mistake(
        "M23",
        "S3:372 k.softmax(dim=-2) in linear attention: over features",
        "over positions, so that kᵀ v is an average of v",
        "beyond/convnext.py",
        "k = torch.softmax(k, dim=2",
        "k = torch.softmax(k, dim=1",
        "beyond/test_convnext.py::test_equal_values_come_back_as_they_are",
    ),
    Mistake(
        "M24",
        "S3:500 the finest skip is saved and never read",
        "every saved activation is read once on the way up (HO: assert not hs)",
        "unet.py",
        "torch.cat([h, saved.pop()], dim=1)",
        "torch.cat([h, saved.pop() * bool(saved)], dim=1)",
        "paper/test_unet.py::test_every_saved_activation_is_read_on_the_way_up",
    ),
    Mistake(
        "M25",
        "S3:516 block_klass(dim, dim) works only if the first multiplier is 1",
        "the first block reads the `base` channels that conv_in makes",
        "unet.py",
        "level(i, [c, width], width, halve)",
        "level(i, [c if i else width, width], width, halve)",
        "paper/test_unet.py::test_each_level_reads_what_the_one_before_it_makes",
    ),
    Mistake(
        "M26",
        "S1:90, S2:129 batch norm: statistics mix pictures and noise levels",
        "group norm (App. B): a picture's output is its own",
        "layers.py",
        "super().__init__(groups[-1], channels, eps=1e-6)",
        "super().__init__(groups[-1], channels, eps=1e-6)\n\n"
        "    def forward(self, x):\n        return (x - x.mean((0, 2, 3), True)) * "
        "(x.var((0, 2, 3), keepdim=True, correction=0) + self.eps).rsqrt()",
        "paper/test_unet.py::test_a_picture_s_output_does_not_depend_on_the_rest_of_the_batch",
    ),
    Mistake(
        "M27",
        "S1:93, LA #165: the sinusoids go straight to a linear layer per block",
        "dense, SiLU, dense, and SiLU, dense in each block (App. B)",
        "unet.py",
        "self.dense2(F.silu(self.dense1(emb)))",
        "self.dense2(self.dense1(emb))",
        "paper/test_unet.py::test_the_embedding_goes_through_dense_silu_dense_silu_dense",
    ),
    Mistake(
        "M28",
        "W8's own table of sinusoids: sine and cosine in turn, exponent / (dim/2)",
        "all sines, then all cosines, / (dim/2 - 1): published weights load",
        "mlp.py",
        "torch.cat([angle.sin(), angle.cos()], dim=1)",
        "torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1)",
        "paper/test_time_embedding.py::test_time_embedding_is_all_sines_then_all_cosines",
    ),
    Mistake(
        "M28b",
        "S3:290, S1:64, HO: log(10000) / (half_dim - 1) divides by 0 at dim = 2",
        "a width below 4 is refused",
        "mlp.py",
        "dim < 4",
        "dim < 2",
        "paper/test_time_embedding.py::test_time_embedding_refuses_odd_and_tiny_widths",
    ),
    Mistake(
        "M30",
        "S1: four max-pools, and no check that 16 divides H and W",
        "a size that cannot be halved is refused by a sentence",
        "unet.py",
        "size[0] % self.factor or size[1] % self.factor",
        "False",
        "paper/test_unet.py::test_shapes_are_refused_by_name",
    ),
    Mistake(
        "P4b",
        "MI superminddpm: the network is given t and ignores it",
        "ε_θ(x_t, t) depends on t",
        "unet.py",
        "time_embedding(t.double(), self.base)",
        "time_embedding(0 * t.double(), self.base)",
        "paper/test_unet.py::test_the_output_depends_on_t",
    ),
    Mistake(
        "P5c",
        "W8 pads the stride-2 convolutions on both sides",
        "on the right and bottom, as the authors' framework does",
        "layers.py",
        "F.pad(x, (0, 1, 0, 1))",
        "F.pad(x, (1, 1, 1, 1))",
        "paper/test_layers.py::test_downsampling_pads_on_the_right_and_bottom",
    ),
    Mistake(
        "P5d",
        "W8 GroupNorm's eps 1e-5",
        "1e-6, as the authors' framework has it",
        "layers.py",
        "eps=1e-6",
        "eps=1e-5",
        "paper/test_layers.py::test_group_norm",
    ),
    Mistake(
        "D5",
        "LA builds the attention's norm and never calls it",
        "every parameter is reached by a gradient",
        "unet.py",
        "h = self.norm(x)",
        "h = x + 0 * self.norm(x)",
        "paper/test_unet.py::test_every_parameter_is_reached_by_a_gradient",
    ),
    Mistake(
        "D6",
        "W8: initialising a residual block undoes the zeros of its attention",
        "residual and attention branches start at 0",
        "unet.py",
        "self.out = zero(nn.Conv2d(channels, channels, 1))",
        "self.out = glorot(nn.Conv2d(channels, channels, 1))",
        "paper/test_unet.py::test_each_branch_is_zero_at_the_start",
    ),
    Mistake(
        "D7",
        "the output is not 0 at initialisation (S1, S2, S3)",
        "the last convolution starts at 0 (the authors' code)",
        "unet.py",
        "self.conv_out = zero(",
        "self.conv_out = glorot(",
        "paper/test_unet.py::test_the_output_is_zero_at_the_start",
    ),
    Mistake(
        "D8",
        "GroupNorm(32) on 32 channels cancels the time embedding's shift",
        "two channels a group at least",
        "layers.py",
        "channels >= 2 * g",
        "channels >= g",
        "paper/test_unet.py::test_the_output_depends_on_t",
    ),
)

DATA = (
    Mistake(
        "M37",
        "S0:63 randint(0, 255): level 255 is never drawn",
        "256 levels, 0..255: eq. 13's last bin is at x = 1",
        "beyond/gradients.py",
        "random_(256, ",
        "random_(255, ",
        "beyond/test_gradients.py::test_colours_are_uniform_on_256_levels",
    ),
    Mistake(
        "M38",
        "S3:640 (t * 255.).numpy().astype(np.uint8): cut off, not rounded",
        "the nearest level: v survives 8-bit → float → 8-bit",
        "data.py",
        ".round().clamp(0, 255)",
        ".clamp(0, 255)",
        "paper/test_section_3_3_scale.py::test_8_bit_to_float_to_8_bit_is_the_identity",
    ),
    Mistake(
        "M38b",
        "the same without a clamp: 256.3 becomes 0, -2 becomes 254",
        "beyond the ends, the end",
        "data.py",
        ".round().clamp(0, 255)",
        ".round().long()",
        "paper/test_section_3_3_scale.py::test_to_uint8_takes_the_nearest_level_and_saturates",
    ),
    Mistake(
        "M39",
        "S4:353 TF.to_tensor, LA experiment.py: data in [0, 1]",
        "[-1, 1] (section 3.3)",
        "data.py",
        "(v.to(dtype) - 127.5) / 127.5",
        "v.to(dtype) / 255",
        "paper/test_section_3_3_scale.py::test_the_grid_is_rounded_once",
    ),
    Mistake(
        "P4",
        "MI Normalize((0.5,), (1.0)): data in [-0.5, 0.5]",
        "[-1, 1] (section 3.3)",
        "data.py",
        "(v.to(dtype) - 127.5) / 127.5",
        "(v.to(dtype) - 127.5) / 255",
        "paper/test_section_3_3_scale.py::test_the_grid_is_rounded_once",
    ),
    Mistake(
        "M40",
        "S4:353 28x28 resized to 32x32: levels that are not whole",
        "padded: eq. 13 needs 8-bit levels as they are",
        "workshop/datasets.py",
        "return pad(images, (left, more[1] - left, top, more[0] - top))",
        "return torch.nn.functional.interpolate(images.float(), size=size, "
        'mode="bilinear").to(images.dtype)',
        "workshop/test_training.py::test_pictures_are_padded_not_resized",
    ),
    Mistake(
        "M42",
        "S3:938 DataLoader without shuffle: the same batches in the same order",
        "x_0 ~ q(x_0) (Alg. 1 line 2): drawn uniformly, and mirrored half the time",
        "data.py",
        "i = torch.randint(N, (B,), generator=generator, device=device)",
        "i = torch.arange(B, device=device) % N",
        "paper/test_drawer.py::test_a_batch_is_a_function_of_the_generator",
    ),
)

BOUND = (
    Mistake(
        "P10",
        "HO, ID: Φ by a tanh formula in eq. 13",
        "the exact Φ, in both tails",
        "bound.py",
        "log_b: Tensor = torch.special.log_ndtr(b)",
        "log_a, log_b = (((c + 0.044715 * c**3) * (2 / math.pi) ** 0.5).tanh()"
        ".add(1).div(2).clamp(min=1e-12).log() for c in (a, b))",
        "paper/test_eq_13_decoder.py::test_each_bin_is_the_integral_of_the_density",
    ),
)

OURS = (
    Mistake(
        "O1",
        "P1 in section 4.4, whose loop is written out a second time",
        "z = 0 at t = 1 there too (Alg. 2 line 3)",
        "sampler.py",
        "z = randn_like(x_0, generator) if step > 1 else torch.zeros_like(x_0)",
        "z = randn_like(x_0, generator)",
        "paper/test_section_4_4_interpolation.py::"
        "test_interpolation_ends_at_its_two_pictures",
    ),
    Mistake(
        "O2",
        "eq. 4 takes t = 0, and what is built on it forgets to refuse that",
        "eq. 14 is for t = 1..T: x_0 has no noise to predict",
        "train.py",
        '    check_range("t", t, 1, s.T)  # eq. 4 takes t = 0 too\n',
        "",
        "paper/test_eq_14_loss.py::test_a_wrong_t_is_refused",
    ),
    Mistake(
        "O3",
        "the same in section 4.4",
        "pictures are mixed at a step t = 1..T",
        "sampler.py",
        "at(s.beta, t_B, x_0, x_0_prime",
        "at(s.beta, t_B, x_0, 0, x_0_prime",
        "paper/test_section_4_4_interpolation.py::"
        "test_interpolating_outside_1_to_T_is_refused",
    ),
    Mistake(
        "O4",
        "L_{t-1} at t = 1, where β̃_1 = 0: an infinite KL",
        "eq. 5 has L_{t-1} for t > 1, and L_0 (eq. 13) at t = 1",
        "bound.py",
        "t, x_0, first=2, x_0_hat",
        "t, x_0, first=1, x_0_hat",
        "paper/test_eq_12_is_eq_10_is_eq_8.py::test_the_first_step_has_no_kl",
    ),
    Mistake(
        "O5",
        "eq. 13's ends as ±inf: right, but 0 · inf in the backward pass is nan",
        "L_0 can be trained on at the levels 0 and 255",
        "bound.py",
        "(low - mean) / variance**0.5).masked_fill(level == 0, -FAR)",
        "low.masked_fill(level == 0, -math.inf) - mean) / variance**0.5",
        "paper/test_eq_13_decoder.py::test_the_gradient_of_the_decoder",
    ),
    Mistake(
        "O6",
        "an average of the parameters alone: buffers stay those of the first step",
        "buffers are the network's own (App. B has none)",
        "train.py",
        "of_ema.copy_(of_net)",
        "of_ema.copy_(of_ema)",
        "paper/test_ema.py::test_buffers_are_copied",
    ),
    Mistake(
        "O7",
        "gradients that are never set to 0 add up over the steps",
        "each step descends its own gradient (Alg. 1 line 5)",
        "train.py",
        "        optimiser.zero_grad()\n",
        "",
        "paper/test_algorithm_1.py::test_fit_is_algorithm_1_with_appendix_bs_optimiser",
    ),
    Mistake(
        "O8",
        "eq. 13's ends forgotten: bins of equal width at x = -1 and x = 1",
        "δ-(-1) = -∞ and δ+(1) = ∞: the 256 bins sum to 1",
        "bound.py",
        ".masked_fill(level == 255, FAR)",
        "",
        "paper/test_eq_13_decoder.py::test_the_256_bins_sum_to_one",
    ),
)

PROSE = (
    Mistake(
        "M11",
        'S1:41 "the original paper is referred to as DDIM"',
        "DDPM (Ho, Jain, Abbeel 2020); DDIM is Song, Meng, Ermon 2020",
    ),
    Mistake(
        "M12",
        "S3:27 the forward process is p, the reverse q; S0:22 p adds noise",
        "q adds noise (eq. 2), p_θ takes it away (eq. 1); our names follow",
        test="paper/test_every_equation.py::test_q_is_known_without_a_network",
    ),
    Mistake(
        "M13",
        'S0:34 "every Gaussian is independent of each other"',
        "a Markov chain: for unit-variance data corr(x_s, x_t) = √(ᾱ_t/ᾱ_s), s < t",
        test="paper/test_eq_02_is_eq_04.py::test_fifty_noisy_steps_have_the_law_of_eq_4",
    ),
    Mistake(
        "M15b",
        'S2:672 "ε represents the predicted noise"',
        "ε is the true noise, ε_θ its prediction (eq. 14)",
    ),
    Mistake(
        "M19",
        'S2:646 "∫_{x_1}^{x_T}" as the integral over paths',
        "∫ dx_{1:T}: over every x_t, of the whole space (eq. 1)",
    ),
    Mistake(
        "M29",
        "S2:161 set_out_channels changes attributes, not weights, and conv1 twice",
        "nothing that is never called or has no effect is kept",
    ),
    Mistake(
        "M35",
        "S1:285 the weights of the least epoch loss are kept",
        "that is luck of the draw of t and ε; checkpoints go by step",
    ),
    Mistake(
        "M36",
        "S0:573 the evaluation loss draws new t and ε each epoch",
        "the same t and ε each time, or exact sums: else it compares draws",
    ),
    Mistake(
        "M43b",
        'S2:426 save_dir + f"model_…" writes beside the folder it made',
        "paths are joined as paths",
    ),
    Mistake(
        "M44b",
        "S3:744 raise NotADirectoryError() for a missing method; S3:244 uses "
        "TimeStepEmbedding before it is defined",
        "NotImplementedError; snippets of a text run in its order",
    ),
    Mistake(
        "M45",
        'S1:7 "the original paper … does not incorporate [attention]"',
        "App. B: self-attention at 16 x 16",
    ),
    Mistake(
        "P5b",
        "W8 ['xprev' 'xstart', 'epsilon'] lacks a comma; \"Model params\" / 2^20",
        "no modes of prediction here; parameters are counted one by one",
    ),
    Mistake(
        "P7",
        "SM's test sum(t1 - t2) == 0: opposite errors cancel",
        "tests compare by the largest error",
    ),
    Mistake(
        "P8",
        "HF's golden sums (258.9606) pin outputs and do not say if they are right",
        "tests state a law; no number in them comes from the code under test",
    ),
    Mistake(
        "D11",
        "ID resumes from the file whose name carries the largest step",
        "the step stands in the file, beside the weights of that step",
    ),
    Mistake(
        "D12",
        "diffrax, tinygrad: comparisons of one side, or whose result is dropped",
        "a test that cannot fail is none; compare both sides, by assert",
    ),
)

MISTAKES = (
    *(*SCHEDULE, *FORWARD, *SAMPLER, *TRAINING),
    *(*NETWORKS, *DATA, *BOUND, *OURS, *PROSE),
)


def patched_text(mistake: Mistake, text: str) -> str:
    """The file's text with the mistake in it; an error unless `old` is there once."""
    found = text.count(mistake.old)
    if found != 1:
        raise ValueError(
            f"{mistake.name}: {mistake.old!r} occurs {found} times in {mistake.file}, "
            f"it must occur once; write the patch for the code as it is now"
        )
    return text.replace(mistake.old, mistake.new)


def verdicts(mistakes: Sequence[Mistake]) -> list[tuple[Mistake, str, str]]:
    """(mistake, verdict, why) for each: "caught", "prose", or what went wrong."""
    from .patched import ROOT, Trial, run

    trials = []
    for m in mistakes:
        text = patched_text(m, (ROOT / m.path).read_text()) if m.file else ""
        trials.append(Trial(m.path, text, (f"tests/{m.test}",)))
    tests = sorted({m.test for m in mistakes if m.test})
    clean = [Trial("", "", (f"tests/{test}",)) for test in tests]
    code = [i for i, m in enumerate(mistakes) if m.file]
    outcomes = dict(run([*clean, *(trials[i] for i in code)]))
    without = {test: outcomes[i] for i, test in enumerate(tests)}
    with_it = {i: outcomes[len(tests) + k] for k, i in enumerate(code)}
    table = []
    for i, m in enumerate(mistakes):
        if m.test and without[m.test].verdict != "passes":
            table.append((m, "fails without it", without[m.test].why))
        elif not m.file:
            table.append((m, "prose", m.test))
        elif with_it[i].verdict == "law":
            table.append((m, "caught", with_it[i].why))
        else:
            missed = "missed" if with_it[i].verdict == "passes" else with_it[i].verdict
            table.append((m, missed, with_it[i].why))
    return table


def main(names: Sequence[str]) -> int:
    """Prints the entries named (M3, say), or all, each with its verdict."""
    known = {part for m in MISTAKES for part in (m.name, *m.name.split(", "))}
    if unknown := set(names) - known:
        print(f"no such entry: {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    chosen = [
        m for m in MISTAKES if not names or {m.name, *m.name.split(", ")} & set(names)
    ]
    table = verdicts(chosen)
    for m, verdict, why in table:
        print(f"{m.name:12} {verdict:8} {m.who}\n{'':21} right: {m.right}")
        print(f"{'':21} {why}" if why else "")
    counts = {v: sum(verdict == v for _, verdict, _ in table) for _, v, _ in table}
    print(", ".join(f"{n} {verdict}" for verdict, n in sorted(counts.items())))
    return int(set(counts) - {"caught", "prose"} != set())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
