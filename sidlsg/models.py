"""Loading teachers and students: Stable Diffusion folders and hub repositories, component by component."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sidlsg.config import Config
from sidlsg.errors import SidlsgError, UsageError
from sidlsg.prompts import TextEncoder
from sidlsg.registry import Location, locate
from sidlsg.schedule import NoiseSchedule

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
STUDENT_FILE = "sidlsg.json"  # beside model_index.json, in folders that this tool wrote


@dataclass
class Model:
    """The parts of a latent diffusion model, on one device, frozen and in eval mode.

    ``source`` is the folder or hub id it came from; ``student`` holds ``sidlsg.json`` of a one-step student, else None.
    """

    source: str
    tokenizer: Any
    text_encoder: nn.Module
    vae: Any
    unet: Any
    scheduler_config: dict[str, Any]
    schedule: NoiseSchedule
    student: dict[str, Any] | None = None

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one latent at the model's own resolution, from its configs."""
        return unet_latent_shape(self.unet)

    def encode(self) -> TextEncoder:
        return TextEncoder(self.tokenizer, self.text_encoder)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents [B, C, H, W] -> images [B, 3, H', W'] in [0, 1], by the VAE in float32.

        A VAE that waits on another device comes to the latents' for the time of the call.
        """
        home = next(self.vae.parameters()).device
        try:
            images = self.vae.to(latents.device).decode(latents.float() / self.vae.config.scaling_factor).sample
        finally:
            self.vae.to(home)
        return (images / 2 + 0.5).clamp(0, 1)


def unet_latent_shape(unet: Any) -> tuple[int, int, int]:
    """(C, H, W) that a UNet was made for."""
    size = unet.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    return (unet.config.in_channels, height, width)


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """ "auto" is the GPU of this process where there is one; raises UsageError for a device that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f'unknown device "{name}"; use auto, cpu, cuda or cuda:0') from None
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UsageError(f"device {name}: this PyTorch sees no CUDA GPU; use --device cpu")
        device = torch.device("cuda", device.index if device.index is not None else local_rank)
        if device.index >= torch.cuda.device_count():
            raise UsageError(f"device {device}: there are only {torch.cuda.device_count()} GPUs")
        torch.cuda.set_device(device)
    elif device.type not in ("cpu", "mps"):
        raise UsageError(f'device "{name}" is not supported; use auto, cpu, cuda or cuda:0')
    return device


def quiet_libraries() -> None:
    """Keep the progress bars and advice of diffusers and transformers out of our output."""
    import diffusers
    import transformers

    for logging in (diffusers.utils.logging, transformers.utils.logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()


def load_model(name: str, device: torch.device, dtype: torch.dtype = torch.float32) -> Model:
    """Load an alias, folder or hub id; ``dtype`` is for UNet and text encoder, the VAE is always float32.

    Raises UsageError for what is not a Stable Diffusion model, SidlsgError for a missing network, a missing or a corrupt
    file, naming it.
    """
    place = locate(name)
    quiet_libraries()
    folder, source = _fetch(place)
    if not (folder / "model_index.json").is_file():
        raise UsageError(f"{folder} is not a diffusers folder: it has no model_index.json")
    index = read_object(folder / "model_index.json")
    if index.get("_class_name") != "StableDiffusionPipeline":
        raise UsageError(
            f"{source} is a {index.get('_class_name')}; this version handles StableDiffusionPipeline models"
        )

    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    def part(kind: Any, name: str, **options: Any) -> Any:
        try:
            loaded = kind.from_pretrained(str(folder / name), local_files_only=True, **options)
            return loaded.to(device).eval().requires_grad_(False) if isinstance(loaded, nn.Module) else loaded
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:  # each library raises its own types; all mean the same to the user
            raise SidlsgError(
                f"{folder / name} cannot be loaded: {_first_line(error)}. "
                "If the file is corrupt or cut short, fetch or copy it again."
            ) from error

    def weights(kind: Any, name: str, dtype: torch.dtype = dtype) -> Any:
        options = {"dtype" if kind is CLIPTextModel else "torch_dtype": dtype}
        return part(kind, name, use_safetensors=True, **options)

    scheduler_config = read_object(folder / "scheduler" / "scheduler_config.json")
    student = read_object(folder / STUDENT_FILE, ("t_init",)) if (folder / STUDENT_FILE).is_file() else None
    return Model(
        source=source,
        tokenizer=part(CLIPTokenizer, "tokenizer"),
        text_encoder=weights(CLIPTextModel, "text_encoder"),
        vae=weights(AutoencoderKL, "vae", torch.float32),
        unet=weights(UNet2DConditionModel, "unet"),
        scheduler_config=scheduler_config,
        schedule=NoiseSchedule.from_config(scheduler_config),
        student=student,
    )


def read_object(path: Path, needed: tuple[str, ...] = ()) -> dict[str, Any]:
    """A JSON object that has the keys ``needed``; raises SidlsgError, naming the file, for anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise SidlsgError(f"{path} cannot be read: {error}") from None
    if not isinstance(content, dict) or any(key not in content for key in needed):
        wanted = f" with {', '.join(needed)}" if needed else ""
        raise SidlsgError(f"{path} is not a JSON object{wanted}; fetch or copy it again")
    return content


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _fetch(place: Location) -> tuple[Path, str]:
    """The local folder of a model, downloading it when it is on the hub and not yet in the cache."""
    if place.folder is not None:
        return place.folder, str(place.folder) if place.entry is None else place.name
    from huggingface_hub import snapshot_download

    wanted = ["model_index.json", "scheduler/*", "tokenizer/*", "*/config.json", "sidlsg.json"]
    wanted += [f"{part}/{file}.safetensors" for part, file in (("text_encoder", "model"), ("vae", "*"), ("unet", "*"))]
    unwanted = ["*.fp16.safetensors", "*non_ema*", "safety_checker/*"]
    failures = []
    for repository in place.repositories:
        try:
            return Path(snapshot_download(repository, allow_patterns=wanted, ignore_patterns=unwanted)), repository
        except OSError as error:
            if getattr(error, "errno", None) == 28:
                raise
            failures.append(f"{repository} ({type(error).__name__})")
        except Exception as error:
            failures.append(f"{repository} ({type(error).__name__})")
    raise SidlsgError(
        f"{place.name} is not in the local cache and could not be downloaded: {'; '.join(failures)}. Without a network, "
        "copy the model's diffusers folder to this machine and give its path instead of the name."
    )


def configure_unet(unet: Any, config: Config, device: torch.device) -> str:
    """Attention, memory layout and checkpointing as the configuration asks; returns the attention in use.

    xFormers falls back to SDPA, whose FlashAttention and memory-efficient kernels save the same memory.
    """
    attention = config.attention
    if attention == "xformers":
        try:
            unet.enable_xformers_memory_efficient_attention()
        except Exception:  # not installed, or no GPU
            attention = "sdpa (xFormers is not usable here)"
    elif attention == "eager":
        from diffusers.models.attention_processor import AttnProcessor

        unet.set_attn_processor(AttnProcessor())
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()  # also where weights are frozen: it acts whenever gradients are recorded
    if config.channels_last:
        unet.to(memory_format=torch.channels_last)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.tf32
    return attention


def halve_weights(unet: Any, dtype: torch.dtype) -> None:
    """Store the weights that autocast would cast anyway (convolutions, matrix products) in its dtype.

    Normalisations keep theirs, so results under autocast are bit-equal to those of the full-precision network.
    """
    for module in unet.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.to(dtype)


@contextmanager
def plain_attention(unet: Any) -> Iterator[None]:
    """Attention written out in matrix products and a softmax, inside the block: slow, large, and surely right."""
    from diffusers.models.attention_processor import AttnProcessor

    kept = dict(unet.attn_processors)
    unet.set_attn_processor(AttnProcessor())
    try:
        yield
    finally:
        unet.set_attn_processor(kept)
