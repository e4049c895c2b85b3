"""The forward process against diffusers and against the paper's figures."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler, PNDMScheduler

from sidlsg.errors import UsageError
from sidlsg.method.schedule import NoiseSchedule
from sidlsg.teachers.schedules import ddpm_schedule
from sidlsg.teachers.stable_diffusion import StableDiffusion
from support.tiny import SD_BETAS


@pytest.fixture
def schedule() -> NoiseSchedule:
    return ddpm_schedule(SD_BETAS)


def test_paper_figures_at_t_init(schedule: NoiseSchedule) -> None:
    one = torch.ones(1, dtype=torch.float64)
    a, sigma = schedule.coefficients(625, one)
    assert a**2 == pytest.approx(0.137769, abs=5e-7)
    assert sigma == pytest.approx(0.9286, abs=5e-5)
    assert schedule.noise_to_data_ratio(625, one) == pytest.approx(2.5017, abs=5e-5)
    assert schedule.coefficients(979, one)[0] == pytest.approx(0.077, abs=5e-4)


@pytest.mark.parametrize("kind", [PNDMScheduler, DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler])
@pytest.mark.parametrize("betas", ["scaled_linear", "linear", "squaredcos_cap_v2"])
def test_equals_diffusers_for_any_betas(kind: type, betas: str) -> None:
    if betas == "squaredcos_cap_v2" and kind is DDIMScheduler:
        betas = "scaled_linear"
    reference = kind(**{**SD_BETAS, "beta_schedule": betas})
    schedule = ddpm_schedule(dict(reference.config))
    like = torch.ones(1, dtype=torch.float64)
    t = torch.arange(1000)
    a, sigma = schedule.coefficients(t, like)
    torch.testing.assert_close(a**2, reference.alphas_cumprod.double(), rtol=2e-5, atol=1e-7)
    torch.testing.assert_close(a**2 + sigma**2, torch.ones(1000, dtype=torch.float64))


def test_trained_betas_and_bad_configs() -> None:
    betas = [0.1, 0.2, 0.3]
    schedule = ddpm_schedule({"trained_betas": betas, "num_train_timesteps": 3})
    assert len(schedule) == 3
    assert schedule.coefficients(2, torch.ones(1, dtype=torch.float64))[0] ** 2 == pytest.approx(
        0.9 * 0.8 * 0.7, rel=1e-6
    )
    with pytest.raises(UsageError, match="sample"):
        ddpm_schedule({**SD_BETAS, "prediction_type": "sample"})
    with pytest.raises(UsageError, match="zero terminal SNR"):
        ddpm_schedule({**SD_BETAS, "rescale_betas_zero_snr": True})
    with pytest.raises(UsageError, match="betas"):
        NoiseSchedule(torch.tensor([0.1, 1.5]))


@pytest.mark.parametrize("t", [0, 20, 625, 979, 999])
def test_predictions_convert_into_each_other(schedule: NoiseSchedule, t: int) -> None:
    x, eps = torch.randn(2, 3, 4, 5, 6, dtype=torch.float64)
    index = torch.full((3,), t)
    x_t = schedule.add_noise(x, eps, index)
    torch.testing.assert_close(schedule.x0_from_eps(x_t, eps, index), x)
    reference = DDPMScheduler(**SD_BETAS)
    torch.testing.assert_close(x_t.float(), reference.add_noise(x.float(), eps.float(), index), rtol=1e-4, atol=1e-5)
    # v as diffusers defines it, from x0 and the noise.
    velocity = reference.get_velocity(x, eps, index)
    v_schedule = NoiseSchedule(schedule.betas, "v_prediction")
    torch.testing.assert_close(v_schedule.eps_from_output(velocity, x_t, index), eps, rtol=1e-4, atol=1e-4)
    assert schedule.eps_from_output(eps, x_t, index) is eps


@pytest.mark.parametrize("t_init", [354, 550, 625, 675, 800, 900, 999])
def test_one_step_scheduler_is_the_generator(schedule: NoiseSchedule, t_init: int) -> None:
    """One stock Euler step = Eq. 9, for every t_init the paper tried."""
    scheduler = StableDiffusion().one_step_scheduler(schedule, t_init)
    scheduler.set_timesteps(1)
    assert scheduler.timesteps.tolist() == [t_init]
    z, eps = torch.randn(2, 2, 4, 4, 4)
    noise = z * scheduler.init_noise_sigma
    t = torch.full((2,), t_init)
    _, sigma = schedule.coefficients(t, z)
    seen_by_network = scheduler.scale_model_input(noise, scheduler.timesteps[0])
    torch.testing.assert_close(seen_by_network, sigma * z, rtol=1e-5, atol=1e-6)
    x_g = scheduler.step(eps, scheduler.timesteps[0], noise).prev_sample
    torch.testing.assert_close(x_g, schedule.x0_from_eps(sigma * z, eps, t), rtol=1e-4, atol=1e-4)
