"""Train the judge of the embedded benchmark: a small CLIP (open_clip architecture) on the pictures that the teacher learnt.

It shares no weight, seed or tokenizer with the teacher: a residual network sees the 64x64 pictures, and a text tower of
its own, with its own BPE, reads their captions. One picture in ten is held out and measures the judge itself.

    python experiments/emoji/train_judge.py --work build/emoji

Run the same command again to resume. Output: ``<work>/judge``, an open_clip folder (``open_clip_config.json``,
``open_clip_model.safetensors`` in half precision, ``bpe.txt.gz``), with ``training.json`` and its retrieval accuracy.
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from common import Checkpoint, cosine_lr, log_line, seed_step
from fetch_art import SETS, STYLE_HINT
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor

STREAM = 7  # of random numbers; the teacher's scripts use 0 to 3
HELD_OUT = 0.1
MERGES = 1000
CONTEXT = 16
MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
MODEL = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 64, "layers": [1, 2, 2, 1], "width": 20},
    "text_cfg": {"context_length": CONTEXT, "vocab_size": 0, "width": 96, "heads": 4, "layers": 3},
}
PREPROCESS = {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "shortest"}


def train_bpe(captions: list[str], path: Path) -> None:
    """Write the merges in open_clip's format: gzip, a header line, then one merge a line."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation(), pre_tokenizers.Digits(individual_digits=True)]
    )
    trainer = trainers.BpeTrainer(vocab_size=MERGES + 64, end_of_word_suffix="</w>", show_progress=False)
    tokenizer.train_from_iterator(captions, trainer)
    merges = [" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]][:MERGES]
    # The last split of the file is empty for open_clip; without the newline at the end it is not.
    text = "\n".join(["#version: 0.2", *merges])
    path.write_bytes(gzip.compress(text.encode(), mtime=0))


def augment(x: Tensor, generator: torch.Generator) -> Tensor:
    """Shift and scale by up to a tenth on white, mirror, and add a little noise; x [B, 3, H, W] in [-1, 1]."""
    count = len(x)
    scale = 1 + 0.2 * (torch.rand(count, generator=generator) - 0.5)
    mirror = (torch.rand(count, generator=generator) < 0.5).float() * -2 + 1
    shift = 0.2 * (torch.rand(count, 2, generator=generator) - 0.5)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = scale * mirror, scale, shift
    grid = F.affine_grid(theta, list(x.shape), align_corners=False).to(x.device)
    x = F.grid_sample(x - 1, grid, align_corners=False) + 1  # zero, outside, is white
    strength = 0.1 * torch.rand(count, 1, 1, 1, generator=generator)
    return x + (strength * torch.randn(x.shape, generator=generator)).to(x.device)


def contrastive_loss(image: Tensor, text: Tensor, same: Tensor, scale: Tensor) -> Tensor:
    """CLIP's symmetric cross-entropy; pictures with one caption ("red heart" in two styles) share its mass.

    Args:
        image, text: unit vectors [B, D].
        same: [B, B], 1 where the captions are equal.
    """
    logits = scale * image @ text.T
    target = same / same.sum(1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


@torch.no_grad()
def retrieval(model: open_clip.CLIP, pictures: Tensor, tokens: Tensor) -> dict[str, float]:
    """Share of held-out pictures whose own caption is the nearest, or among the five nearest, of all held-out captions."""
    image = torch.cat([model.encode_image(part / 127.5 - 1, normalize=True) for part in pictures.float().split(256)])
    unique, own = torch.unique(tokens, dim=0, return_inverse=True)
    scores = image @ model.encode_text(unique, normalize=True).T
    rank = (scores > scores.gather(1, own[:, None])).sum(1)
    return {"top1": (rank < 1).float().mean().item(), "top5": (rank < 5).float().mean().item(), "captions": len(unique)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/emoji"))
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    device = torch.device(args.device)
    out = args.work / "judge"
    out.mkdir(parents=True, exist_ok=True)

    data = np.load(args.work / "art.npz")
    art = torch.from_numpy(data["images"]).permute(0, 3, 1, 2).contiguous()
    plain = (args.work / "captions.txt").read_text(encoding="utf-8").splitlines()
    styled = [c + STYLE_HINT.format(SETS[s][3]) for c, s in zip(plain, data["style"], strict=True)]
    order = torch.randperm(len(art), generator=seed_step(STREAM, 0))
    held, train = order[: int(HELD_OUT * len(art))], order[int(HELD_OUT * len(art)) :]

    bpe = out / "bpe.txt.gz"
    if not bpe.exists():
        train_bpe([styled[i] for i in train], bpe)
    tokenizer = SimpleTokenizer(str(bpe), context_length=CONTEXT)
    MODEL["text_cfg"]["vocab_size"] = tokenizer.vocab_size
    tokens = torch.stack([tokenizer(plain), tokenizer(styled)])  # [2, N, L]

    torch.manual_seed(STREAM)
    model = open_clip.CLIP(**MODEL).to(device, memory_format=torch.channels_last)
    count = sum(p.numel() for p in model.parameters())
    print(f"{count / 1e6:.2f} M parameters, {tokenizer.vocab_size} tokens, {len(train)} pictures, {len(held)} held out")
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": args.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98))
    checkpoint = Checkpoint(args.work / "judge.ckpt.pt", {"model": model, "optimizer": optimizer})
    step, started, losses = checkpoint.load(), time.time(), []
    first = step

    def measure() -> dict[str, float]:
        model.eval()
        found = retrieval(model, art[held].to(device), tokens[1][held].to(device))
        model.train()
        return found

    model.train()
    while step < args.steps:
        generator = seed_step(STREAM, step + 1)
        index = train[torch.randperm(len(train), generator=generator)[: args.batch]]
        with_style = (torch.rand(args.batch, generator=generator) < 0.6).long()
        words = tokens[with_style, index].to(device)
        x = augment(art[index].to(device, torch.float32) / 127.5 - 1, generator)
        image, text, scale = model(x.contiguous(memory_format=torch.channels_last), words)
        same = (words[:, None] == words[None]).all(2).float()
        loss = contrastive_loss(image, text, same, scale)
        for group in optimizer.param_groups:
            group["lr"] = cosine_lr(args.lr, step, args.steps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, float(np.log(100)))
        step += 1
        losses.append(loss.item())
        if step % 100 == 0 or step == args.steps:
            found = measure()
            log_line(args.work / "judge.log.jsonl", step, args.steps, started, first, loss=np.mean(losses), **found)
            losses = []
        if step % 400 == 0:
            checkpoint.save(step)

    checkpoint.save(step)
    weights = {
        name: tensor.half().contiguous() for name, tensor in model.state_dict().items() if tensor.is_floating_point()
    }
    weights |= {name: tensor for name, tensor in model.state_dict().items() if not tensor.is_floating_point()}
    save_file(weights, out / "open_clip_model.safetensors", metadata={"format": "pt"})
    config = {"model_cfg": MODEL, "preprocess_cfg": PREPROCESS}
    (out / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in weights.items()})
    note = {"steps": step, "batch": args.batch, "pictures": len(train), "held_out": len(held), "retrieval": measure()}
    (out / "training.json").write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(note))


if __name__ == "__main__":
    main()
