"""Train the autoencoder of the embedded teacher: 64x64 pictures to 8x8 latents, diffusers ``AutoencoderKL``.

    python experiments/emoji/train_vae.py --work build/emoji

Run the same command again to resume. Output: ``<work>/vae`` (a diffusers folder with averaged weights, and the scaling factor
that gives latents unit variance). Every ``--measure-every`` steps the log gets the figure to watch: the distance, on the embedded
benchmark, of its reference drawings after they went through the autoencoder. Nothing that follows can win that back.
"""

from __future__ import annotations

import argparse
import time
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from common import Checkpoint, average, cosine_lr, log_line, seed_step, split_drawings
from diffusers import AutoencoderKL

from sidlsg.evaluation.pictures import load_sheet
from sidlsg.evaluation.protocol import get_protocol
from sidlsg.evaluation.reference import BENCH
from sidlsg.evaluation.scorer import Scorer, bench_reference
from sidlsg.sampling.pictures import to_pil

CHANNELS = (16, 32, 64, 64)
SHIFT = 4  # pixels
LATENT = (8, 8)


def build(latent_channels: int) -> AutoencoderKL:
    """About a million parameters, f = 8."""
    return AutoencoderKL(
        sample_size=64,
        latent_channels=latent_channels,
        block_out_channels=CHANNELS,
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * len(CHANNELS),
        up_block_types=("UpDecoderBlock2D",) * len(CHANNELS),
    )


def augment(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Mirror half of the batches, and shift each by up to SHIFT pixels on white; x [B, 3, H, W] in [-1, 1]."""
    if torch.rand((), generator=generator) < 0.5:
        x = x.flip(3)
    top, left = torch.randint(2 * SHIFT + 1, (2,), generator=generator).tolist()
    height, width = x.shape[2:]
    return F.pad(x, (SHIFT,) * 4, value=1.0)[..., top : top + height, left : left + width]


def reconstruction_loss(y: torch.Tensor, x: torch.Tensor, scales: int = 3) -> torch.Tensor:
    """L1 + 0.5 MSE + 0.5 L1 of the horizontal and vertical differences, at full, half and quarter size, averaged.

    y, x: [B, 3, H, W] in [-1, 1].
    """
    total = torch.zeros((), device=x.device)
    for scale in range(scales):
        if scale:
            y, x = F.avg_pool2d(y, 2), F.avg_pool2d(x, 2)
        edges = F.l1_loss(y.diff(dim=2), x.diff(dim=2)) + F.l1_loss(y.diff(dim=3), x.diff(dim=3))
        total = total + F.l1_loss(y, x) + 0.5 * F.mse_loss(y, x) + 0.5 * edges
    return total / scales


class Distance:
    """The distance on the embedded benchmark of its reference drawings after they went through an autoencoder."""

    def __init__(self, device: torch.device) -> None:
        protocol = get_protocol("embedded")
        self.scorer, self.device = Scorer(protocol, device, ("fid",)), device
        self.reference = bench_reference(self.scorer)
        sheet = load_sheet(BENCH / "reference.png", protocol.size, protocol.reference_images)
        self.drawings = torch.from_numpy(np.stack([np.asarray(picture) for picture in sheet])).permute(0, 3, 1, 2)

    @torch.no_grad()
    def __call__(self, vae: AutoencoderKL) -> float:
        pictures = []
        for part in self.drawings.split(64):
            x = part.to(self.device, torch.float32) / 127.5 - 1
            pictures += to_pil((vae.decode(vae.encode(x).latent_dist.mean).sample / 2 + 0.5).clamp(0, 1))
        found = self.scorer.encode(pictures, features=True, clip=False)
        return self.scorer.score(found, self.reference, None)["fd"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/emoji"))
    parser.add_argument("--latent-channels", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--kl", type=float, default=1e-3, help="weight of the mean KL divergence per latent element")
    parser.add_argument("--bf16", action="store_true", help="bf16 autocast; faster where the processor has it")
    parser.add_argument(
        "--decoder-only", action="store_true", help="go on with the decoder of <work>/vae; latents stay what they are"
    )
    parser.add_argument("--measure-every", type=int, default=2000)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    device = torch.device(args.device)

    drawings = np.load(args.work / "art.npz")["images"]
    art = torch.from_numpy(drawings[split_drawings(len(drawings))[0].numpy()]).permute(0, 3, 1, 2)
    torch.manual_seed(0)
    vae = AutoencoderKL.from_pretrained(args.work / "vae") if args.decoder_only else build(args.latent_channels)
    vae.to(device, memory_format=torch.channels_last).train()
    for part in (vae.encoder, vae.quant_conv) if args.decoder_only else ():
        part.requires_grad_(False)
    averaged = deepcopy(vae).requires_grad_(False)
    trained = [p for p in vae.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=args.lr, betas=(0.9, 0.99))
    parts = {"model": vae, "averaged": averaged, "optimizer": optimizer}
    stream, name = (1, "decoder") if args.decoder_only else (0, "vae")
    checkpoint = Checkpoint(args.work / f"{name}.ckpt.pt", parts)

    def reconstruct(x: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.autocast(device.type, torch.bfloat16, enabled=args.bf16):
            posterior = vae.encode(x).latent_dist
            y = vae.decode(posterior.mean + posterior.std * noise).sample
        return y.float(), posterior.kl().mean() / noise[0].numel()

    distance = Distance(device)
    step = first = checkpoint.load()
    started, losses = time.time(), []
    while step < args.steps:
        generator = seed_step(stream, step)
        index = torch.randint(len(art), (args.batch,), generator=generator)
        x = augment(art[index].to(device, torch.float32) / 127.5 - 1, generator)
        x = x.contiguous(memory_format=torch.channels_last)
        noise = torch.randn(args.batch, vae.config.latent_channels, *LATENT, generator=generator).to(device)
        y, kl = reconstruct(x, noise)
        loss = reconstruction_loss(y, x) + args.kl * kl
        optimizer.param_groups[0]["lr"] = cosine_lr(args.lr, step, args.steps)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0, error_if_nonfinite=True)
        optimizer.step()
        step += 1
        average(averaged, vae, step)
        losses.append([F.mse_loss(y, x).item(), kl.item()])
        if step % 100 == 0 or step == args.steps:
            mse, kl_mean = np.mean(losses, axis=0)
            losses = []
            more = {"distance": distance(averaged)} if step % args.measure_every == 0 or step == args.steps else {}
            log_line(args.work / f"{name}.log.jsonl", step, args.steps, started, first, mse=mse, kl=kl_mean, **more)
        if step % 500 == 0:
            checkpoint.save(step)

    checkpoint.save(step)
    averaged.eval()
    if not args.decoder_only:
        with torch.no_grad():
            batches = [art[i : i + 64].to(device, torch.float32) / 127.5 - 1 for i in range(0, len(art), 64)]
            latents = torch.cat([averaged.encode(b).latent_dist.mean.cpu() for b in batches])
        averaged.register_to_config(scaling_factor=float(1 / latents.std()))
        print(f"latents: mean {latents.mean():.3f}, std {latents.std():.3f}, largest {latents.abs().max():.2f}")
    averaged.save_pretrained(args.work / "vae")
    print(f"saved {args.work / 'vae'}")


if __name__ == "__main__":
    main()
