"""Train the autoencoder of the embedded teacher: 64x64 pictures to 4x8x8 latents, diffusers ``AutoencoderKL``.

Two phases, because a good decoder takes longer to train than a good latent space:

    python experiments/emoji/train_vae.py --work build/emoji                    # encoder and decoder
    python experiments/emoji/train_vae.py --work build/emoji --decoder-only     # the encoder stays as it is

The UNet can be trained on the latents of the first phase while the second one goes on. Run the same command again
to resume. Output: ``<work>/vae`` (a diffusers folder, with the scaling factor that gives latents unit variance).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from common import Checkpoint, cosine_lr, log_line, seed_step
from diffusers import AutoencoderKL

CHANNELS = (16, 32, 64, 64)


def build() -> AutoencoderKL:
    """0.98 M parameters, f = 8."""
    return AutoencoderKL(
        sample_size=64,
        latent_channels=4,
        block_out_channels=CHANNELS,
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * len(CHANNELS),
        up_block_types=("UpDecoderBlock2D",) * len(CHANNELS),
    )


def reconstruction_loss(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """L1 + 0.5 MSE + 0.5 L1 of the horizontal and vertical differences; x, y [B, 3, H, W] in [-1, 1]."""
    edges = sum(F.l1_loss(y.diff(dim=d), x.diff(dim=d)) for d in (2, 3))
    return F.l1_loss(y, x) + 0.5 * F.mse_loss(y, x) + 0.5 * edges


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/emoji"))
    parser.add_argument("--decoder-only", action="store_true", help="second phase: continue with the encoder frozen")
    parser.add_argument("--steps", type=int, default=3200)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--kl", type=float, default=1e-3, help="weight of the mean KL divergence per latent element")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    device = torch.device(args.device)

    art = torch.from_numpy(np.load(args.work / "art.npz")["images"]).permute(0, 3, 1, 2)
    torch.manual_seed(0)
    vae = AutoencoderKL.from_pretrained(args.work / "vae") if args.decoder_only else build()
    vae.to(device, memory_format=torch.channels_last)
    if args.decoder_only:
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    params = [p for p in vae.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(params, lr=args.lr, betas=(0.9, 0.99))
    phase = "decoder" if args.decoder_only else "vae"
    checkpoint = Checkpoint(args.work / f"{phase}.ckpt.pt", {"model": vae, "optimizer": optimizer})
    step, started, losses = checkpoint.load(), time.time(), []
    first = step
    while step < args.steps:
        generator = seed_step(1 if args.decoder_only else 0, step)
        index = torch.randint(len(art), (args.batch,), generator=generator)
        x = art[index].to(device, torch.float32, memory_format=torch.channels_last) / 127.5 - 1
        if torch.rand((), generator=generator) < 0.5:
            x = x.flip(3)
        posterior = vae.encode(x).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator).to(device)
        y = vae.decode(posterior.mean + posterior.std * noise).sample
        loss = reconstruction_loss(y, x)
        if not args.decoder_only:
            loss = loss + args.kl * posterior.kl().mean() / posterior.mean[0].numel()
        optimizer.param_groups[0]["lr"] = cosine_lr(args.lr, step, args.steps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        losses.append(F.mse_loss(y, x).item())
        if step % 50 == 0 or step == args.steps:
            log_line(args.work / f"{phase}.log.jsonl", step, args.steps, started, first, mse=np.mean(losses))
            losses = []
        if step % 400 == 0:
            checkpoint.save(step)

    checkpoint.save(step)
    vae.eval()
    if not args.decoder_only:
        with torch.no_grad():
            batches = [art[i : i + 64].to(device, torch.float32) / 127.5 - 1 for i in range(0, len(art), 64)]
            latents = torch.cat([vae.encode(b).latent_dist.mean.cpu() for b in batches])
        vae.register_to_config(scaling_factor=float(1 / latents.std()))
        print(f"latents: mean {latents.mean():.3f}, std {latents.std():.3f}, largest {latents.abs().max():.2f}")
    vae.save_pretrained(args.work / "vae")
    print(f"saved {args.work / 'vae'}")


if __name__ == "__main__":
    main()
