"""The generator of the emoji world: diffusers' `SD3Transformer2DModel` on 16 x 8 x 8 latents, trained by flow matching.

    x_sigma = (1 - sigma) x_0 + sigma noise,    target = noise - x_0,    timestep = 1000 sigma

The pipeline has no T5. Diffusers then appends `max_sequence_length` (256 unless told) zero tokens to the prompt. They
are all alike and stay alike through every block, so N of them weigh in the attention exactly as one whose logit is
raised by log N. Training therefore carries one zero token and draws N for each sample, from none to 256, at no cost.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, SD3Transformer2DModel, StableDiffusion3Pipeline
from diffusers.models.attention_processor import Attention, JointAttnProcessor2_0
from diffusers.utils import logging
from torch import Tensor, nn

from assemble import assemble, save
from common import ROOT, TRAINED_STYLES, Ema, Log, read_art, warmup_cosine
from prompts import canonical, caption, read_phrases
from text import MAX_LENGTH, WIDTH

CAPTIONS = 8  # cached for each picture: one canonical, five with and two without the style


def create_transformer() -> SD3Transformer2DModel:
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=8,
        attention_head_dim=32,
        num_attention_heads=6,
        caption_projection_dim=192,
        joint_attention_dim=2 * WIDTH,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=16,
        qk_norm="rms_norm",
    )
    for module in transformer.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    # As in DiT: each block starts as the identity, and the whole as zero.
    for block in transformer.transformer_blocks:
        for norm in (block.norm1, block.norm1_context):
            nn.init.zeros_(norm.linear.weight)
    nn.init.zeros_(transformer.norm_out.linear.weight)
    nn.init.zeros_(transformer.proj_out.weight)
    return transformer


class CountedZeros(JointAttnProcessor2_0):
    """Joint attention in which the last context token stands for as many as `counts [b]` says."""

    def __init__(self) -> None:
        self.counts: Tensor | None = None

    def __call__(
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        batch, image_tokens, _ = hidden_states.shape

        def split(x: Tensor) -> Tensor:
            return x.view(batch, -1, attn.heads, x.shape[-1] // attn.heads).transpose(1, 2)

        query = torch.cat(
            [
                attn.norm_q(split(attn.to_q(hidden_states))),
                attn.norm_added_q(split(attn.add_q_proj(encoder_hidden_states))),
            ],
            dim=2,
        )
        key = torch.cat(
            [
                attn.norm_k(split(attn.to_k(hidden_states))),
                attn.norm_added_k(split(attn.add_k_proj(encoder_hidden_states))),
            ],
            dim=2,
        )
        value = torch.cat([split(attn.to_v(hidden_states)), split(attn.add_v_proj(encoder_hidden_states))], dim=2).to(
            query.dtype
        )
        bias = query.new_zeros(batch, 1, 1, key.shape[2])
        if self.counts is not None:
            bias[:, 0, 0, -1] = self.counts.log().to(bias)
        key = key.to(query.dtype)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=bias).transpose(1, 2).flatten(2)
        image, context = out[:, :image_tokens], out[:, image_tokens:]
        if not attn.context_pre_only:
            context = attn.to_add_out(context)
        return attn.to_out[0](image), context


def draw_counts(size: int, generator: torch.Generator) -> Tensor:
    """Numbers of zero tokens `[b]`: 16 and 256 a quarter each, none a tenth, the rest from 1 to 256 by order of magnitude."""
    luck = torch.rand(size, generator=generator)
    counts = 256 ** torch.rand(size, generator=generator)
    for below, count in ((0.6, 256.0), (0.35, 16.0), (0.1, 1e-9)):
        counts[luck < below] = count
    return counts.round(decimals=9)


def draw_sigma(size: int, generator: torch.Generator) -> Tensor:
    """Logit-normal noise levels `[b]`, leaning to the noisy side, where the motif is decided."""
    return (0.3 + 1.1 * torch.randn(size, generator=generator)).sigmoid()


@torch.no_grad()
def encode_art(vae: AutoencoderKL, pixels: Tensor) -> Tensor:
    """Latents of uint8 pictures as they are and mirrored, `[2 n 16 8 8]`."""
    both = [
        torch.cat([vae.encode(part.float() / 127.5 - 1).latent_dist.mode() for part in side.split(64)])
        for side in (pixels, pixels.flip(-1))
    ]
    return (torch.stack(both) - vae.config.shift_factor) * vae.config.scaling_factor


@torch.no_grad()
def encode_prompts(pipeline: StableDiffusion3Pipeline, prompts: list[str]) -> tuple[Tensor, Tensor]:
    """What the pipeline makes of prompts, less its zero tokens: `[n 16 e]` and `[n p]` in float16."""
    tokens, pooled = [], []
    for start in range(0, len(prompts), 256):
        part = prompts[start : start + 256]
        embeds, _, pool, _ = pipeline.encode_prompt(
            part, None, None, do_classifier_free_guidance=False, max_sequence_length=1
        )
        tokens.append(embeds[:, :MAX_LENGTH].half())
        pooled.append(pool.half())
    return torch.cat(tokens), torch.cat(pooled)


class Examples:
    """Latents and prompt embeddings of a set of pictures, encoded once, drawn in batches."""

    def __init__(self, pipeline: StableDiffusion3Pipeline, split: str, seed: int) -> None:
        art = read_art(TRAINED_STYLES)
        phrases = read_phrases(art)
        rows = [row for row in art if row["split"] == split]
        generator = torch.Generator().manual_seed(seed)
        prompts = [""]
        for row in rows:
            words, style = phrases[row["concept"]], row["style"]
            prompts.append(canonical(words.name, style))
            prompts += [caption(words, style, generator) for _ in range(CAPTIONS - 3)]
            prompts += [caption(words, None, generator) for _ in range(2)]
        unique = sorted(set(prompts))
        position = {text: i for i, text in enumerate(unique)}
        self.which = torch.tensor([position[text] for text in prompts])
        self.tokens, self.pooled = encode_prompts(pipeline, unique)
        self.latents = encode_art(pipeline.vae, torch.stack([row["pixels"] for row in rows]))

    def draw(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Latents `[b 16 8 8]`, prompt embeddings with their one zero token `[b 17 e]`, pooled embeddings `[b p]`."""
        picture = torch.randint(self.latents.shape[1], (size,), generator=generator)
        mirrored = (torch.rand(size, generator=generator) < 0.3).long()
        number = torch.randint(CAPTIONS, (size,), generator=generator)
        number[torch.rand(size, generator=generator) < 0.2] = 0  # the canonical caption more often
        slot = 1 + picture * CAPTIONS + number
        slot[torch.rand(size, generator=generator) < 0.1] = 0  # the empty prompt, for guidance
        chosen = self.which[slot]
        tokens = F.pad(self.tokens[chosen].float(), (0, 0, 0, 1))
        return self.latents[mirrored, picture], tokens, self.pooled[chosen].float()


def flow_loss(
    transformer: SD3Transformer2DModel, zeros: CountedZeros, examples: Examples, size: int, generator: torch.Generator
) -> Tensor:
    """Mean squared error of the velocity on one batch."""
    latents, tokens, pooled = examples.draw(size, generator)
    sigma, noise = draw_sigma(size, generator), torch.randn(latents.shape, generator=generator)
    zeros.counts = draw_counts(size, generator)
    level = sigma.view(-1, 1, 1, 1)
    velocity = transformer(
        hidden_states=(1 - level) * latents + level * noise,
        encoder_hidden_states=tokens,
        pooled_projections=pooled,
        timestep=1000 * sigma,
        return_dict=False,
    )[0]
    return (velocity.float() - (noise - latents)).square().mean()


@torch.no_grad()
def validate(transformer: SD3Transformer2DModel, zeros: CountedZeros, examples: Examples) -> float:
    """The same loss on held-out pairs, always with the same noise."""
    generator = torch.Generator().manual_seed(0)
    return sum(flow_loss(transformer, zeros, examples, 128, generator).item() for _ in range(2)) / 2


def plain_copy(transformer: SD3Transformer2DModel) -> SD3Transformer2DModel:
    """A copy that any pipeline can use: rounded to float16, with diffusers' own attention."""
    out = copy.deepcopy(transformer).half().float().eval()
    out.set_attn_processor(JointAttnProcessor2_0())
    return out


def train(
    out: Path, parts: Path, vae: Path, steps: int, minutes: float, batch: int, lr: float, bf16: bool, seed: int
) -> None:
    torch.set_flush_denormal(True)  # Adam's second moments of barely used weights are denormal, and slow a CPU down
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    transformer = create_transformer()
    zeros = CountedZeros()
    transformer.set_attn_processor(zeros)
    decayed = [p for p in transformer.parameters() if p.ndim > 1]
    others = [p for p in transformer.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}],
        betas=(0.9, 0.98),
        fused=True,
    )
    ema, first, before = Ema(transformer, 0.999), 0, 0.0
    ema.module.set_attn_processor(zeros)
    checkpoint = out.with_name(out.name + "-checkpoint.pt")
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        transformer.load_state_dict(state["transformer"])
        ema.module.load_state_dict(state["ema"])
        optimizer.load_state_dict(state["optimizer"])
        generator.set_state(state["generator"])
        first, before = state["step"], state["seconds"]
        ema.steps = first
    pipeline = assemble(transformer, parts, vae)
    examples, held = Examples(pipeline, "train", seed), Examples(pipeline, "held_out", seed)
    print(
        f"{examples.latents.shape[1]} pictures, {len(examples.tokens)} captions, latent spread {examples.latents.std():.3f}"
    )

    log = Log(parts / "logs" / f"{out.name}.jsonl", before)
    start = saved = shown = time.monotonic()
    total, logged = 0.0, first
    for step in range(first, steps):
        elapsed = before + time.monotonic() - start
        # The schedule goes by steps or by the clock, whichever is further, so that the run ends in time on a busy machine.
        progress = max(step / steps, elapsed / (60 * minutes))
        if progress >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = lr * min((step + 1) / 300, warmup_cosine(int(1e6 * progress), 1_000_000, 1))
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = flow_loss(transformer, zeros, examples, batch, generator)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(transformer.parameters(), 1.0)
        optimizer.step()
        ema.update(transformer)
        total += loss.item()
        if step % 100 == 99:
            if not math.isfinite(total):
                raise FloatingPointError(f"the loss is not finite at step {step + 1}")
            mean = total / (step + 1 - logged)
            log.write(step=step + 1, loss=mean, held_out=validate(ema.module, zeros, held), progress=round(progress, 4))
            total, logged = 0.0, step + 1
        if time.monotonic() - saved > 300:
            saved = time.monotonic()
            keep(checkpoint, transformer, ema, optimizer, generator, step + 1, before + saved - start)
        if time.monotonic() - shown > 480:
            shown = time.monotonic()
            show(pipeline, ema, out.with_name("pipeline-unfinished"))
    plain_copy(ema.module).half().save_pretrained(out)
    show(pipeline, ema, out.with_name("pipeline-unfinished"))
    checkpoint.unlink(missing_ok=True)


def keep(
    path: Path,
    transformer: nn.Module,
    ema: Ema,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    step: int,
    seconds: float,
) -> None:
    """All that a killed run needs to go on."""
    state = {
        "transformer": transformer.state_dict(),
        "ema": ema.module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "generator": generator.get_state(),
        "step": step,
        "seconds": seconds,
    }
    torch.save(state, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


def show(pipeline: StableDiffusion3Pipeline, ema: Ema, out: Path) -> None:
    """Save the averaged weights as a whole pipeline, for those who cannot wait."""
    parts = {**pipeline.components, "transformer": plain_copy(ema.module)}
    save(StableDiffusion3Pipeline(**parts), out)


if __name__ == "__main__":
    logging.set_verbosity_error()  # a caption in a thousand is cut at 16 tokens
    parser = argparse.ArgumentParser(description=__doc__)
    build = ROOT / "build"
    parser.add_argument("--out", type=Path, default=build / "transformer")
    parser.add_argument("--parts", type=Path, default=build)
    parser.add_argument("--vae", type=Path, default=build / "vae")
    parser.add_argument("--steps", type=int, default=9000)
    parser.add_argument("--minutes", type=float, default=65)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--seed", type=int, default=0)
    train(**vars(parser.parse_args()))
