"""The samplers of a teacher: what `--sampler` calls them, and diffusers' scheduler. No torch in here."""

SAMPLERS = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "pndm": "PNDMScheduler",
    "euler": "EulerDiscreteScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
}
# Schedulers of models whose noise does not come from the seeds of the pictures (and needs a library that few have): what draws in
# their place, with which settings.
STAND_INS = {"DPMSolverSDEScheduler": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"})}
