"""Score identity Distillation with Long-Short Guidance: one-step generators out of latent diffusion models."""

__version__ = "0.1.0"
