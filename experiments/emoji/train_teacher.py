"""Train the embedded teacher: tokenizer, CLIP text encoder and UNet, on the latents of ``train_vae.py``.

    python experiments/emoji/train_teacher.py --work build/emoji

Run the same command again to resume. Every ``--export-every`` steps, and at the end, ``<work>/teacher`` is written: a
Stable Diffusion folder in half precision, EMA weights, that ``StableDiffusionPipeline.from_pretrained`` loads.
"""

from __future__ import annotations

import argparse
import json
import time
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from common import Checkpoint, average, cosine_lr, log_line, seed_step, split_drawings
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from fetch_art import SETS, STYLE_HINT
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from sidlsg.teachers.stable_diffusion import StableDiffusion
from sidlsg.teachers.student import save_folder

TOKENS = 16  # the longest caption with its style takes 15, <|startoftext|> and <|endoftext|> included
WIDTH = 128  # of the text encoder, and so of the cross-attention
SD_BETAS = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def train_tokenizer(captions: list[str], folder: Path, entries: int = 2000) -> CLIPTokenizer:
    """A byte-level BPE in CLIP's format, trained once on the captions and kept in ``folder``."""
    files = {"vocab": str(folder / "vocab.json"), "merges": str(folder / "merges.txt")}
    if all(Path(file).exists() for file in files.values()):  # training it again breaks ties in another order
        return CLIPTokenizer(**files, model_max_length=TOKENS)
    specials = ["<|startoftext|>", "<|endoftext|>"]
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=specials[1], fuse_unk=False))
    bpe.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(
                Regex(
                    r"""<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""
                ),
                behavior="removed",
                invert=True,
            ),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    bpe.decoder = decoders.BPEDecoder(suffix="</w>")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(
        captions,
        trainers.BpeTrainer(
            vocab_size=entries, special_tokens=specials, initial_alphabet=alphabet, end_of_word_suffix="</w>"
        ),
    )
    folder.mkdir(parents=True, exist_ok=True)
    bpe.model.save(str(folder))
    return CLIPTokenizer(**files, model_max_length=TOKENS)


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Three layers of CLIP's text tower, width 128."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_unet(latent_channels: int) -> UNet2DConditionModel:
    """6.5 M parameters; attention at 4x4 and 2x2, as the larger models leave it out of their finest level."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=(80, 112, 128),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )


@torch.no_grad()
def encode_art(vae: AutoencoderKL, images: np.ndarray, device: torch.device) -> torch.Tensor:
    """uint8 [N, 64, 64, 3] -> scaled latents [N, C, 8, 8] (posterior means)."""
    art = torch.from_numpy(images).permute(0, 3, 1, 2)
    batches = (art[i : i + 64].to(device, torch.float32) / 127.5 - 1 for i in range(0, len(art), 64))
    return torch.cat([vae.encode(b).latent_dist.mean for b in batches]) * vae.config.scaling_factor


def min_snr_weight(alpha_bar: torch.Tensor, gamma: float = 5.0) -> torch.Tensor:
    """min(SNR, gamma) / SNR, the weight of an epsilon loss in Hang et al. 2023 (arXiv 2303.09556)."""
    snr = alpha_bar / (1 - alpha_bar)
    return snr.clamp(max=gamma) / snr


def export(folder: Path, tokenizer, text_encoder, unet, vae, note: dict) -> None:
    """Write a Stable Diffusion folder in half precision."""
    scheduler = DDIMScheduler(**SD_BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    parts = {"tokenizer": tokenizer, "text_encoder": text_encoder, "vae": vae, "unet": unet}
    save_folder(folder, StableDiffusion(), parts, scheduler)
    (folder / "training.json").write_text(json.dumps(note, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/emoji"))
    parser.add_argument("--steps", type=int, default=16_000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1.2e-3)
    parser.add_argument("--compile", action="store_true", help="torch.compile: a quarter faster on two cores")
    parser.add_argument("--export-every", type=int, default=1000)
    parser.add_argument("--export-only", action="store_true", help="write the folder from the checkpoint and stop")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    device = torch.device(args.device)

    art = np.load(args.work / "art.npz")
    lines = (args.work / "captions.txt").read_text(encoding="utf-8").splitlines()
    learnt = split_drawings(len(lines))[0].numpy()
    captions = [lines[i] for i in learnt]
    styles = [STYLE_HINT.format(SETS[s][3]) for s in art["style"][learnt]]
    tokenizer = train_tokenizer([c + s for c, s in zip(captions, styles, strict=True)], args.work / "tokenizer")

    def tokenize(texts: list[str]) -> torch.Tensor:
        return tokenizer(
            texts, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt"
        ).input_ids.to(device)

    tokens_styled = tokenize([c + s for c, s in zip(captions, styles, strict=True)])
    tokens_short, tokens_empty = tokenize(captions), tokenize([""])

    vae = AutoencoderKL.from_pretrained(args.work / "vae").to(device)
    latents = encode_art(vae, art["images"][learnt], device)
    torch.manual_seed(0)
    text_encoder = build_text_encoder(tokenizer).to(device)
    unet = build_unet(vae.config.latent_channels).to(device, memory_format=torch.channels_last)
    nets = torch.nn.ModuleDict({"unet": unet, "text": text_encoder})
    averaged = deepcopy(nets).requires_grad_(False)
    count = {name: sum(p.numel() for p in net.parameters()) for name, net in nets.items()}
    print(f"{len(captions)} pictures; parameters {count}", flush=True)

    alpha_bar = DDIMScheduler(**SD_BETAS).alphas_cumprod.to(device)
    weight = min_snr_weight(alpha_bar)
    optimizer = torch.optim.Adam(nets.parameters(), lr=args.lr, betas=(0.9, 0.99), fused=True)
    checkpoint = Checkpoint(args.work / "teacher.ckpt.pt", {"nets": nets, "averaged": averaged, "optimizer": optimizer})
    step = first = checkpoint.load()
    started, losses = time.time(), []

    def note() -> dict:
        return {"steps": step, "batch": args.batch, "lr": args.lr, "pictures": len(captions), "parameters": count}

    if args.export_only:
        export(args.work / "teacher", tokenizer, averaged["text"], averaged["unet"], vae, note())
        return
    denoise, encode = (torch.compile(net) if args.compile else net for net in (unet, text_encoder))
    while step < args.steps:
        generator = seed_step(2, step)
        index = torch.randint(len(captions), (args.batch,), generator=generator)
        kind = torch.rand(args.batch, 1, generator=generator).to(device)
        noise = torch.randn(args.batch, *latents.shape[1:], generator=generator).to(device)
        t = torch.randint(1000, (args.batch,), generator=generator).to(device)
        # A quarter of the captions without their style, one in ten empty (for classifier-free guidance).
        tokens = torch.where(kind < 0.675, tokens_styled[index], tokens_short[index])
        tokens = torch.where(kind < 0.9, tokens, tokens_empty)
        ab = alpha_bar[t].view(-1, 1, 1, 1)
        x_t = ab.sqrt() * latents[index] + (1 - ab).sqrt() * noise
        eps = denoise(x_t, t, encode(tokens).last_hidden_state).sample
        error = (eps - noise).square().mean(dim=(1, 2, 3))
        loss = (weight[t] * error).mean()
        optimizer.param_groups[0]["lr"] = cosine_lr(args.lr, step, args.steps, warmup=200)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(nets.parameters(), 1.0, error_if_nonfinite=True)
        optimizer.step()
        step += 1
        average(averaged, nets, step, decay=0.999)
        losses.append(error.mean().item())
        if step % 50 == 0 or step == args.steps:
            log_line(args.work / "teacher.log.jsonl", step, args.steps, started, first, loss=np.mean(losses))
            losses = []
        if step % args.export_every == 0 or step == args.steps:
            checkpoint.save(step)
            export(args.work / "teacher", tokenizer, averaged["text"], averaged["unet"], vae, note())
    print(f"saved {args.work / 'teacher'}")


if __name__ == "__main__":
    main()
