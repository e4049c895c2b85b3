"""From a diffusers scheduler's configuration to the forward process of Eq. 2."""

from __future__ import annotations

from typing import Any

import torch

from sidlsg.errors import UsageError
from sidlsg.method.schedule import NoiseSchedule

# Schedulers over the discrete DDPM process; others (flow matching, EDM, consistency models) are another process.
DDPM_CLASSES = (
    "DDPM",
    "DDIM",
    "PNDM",
    "LMSDiscrete",
    "EulerDiscrete",
    "EulerAncestralDiscrete",
    "HeunDiscrete",
    "KDPM2Discrete",
    "KDPM2AncestralDiscrete",
    "DPMSolverMultistep",
    "DPMSolverSinglestep",
    "DEISMultistep",
    "UniPCMultistep",
    "LCM",
    "TCD",
)


def ddpm_schedule(config: dict[str, Any]) -> NoiseSchedule:
    """From a diffusers scheduler config (PNDM, DDIM, DDPM, Euler...), of which only the betas and the prediction are used.

    ``clip_sample`` and thresholding are ignored on purpose: latents exceed ±1.

    Raises UsageError for a scheduler of another process, missing betas, or zero terminal SNR.
    """
    from diffusers import DDPMScheduler

    kind = config.get("_class_name", "DDPMScheduler")
    if kind.removesuffix("Scheduler") not in DDPM_CLASSES or config.get("use_flow_sigmas"):
        raise UsageError(
            f"the model's scheduler is a {kind}; SiD-LSG handles DDPM schedules (DDIM, PNDM, Euler, DPM-Solver...)"
        )
    if config.get("rescale_betas_zero_snr"):
        raise UsageError("the teacher's schedule has zero terminal SNR (a_t = 0), where Eq. 8 is not defined")
    keys = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas")
    given = {key: config[key] for key in keys if config.get(key) is not None}
    needed = ("trained_betas",) if "trained_betas" in given else keys[:4]
    if missing := [key for key in needed if key not in given]:
        raise UsageError(f"the model's scheduler_config.json lacks {', '.join(missing)}; copy the original file")
    scheduler = DDPMScheduler(**given)
    # The float64 betas are recomputed for the two closed forms: diffusers keeps them in float32.
    betas = scheduler.betas.double()
    if "trained_betas" not in given:
        start, end, count = scheduler.config.beta_start, scheduler.config.beta_end, len(betas)
        if scheduler.config.beta_schedule == "scaled_linear":
            betas = torch.linspace(start**0.5, end**0.5, count, dtype=torch.float64) ** 2
        elif scheduler.config.beta_schedule == "linear":
            betas = torch.linspace(start, end, count, dtype=torch.float64)
    return NoiseSchedule(betas, config.get("prediction_type", "epsilon"))
