"""From a diffusers scheduler's configuration to the forward process of Eq. 2."""

from __future__ import annotations

from typing import Any

import torch

from sidlsg.errors import UsageError, sentence
from sidlsg.files import Kinds
from sidlsg.method.schedule import NoiseSchedule

# Schedulers over the discrete DDPM process; others (flow matching, EDM, consistency models) are another process.
DDPM_CLASSES = (
    "DDPM",
    "DDPMParallel",
    "DDIM",
    "DDIMParallel",
    "PNDM",
    "LMSDiscrete",
    "EulerDiscrete",
    "EulerAncestralDiscrete",
    "HeunDiscrete",
    "KDPM2Discrete",
    "KDPM2AncestralDiscrete",
    "DPMSolverMultistep",
    "DPMSolverSinglestep",
    "DPMSolverSDE",
    "SASolver",
    "DEISMultistep",
    "UniPCMultistep",
    "LCM",
    "TCD",
)


# What the models of Stable Diffusion 1.x, 2.x and XL were trained with.
PUBLISHED = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
KINDS: Kinds = {
    "_class_name": str,
    "num_train_timesteps": int,
    "beta_start": (int, float),
    "beta_end": (int, float),
    "beta_schedule": str,
    "trained_betas": list,
    "prediction_type": str,
}


def ddpm_schedule(config: dict[str, Any]) -> NoiseSchedule:
    """From a diffusers scheduler config (PNDM, DDIM, DDPM, Euler...), of which only the betas and the prediction are used.

    ``clip_sample`` and thresholding are ignored on purpose: latents exceed ±1.

    Raises UsageError for a scheduler of another process, missing betas, or zero terminal SNR.
    """
    from diffusers import DDPMScheduler

    kind = config.get("_class_name", "DDPMScheduler")
    flow = " with use_flow_sigmas, which is flow matching" if config.get("use_flow_sigmas") else ""
    if flow or kind not in (f"{name}Scheduler" for name in DDPM_CLASSES):
        raise UsageError(
            f"the model's scheduler is a {kind}{flow}; SiD-LSG handles DDPM schedules (DDIM, PNDM, Euler, DPM-Solver...)"
        )
    if config.get("rescale_betas_zero_snr"):
        raise UsageError("the teacher's schedule has zero terminal SNR (a_t = 0), where Eq. 8 is not defined")
    if not 1 <= config.get("num_train_timesteps", 1) <= 100_000:
        raise UsageError(f"the model's scheduler_config.json has {config['num_train_timesteps']} timesteps")
    keys = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas")
    given = {key: config[key] for key in keys if config.get(key) is not None}
    needed = ("trained_betas",) if "trained_betas" in given else keys[:4]
    if missing := [key for key in needed if key not in given]:
        raise UsageError(f"the model's scheduler_config.json lacks {', '.join(missing)}; copy the original file")
    try:
        scheduler = DDPMScheduler(**given)
    except Exception as error:  # an unknown beta_schedule, betas that are no numbers
        raise UsageError(f"the betas in the model's scheduler_config.json cannot be used: {sentence(error)}") from None
    # The float64 betas are recomputed for the two closed forms: diffusers keeps them in float32.
    betas = scheduler.betas.double()
    if "trained_betas" not in given:
        start, end, count = scheduler.config.beta_start, scheduler.config.beta_end, len(betas)
        if scheduler.config.beta_schedule == "scaled_linear":
            betas = torch.linspace(start**0.5, end**0.5, count, dtype=torch.float64) ** 2
        elif scheduler.config.beta_schedule == "linear":
            betas = torch.linspace(start, end, count, dtype=torch.float64)
    return NoiseSchedule(betas, config.get("prediction_type", "epsilon"))


def compare(schedule: NoiseSchedule, published: NoiseSchedule, t_init: int) -> str | None:
    """A sentence when sigma/a at t_init is more than 1 % off that of the published schedule, which scales the generator's every
    picture (Eq. 9); None when it is not."""
    one = torch.ones((), dtype=torch.float64)
    found, wanted = (s.noise_to_data_ratio(t_init, one).item() for s in (schedule, published))
    if abs(found / wanted - 1) <= 0.01:
        return None
    return (
        f"σ/a at t_init {t_init} is {found:.4f} by the teacher's scheduler_config.json, and {wanted:.4f} in the published "
        "models' schedule. That is right only for a model trained with these betas; else copy the original scheduler folder"
    )
