"""The method, in float64 on a tiny random UNet: against a naive transcription, and what the paper's algebra promises."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sidlsg.method.algorithm import Batch, update_fake_score, update_generator
from sidlsg.method.condition import Condition
from sidlsg.method.ema import Ema, ema_decay
from sidlsg.method.generator import OneStepGenerator
from sidlsg.method.guidance import STRATEGIES, guided, network_passes, predictions
from sidlsg.method.losses import fake_score_loss, generator_loss
from sidlsg.method.optim import LeanAdam
from sidlsg.method.statistics import reference_loss, score_gap
from sidlsg.method.update import Losses, NetworkUpdate, sum_in_buckets
from sidlsg.teachers.schedules import ddpm_schedule
from support.algorithm import KAPPAS, Setup, capture_gradient, draws, parameters
from support.naive import NaiveAlgorithm1
from support.tiny import SD_BETAS, denoiser, text


@pytest.mark.parametrize(
    ("kappas", "alpha", "prediction", "two_stage"),
    [
        *((k, 1.0, "epsilon", False) for k in KAPPAS.values()),
        (KAPPAS["lsg"], 1.2, "epsilon", True),
        (KAPPAS["lsg"], 1.0, "v_prediction", False),
        (KAPPAS["all different"], 1.2, "v_prediction", True),
    ],
)
def test_iterations_equal_the_naive_transcription(kappas, alpha, prediction, two_stage) -> None:
    setup = Setup(kappas, alpha, batch=4, prediction=prediction)
    setup.nets.two_stage = two_stage
    phi = setup.phi.requires_grad_(True)
    naive = NaiveAlgorithm1(phi, kappas, alpha=alpha, batch=4, v=prediction == "v_prediction")
    setup.phi.requires_grad_(False)
    ema = Ema(setup.theta)
    for i in range(2):
        first, second = draws(2 * i, 4), draws(2 * i + 1, 4)
        psi_stats, theta_stats = setup.iterate(first, second, micro_batch=2)
        ema.update(ema_decay(4 * i, 4, 50_000, 0.05))
        loss_fake = naive.fake_score_step(first.z, first.c["text"], first.t, first.eps, setup.empty["text"])
        loss_generator = naive.generator_step(second.z, second.c["text"], second.t, second.eps, setup.empty["text"])
        assert psi_stats.loss.item() == pytest.approx(loss_fake, rel=1e-6)
        assert theta_stats.loss.item() == pytest.approx(loss_generator, rel=1e-6, abs=1e-6)
    # Adam's first steps are sign-like: where a gradient is rounding noise around zero the step is too, so the bulk must
    # agree tightly and no element may be further off than the steps taken.
    for ours, theirs in ((setup.psi, naive.psi), (setup.theta, naive.theta)):
        gaps = torch.cat([(p - q).abs().flatten() for p, q in zip(ours.parameters(), theirs.parameters(), strict=True)])
        assert (gaps < 1e-9).double().mean() > 0.95
        assert gaps.max() < 3.5e-4
    gaps = torch.cat([(ema.average[n] - naive.average[n]).abs().flatten() for n in naive.average])
    assert (gaps < 1e-9).double().mean() > 0.95


@pytest.mark.parametrize("alpha", [1.0, 1.2])
@pytest.mark.parametrize("kappas", KAPPAS.values(), ids=KAPPAS.keys())
def test_eps_form_equals_x0_form_in_value_and_gradient(kappas, alpha) -> None:
    """Eq. 8 with Eq. 9, from noise predictions and from x0 predictions, differentiated through both networks."""
    setup = Setup(kappas)
    setup.disturb()
    batch = draws(3)
    schedule, k = setup.schedule, setup.nets.guidance
    results = []
    for form in ("eps", "x0"):
        x_g = setup.nets.generator(batch.z, batch.c)
        x_t = schedule.add_noise(x_g, batch.eps, batch.t)
        real = guided(*predictions(setup.nets.teacher, x_t, batch.t, batch.c, setup.empty, k.kappa4), k.kappa4)
        fake = predictions(setup.nets.fake, x_t, batch.t, batch.c, setup.empty, k.kappa2, k.kappa3)
        fake2, fake3 = guided(*fake, k.kappa2), guided(*fake, k.kappa3)
        if form == "eps":
            loss = generator_loss(real, fake2, fake3, batch.eps, schedule.noise_to_data_ratio(batch.t, x_t), alpha)
        else:
            f_phi, f_psi2, f_psi3 = (schedule.x0_from_eps(x_t, e, batch.t) for e in (real, fake2, fake3))
            weight = (x_g - f_phi).abs().mean(dim=(1, 2, 3)).detach().clamp(min=1e-5)
            bracket = f_psi3 - x_g if alpha == 1 else (f_phi - x_g) - alpha * (f_phi - f_psi3)
            loss = ((f_phi - f_psi2) * bracket).sum(dim=(1, 2, 3)) / weight
        gradients = torch.autograd.grad(loss.sum(), list(setup.theta.parameters()))
        results.append((loss.detach(), gradients))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-9, atol=1e-9)
    for g1, g2 in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(g1, g2, rtol=1e-7, atol=1e-7)


def test_gradient_flows_through_both_score_networks() -> None:
    """Stopping it at either network (SDS, DMD) is another algorithm, with another gradient."""
    setup = Setup(KAPPAS["long"])
    setup.disturb()
    batch = draws(5)

    def gradient(stop_real: bool, stop_fake: bool) -> Tensor:
        x_g = setup.nets.generator(batch.z, batch.c)
        x_t = setup.schedule.add_noise(x_g, batch.eps, batch.t)
        real = guided(*predictions(setup.nets.teacher, x_t, batch.t, batch.c, setup.empty, 3), 3)
        fake = setup.nets.fake(x_t, batch.t, batch.c)
        real, fake = real.detach() if stop_real else real, fake.detach() if stop_fake else fake
        loss = generator_loss(real, fake, fake, batch.eps, setup.schedule.noise_to_data_ratio(batch.t, x_t))
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss.sum() / 8, list(setup.theta.parameters()))])

    captured = capture_gradient(setup, batch)
    full = gradient(False, False)
    torch.testing.assert_close(captured, full, rtol=1e-9, atol=1e-9)
    for stops in ((True, False), (False, True)):
        assert (gradient(*stops) - full).norm() > 0.01 * full.norm()


@pytest.mark.parametrize("kappas", [KAPPAS["lsg"], KAPPAS["all different"]])
def test_micro_batches_do_not_change_the_result(kappas) -> None:
    """8 x 1 = 4 x 2 = 1 x 8: gradients to rounding, statistics too."""
    reference = None
    for micro_batch in (8, 4, 2, 1):
        setup = Setup(kappas)
        setup.disturb()
        gradient = capture_gradient(setup, draws(9), micro_batch)
        stats = update_fake_score(setup.nets, setup.update_psi, draws(8), micro_batch)
        result = torch.cat([gradient, stats.loss.double().view(1)])
        if reference is None:
            reference = result
        torch.testing.assert_close(result, reference, rtol=1e-6, atol=1e-10 * float(reference.abs().max()))


@pytest.mark.parametrize("kappa", [0.0, 1.0, 0.5, 4.5])
def test_equal_networks_and_scales_give_zero_gradient(kappa: float) -> None:
    setup = Setup((1.0, kappa, kappa, kappa))
    zero = capture_gradient(setup, draws(1))
    setup = Setup((1.0, kappa, kappa, kappa + 1))
    assert zero.norm() < 1e-12 * capture_gradient(setup, draws(1)).norm()


@pytest.mark.parametrize("kappas", [KAPPAS["lsg"], KAPPAS["short"], KAPPAS["zero"]], ids=["lsg", "short", "zero"])
def test_statistics_of_the_generators_update(kappas) -> None:
    """Gap by band, the teacher's loss and the gradient's norm, sample by sample, without the sample that is left out."""
    setup = Setup(kappas)
    setup.disturb()
    setup.nets.t_range = (20, 779)  # bands of 190
    batch = draws(6)
    batch.t = torch.tensor([20, 209, 210, 399, 400, 590, 779, 300])
    batch.z[7] = float("nan")
    gaps: list[list[float]] = [[], [], [], []]
    references = []
    k2, k4 = kappas[1], kappas[3]
    with torch.no_grad():
        for i in range(7):
            c, empty, t = batch.c.rows([i]), setup.empty, batch.t[i : i + 1]
            x_t = setup.schedule.add_noise(setup.nets.generator(batch.z[i : i + 1], c), batch.eps[i : i + 1], t)
            phi, phi_empty = setup.nets.teacher(x_t, t, c), setup.nets.teacher(x_t, t, empty)
            psi, psi_empty = setup.nets.fake(x_t, t, c), setup.nets.fake(x_t, t, empty)
            gap = (1 - k4) * phi_empty + k4 * phi - (1 - k2) * psi_empty - k2 * psi
            gaps[(t.item() - 20) // 190].append(gap.square().mean().item())
            references.append((phi - batch.eps[i]).square().sum().item())
    gradient = capture_gradient(setup, batch, 4)
    stats = update_generator(setup.nets, setup.update_theta, batch, 4)
    assert score_gap(stats.sums) == pytest.approx([(sum(g) / len(g)) ** 0.5 for g in gaps], rel=1e-5)
    # Where kappa4 asks for the unconditional pass alone there is no conditional loss, and no other stands in its place.
    expected = None if k4 == 0 else pytest.approx(sum(references) / 7, rel=1e-5)
    assert reference_loss(stats.sums) == expected
    assert stats.grad_norm.item() == pytest.approx(gradient.norm().item(), rel=1e-5)
    batch.t[:] = 30
    stats = update_generator(setup.nets, setup.update_theta, batch, 8)
    assert score_gap(stats.sums)[1:] == [None, None, None]


def test_losses_are_sums_over_pixels_with_the_floor_of_eq_9() -> None:
    eps, other = torch.randn(2, 3, 4, 8, 8, dtype=torch.float64)
    ratio = torch.tensor([0.5, 2.5, 13.0], dtype=torch.float64).view(3, 1, 1, 1)
    for i in range(3):
        assert fake_score_loss(other, eps)[i].item() == pytest.approx(((other[i] - eps[i]) ** 2).sum().item())
    # eps_real = eps: f_phi = x_g, the denominator is at its floor and the loss finite.
    loss = generator_loss(eps, other, other, eps, ratio)
    for i in range(3):
        f_difference = ratio[i] * (other[i] - eps[i])
        expected = (f_difference * ratio[i] * (eps[i] - other[i])).sum() / 1e-5
        assert loss[i].item() == pytest.approx(expected.item())


@pytest.mark.parametrize("kappa", [0.0, 0.3, 1.0, 2.0, 7.5])
def test_guidance_passes_and_value(kappa: float) -> None:
    """Eq. 6, with a single pass where one suffices; a dropped prompt makes both branches equal."""
    seen: list[int] = []

    def net(x: Tensor, t: Tensor, c: Condition) -> Tensor:
        seen.append(len(x))
        return x * c["text"].mean(dim=(1, 2)).view(-1, 1, 1, 1) + t.view(-1, 1, 1, 1)

    x, c, empty = torch.randn(3, 1, 2, 2), text(torch.randn(3, 5, 2)), text(torch.randn(1, 5, 2))
    t = torch.tensor([1, 2, 3])
    out = guided(*predictions(net, x, t, c, empty, kappa), kappa)
    assert seen == [3 if kappa in (0, 1) else 6]
    without, with_c = net(x, t, empty.expand(3)), net(x, t, c)
    torch.testing.assert_close(out, without + kappa * (with_c - without))
    dropped = guided(*predictions(net, x, t, empty.expand(3), empty, kappa), kappa)
    torch.testing.assert_close(dropped, without)
    seen.clear()
    both = predictions(net, x, t, c, empty, kappa, 1.0)
    assert sum(seen) == 3 * network_passes(kappa, 1.0) == (3 if kappa == 1 else 6)
    torch.testing.assert_close(guided(*both, kappa), out)
    torch.testing.assert_close(guided(*both, 1.0), with_c)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("eps", [1e-8, 1e-6])
def test_lean_adam_equals_torch_adam_bit_for_bit(dtype: torch.dtype, eps: float) -> None:
    torch.manual_seed(0)
    shapes = [(3, 5), (7,), (2, 3, 4), (1,)]
    ours = [torch.nn.Parameter(torch.randn(s).to(dtype)) for s in shapes]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    lean = LeanAdam(ours, lr=1e-3, eps=eps, chunk=8)
    adam = torch.optim.Adam(theirs, lr=1e-3, betas=(0.0, 0.999), eps=eps)
    for step in range(50):
        for p, q in zip(ours, theirs, strict=True):
            grad = (torch.randn(p.shape) * 10 ** torch.randint(-3, 2, ()).item()).to(dtype)
            # A parameter without a gradient in some steps is left alone by both.
            p.grad, q.grad = (None, None) if step == 7 and p.ndim == 2 else (grad, grad.clone())
        if step == 7:
            continue
        lean.step()
        adam.step()
        for p, q in zip(ours, theirs, strict=True):
            assert torch.equal(p, q)


def test_processes_exchange_a_few_large_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one dtype and at most BUCKET elements (or one tensor); every tensor gets its own sum back, whatever its layout."""
    monkeypatch.setattr("sidlsg.method.update.BUCKET", 1000)
    shapes = [(8, 4, 3, 3), (8,), (40, 30), (5, 1), (16, 7)]
    tensors = [torch.randn(shape) for shape in shapes] + [torch.randn(9).half(), torch.randn(3).half()]
    tensors[0] = tensors[0].to(memory_format=torch.channels_last)
    expected, sent = [3 * tensor for tensor in tensors], []

    def reduce(bucket: torch.Tensor) -> None:
        sent.append((bucket.dtype, bucket.numel()))
        bucket.mul_(3)

    sum_in_buckets(tensors, reduce)
    assert sent == [(torch.float32, 296), (torch.float32, 1200), (torch.float32, 117), (torch.float16, 12)]
    assert all(torch.equal(a, b) for a, b in zip(tensors, expected, strict=True))


def test_gradients_and_statistics_are_summed_over_the_processes() -> None:
    """Two processes with the same samples: the gradient that reaches the optimiser, and the sums, are twice one's."""
    gradients, losses = [], []
    for reduce in (None, lambda bucket: bucket.mul_(2)):
        setup = Setup()
        setup.disturb()
        setup.update_psi.reduce = reduce
        setup.update_psi.optimizer.step = lambda setup=setup: gradients.append(  # type: ignore[method-assign, assignment]
            torch.cat([p.grad.flatten() for p in setup.psi.parameters()])
        )
        losses.append(update_fake_score(setup.nets, setup.update_psi, draws(2), 4).loss)
    assert torch.equal(gradients[1], 2 * gradients[0])
    assert torch.equal(losses[1], 2 * losses[0])


@pytest.mark.parametrize("autocast", [torch.bfloat16])
@pytest.mark.parametrize("kappas", [KAPPAS["lsg"], KAPPAS["long"]])
def test_every_trainable_parameter_gets_a_gradient_under_autocast(autocast, kappas) -> None:
    """A pass inside no_grad must not poison autocast's weight cache (psi's update generates without gradient first)."""
    setup = Setup(kappas, autocast=autocast, dtype=torch.float32)
    setup.disturb()
    for net, update, step in (
        (setup.psi, setup.update_psi, update_fake_score),
        (setup.theta, setup.update_theta, update_generator),
    ):
        missing: list[str] = []
        update.optimizer.step = lambda net=net, missing=missing: missing.extend(  # type: ignore[method-assign, assignment]
            n for n, p in net.named_parameters() if p.grad is None or not p.grad.any() or p.grad.dtype != torch.float32
        )
        step(setup.nets, update, draws(2, dtype=torch.float32), 4)
        # Biases in front of a normalisation over few elements may have an exactly zero gradient; weights never.
        assert [n for n in missing if n.endswith("weight")] == []
        assert all(p.requires_grad for p in setup.psi.parameters())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_non_finite_sample_is_left_out_and_the_others_count(bad: float) -> None:
    """The update with a spoilt sample in its own micro-batch equals the one whose loss leaves that sample out."""
    batch, spoilt = draws(4), draws(4)
    spoilt.z[3] = bad
    clean = Setup(KAPPAS["lsg"])
    clean.disturb()
    with torch.no_grad():
        kept = [i for i in range(8) if i != 3]
    reference = Batch(batch.z[kept], batch.c.rows(kept), batch.t[kept], batch.eps[kept])
    expected = capture_gradient(clean, reference, 1)
    setup = Setup(KAPPAS["lsg"])
    setup.disturb()
    gradient = capture_gradient(setup, spoilt, 1)
    torch.testing.assert_close(gradient, expected)
    stats = update_fake_score(setup.nets, setup.update_psi, spoilt, 4)
    assert stats.skipped.item() == 1
    assert all(p.isfinite().all() for p in setup.psi.parameters())


def test_an_all_non_finite_batch_steps_with_zeros() -> None:
    """No branch on the host, no hang: gradients are zeros and the weights stay."""
    setup = Setup(KAPPAS["long"])
    before = parameters(setup.theta)
    batch = draws(0)
    batch.z[:] = float("nan")
    stats = update_generator(setup.nets, setup.update_theta, batch, 4)
    assert stats.skipped.item() == 8
    for name, p in setup.theta.named_parameters():
        assert torch.equal(p, before[name])


def test_halves_that_overflow_do_not_freeze_a_weight_for_good() -> None:
    """Finite half gradients can add up to inf, and the square of one above 255.9 is inf already: the second moment would stay
    infinite and the weight stand still whatever comes later."""
    weight = torch.nn.Parameter(torch.full((3,), 1e-3, dtype=torch.float16))
    module = torch.nn.Module()
    module.register_parameter("weight", weight)
    update = NetworkUpdate(module, LeanAdam(module.parameters(), lr=1e-3, eps=1e-6), batch=1)
    keep, x_g = torch.ones(1, dtype=torch.bool), torch.zeros(1, 1, 1, 1)

    def step(*scales: float) -> None:
        for scale in scales:
            loss = (weight * scale).sum().view(1)
            assert loss.isfinite()
            update.accumulate(Losses(loss, keep, x_g))
        update.step()

    step(6000.0, 6000.0)  # twelve thousand: finite, but not its square
    for _ in range(3):
        weight.data.fill_(1e-3)
        step(60_000.0, 60_000.0)  # more than the largest half
    for _ in range(200):
        step(8000.0)  # and for long enough that the mean of squares is a square itself
    assert update.optimizer.second_moment(weight).isfinite().all()
    before = weight.detach().clone()
    for _ in range(20):
        step(300.0)
    assert weight.isfinite().all()
    assert (weight - before).abs().min() > 1e-3


def test_updates_touch_only_their_own_network() -> None:
    setup = Setup(KAPPAS["lsg"])
    setup.disturb()
    phi, psi, theta = (parameters(n) for n in (setup.phi, setup.psi, setup.theta))
    update_fake_score(setup.nets, setup.update_psi, draws(1), 8)
    assert all(torch.equal(p, theta[n]) for n, p in setup.theta.named_parameters())
    assert not all(torch.equal(p, psi[n]) for n, p in setup.psi.named_parameters())
    psi = parameters(setup.psi)
    update_generator(setup.nets, setup.update_theta, draws(2), 8)
    assert all(torch.equal(p, psi[n]) for n, p in setup.psi.named_parameters())
    assert not all(torch.equal(p, theta[n]) for n, p in setup.theta.named_parameters())
    assert all(torch.equal(p, phi[n]) for n, p in setup.phi.named_parameters())


def test_generator_input_is_sigma_z(monkeypatch) -> None:
    """Eq. 9: the network sees sigma_{t_init} z at t_init, and x_g = (sigma z - sigma eps) / a."""
    schedule = ddpm_schedule(SD_BETAS)
    seen = {}

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))

        def forward(self, x, t, c):
            seen.update(x=x, t=t)
            return type("Output", (), {"sample": 0 * x})

    z = torch.randn(2, 4, 4, 4, dtype=torch.float64)
    x_g = OneStepGenerator(denoiser(Net(), schedule), 625)(z, text(torch.zeros(2, 1, 1, dtype=torch.float64)))
    sigma = (1 - 0.1377686) ** 0.5
    torch.testing.assert_close(seen["x"], sigma * z, rtol=1e-6, atol=1e-6)
    assert seen["t"].tolist() == [625, 625]
    torch.testing.assert_close(x_g, 2.501706 * z, rtol=1e-5, atol=1e-6)


def test_ema_half_life_and_ramp_up() -> None:
    assert ema_decay(0, 512, 50_000, 0.05) == 0  # the first average is theta itself
    assert ema_decay(10_000_000, 512, 50_000, 0.05) == pytest.approx(1 - 0.0071, abs=5e-5)
    assert ema_decay(100_000, 512, 50_000, 0.05) == 0.5 ** (512 / 5000)
    assert ema_decay(0, 512, 50_000, None) == 0.5 ** (512 / 50_000)
    decay = 1.0
    for _ in range(100):
        decay *= ema_decay(10**7, 500, 50_000, 0.05)
    assert decay == pytest.approx(0.5)


def test_every_named_strategy_has_a_legal_default() -> None:
    for strategy in STRATEGIES.values():
        assert all(k >= 0 for k in strategy.spread(strategy.default))


def test_a_loss_that_is_not_finite_counts_as_zero() -> None:
    """Of a sample whose image is finite: the statistics are those of the batch without it, over the same batch size."""
    losses = []
    for poison in (False, True):
        setup, batch = Setup(), draws(3)
        setup.disturb()
        if poison:
            batch.eps[2] = float("nan")
        else:
            kept = [0, 1, 3, 4, 5, 6, 7]
            batch = Batch(batch.z[kept], batch.c.rows(kept), batch.t[kept], batch.eps[kept])
        stats = update_fake_score(setup.nets, setup.update_psi, batch, 4)
        assert stats.skipped.item() == poison
        losses.append(stats.loss)
    torch.testing.assert_close(*losses)
