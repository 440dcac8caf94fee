"""Measure the emoji world: how well the autoencoder keeps pictures, how well samples show what was asked for.

Guidance and number of steps are chosen on captions of the train split only, other ones than those reported. Every
picture in the grids is drawn by seed, none picked.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import matplotlib
import torch
from diffusers import StableDiffusion3Pipeline
from PIL import Image
from torch import Tensor

from assemble import SEQUENCE_LENGTH
from common import HELD_OUT_STYLE, ROOT, TRAINED_STYLES, psnr, read_art
from prompts import canonical
from vae import reconstruct

sys.path.insert(0, str(ROOT.parents[1] / "src"))
from dina_lrm.worlds.judge import Judge

matplotlib.use("Agg")
import matplotlib.pyplot as plt

GUIDANCE = (1.5, 2.0, 3.0, 4.0, 6.0)
STEPS = (12, 20, 28)


def sample(
    pipeline: StableDiffusion3Pipeline, prompts: list[str], guidance: float, steps: int, length: int, seed: int
) -> Tensor:
    """One picture `[b 3 64 64]` in 0..1 for each prompt; the noise of each depends on its own seed only."""
    out = []
    for start in range(0, len(prompts), 32):
        part = prompts[start : start + 32]
        out.append(
            pipeline(
                prompt=part,
                guidance_scale=guidance,
                num_inference_steps=steps,
                max_sequence_length=length,
                generator=[torch.Generator().manual_seed(seed + start + i) for i in range(len(part))],
                output_type="pt",
            ).images
        )
    return torch.cat(out).clamp(0, 1)


def share(hits: Tensor) -> dict[str, float]:
    """A proportion with its 95 % Wilson interval."""
    n, p, z = len(hits), hits.float().mean().item(), 1.96
    middle, half = (
        (p + z * z / (2 * n)) / (1 + z * z / n),
        z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n),
    )
    return {"value": round(p, 4), "low": round(middle - half, 4), "high": round(middle + half, 4), "n": n}


def mean(values: Tensor) -> dict[str, float]:
    """A mean with its 95 % interval."""
    half = 1.96 * values.std().item() / math.sqrt(len(values))
    middle = values.mean().item()
    return {
        "value": round(middle, 4),
        "low": round(middle - half, 4),
        "high": round(middle + half, 4),
        "n": len(values),
    }


def judged(judge: Judge, pixels: Tensor, concepts: list[str]) -> dict[str, Any]:
    """Top-1, top-10, log-probability of the right concept and quality, as the judge sees them."""
    truth = torch.tensor([judge.concepts.index(name) for name in concepts])
    log_probs = torch.cat([judge.concept_log_probs(part) for part in pixels.split(128)])
    hits = log_probs.topk(10).indices == truth[:, None]
    return {
        "top1": share(hits[:, 0]),
        "top10": share(hits.any(1)),
        "log_prob": mean(log_probs[torch.arange(len(truth)), truth]),
        "quality": mean(torch.cat([judge.quality(part) for part in pixels.split(128)])),
    }


def pixels_of(rows: list[dict[str, Any]]) -> Tensor:
    return torch.stack([row["pixels"] for row in rows]).float() / 255


def prompts_of(rows: list[dict[str, Any]]) -> list[str]:
    return [canonical(row["concept"], row["style"]) for row in rows]


def pick(rows: list[dict[str, Any]], count: int, seed: int) -> list[dict[str, Any]]:
    """`count` rows at random, or all."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:count].tolist()
    return [rows[i] for i in order]


def choose_settings(pipeline: StableDiffusion3Pipeline, judge: Judge, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Guidance at 20 steps, then steps at that guidance: the best mean of top-10 and quality; fewer steps at a tie of 1 %."""
    prompts, concepts = prompts_of(rows), [row["concept"] for row in rows]

    def trial(guidance: float, steps: int) -> dict[str, float]:
        found = judged(judge, sample(pipeline, prompts, guidance, steps, SEQUENCE_LENGTH, 50_000), concepts)
        out = {"guidance": guidance, "steps": steps, **{k: found[k]["value"] for k in ("top1", "top10", "quality")}}
        print(out, flush=True)
        return out

    def worth(found: dict[str, float]) -> float:
        return found["top10"] + found["quality"]

    by_guidance = [trial(guidance, 20) for guidance in GUIDANCE]
    guidance = max(by_guidance, key=worth)["guidance"]
    by_steps = [found for found in by_guidance if found["guidance"] == guidance]
    by_steps += [trial(guidance, steps) for steps in STEPS if steps != 20]
    best = max(map(worth, by_steps))
    steps = min(found["steps"] for found in by_steps if worth(found) >= best - 0.02)
    return {"guidance": guidance, "steps": steps, "trials": by_guidance + by_steps[1:], "num_captions": len(rows)}


def draw_grid(real: Tensor, drawn: Tensor, path: Path, columns: int = 16) -> None:
    """Rows in pairs: real art above, the sample for the same prompt below."""
    rows = []
    for start in range(0, len(real), columns):
        rows += [torch.cat(list(side[start : start + columns]), dim=-1) for side in (real, drawn)]
    picture = (torch.cat(rows, dim=-2) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path, optimize=True)


def read_log(name: str) -> list[dict[str, float]]:
    """A step's log; where the step was continued from saved weights, the continuation replaces what came after them."""
    logs = ROOT / "build" / "logs"
    rows = [json.loads(line) for line in (logs / f"{name}.jsonl").read_text().splitlines()]
    continued = logs / f"{name}-continued.jsonl"
    if continued.exists():
        more = [json.loads(line) for line in continued.read_text().splitlines()]
        rows += [{**row, "step": row["step"] + rows[-1]["step"]} for row in more]
    return list({row["step"]: row for row in rows}.values())


def draw_curves(name: str, fields: tuple[str, ...], unit: str, path: Path) -> None:
    """Logged values over steps."""
    if not (ROOT / "build" / "logs" / f"{name}.jsonl").exists():
        return
    rows = read_log(name)
    figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
    for field in fields:
        known = [(row["step"], row[field]) for row in rows if field in row]
        axes.plot(*zip(*known, strict=True), label=field.replace("_", " "))
    axes.set(xlabel="steps", ylabel=unit, title=name)
    axes.legend()
    axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def percent(found: dict[str, float]) -> str:
    return f"{100 * found['value']:.1f} ({100 * found['low']:.1f} to {100 * found['high']:.1f})"


def describe(results: dict[str, Any]) -> str:
    """The measurements as Markdown tables."""
    settings, db = results["settings"], results["psnr_db"]
    lines = [
        f"Guidance {settings['guidance']}, {settings['steps']} steps, `max_sequence_length={results['max_sequence_length']}`;"
        " 95 % intervals in brackets.",
        "",
        "| autoencoder on | pictures | PSNR, dB |",
        "|---|--:|--:|",
    ]
    for name in db:
        lines.append(f"| {name.replace('_', ' ')} | {db[name]['n']} | {db[name]['value']:.2f} |")
    lines += ["", "| judged on | pictures | top-1, % | top-10, % | quality |", "|---|--:|--:|--:|--:|"]
    for pairs in ("seen_pairs", "unseen_pairs"):
        for name, found in results[pairs].items():
            if isinstance(found, dict):
                what = f"{pairs.replace('_', ' ')}: {name.replace('_', ' ')}"
                row = (
                    found["top1"]["n"],
                    percent(found["top1"]),
                    percent(found["top10"]),
                    f"{found['quality']['value']:.2f}",
                )
                lines.append("| " + " | ".join(map(str, (what, *row))) + " |")
    for length, found in results["by_max_sequence_length"].items():
        row = (found["top1"]["n"], percent(found["top1"]), percent(found["top10"]), f"{found['quality']['value']:.2f}")
        lines.append("| " + " | ".join(map(str, (f"seen pairs, `max_sequence_length={length}`", *row))) + " |")
    return "\n".join(lines)


def write_card(results: dict[str, Any], readme: Path) -> None:
    """Put the tables between the marks of the data card."""
    start, end = "<!-- measurements -->", "<!-- /measurements -->"
    head, _, rest = readme.read_text().partition(start)
    _, found, tail = rest.partition(end)
    if not found:
        raise ValueError(f"{readme} lacks the marks {start} and {end}")
    readme.write_text(f"{head}{start}\n{describe(results)}\n{end}{tail}")


CURVES = {
    "vae": (("psnr_train", "psnr_held_out", "psnr_unseen_style"), "PSNR, dB"),
    "transformer": (("loss", "held_out"), "flow-matching loss"),
    "judge": (("concept", "quality"), "loss"),
    "text_encoder": (("loss", "contrast"), "loss"),
    "text_encoder_2": (("loss", "clip", "concept", "style"), "loss"),
}


@torch.no_grad()
def measure(pipeline_folder: Path, out: Path, pictures: Path, count: int) -> dict[str, Any]:
    pipeline = StableDiffusion3Pipeline.from_pretrained(pipeline_folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    judge = Judge.from_folder(ROOT / "judge")
    art = read_art(TRAINED_STYLES)
    train, held = ([row for row in art if row["split"] == split] for split in ("train", "held_out"))
    shuffled = pick(train, len(train), 0)
    seen, choosing, unseen = shuffled[:count], shuffled[count : count + 96], pick(held, len(held), 0)
    settings = choose_settings(pipeline, judge, choosing)
    results: dict[str, Any] = {"settings": settings, "max_sequence_length": SEQUENCE_LENGTH}

    results["psnr_db"] = {
        name: mean(psnr(reconstruct(pipeline.vae, pixels_of(rows)), pixels_of(rows)))
        for name, rows in (
            ("train", shuffled[:512]),
            ("held_out", held),
            ("unseen_style", read_art((HELD_OUT_STYLE,))),
        )
    }
    guidance, steps = settings["guidance"], settings["steps"]
    for name, rows in (("seen_pairs", seen), ("unseen_pairs", unseen)):
        concepts, real = [row["concept"] for row in rows], pixels_of(rows)
        start = time.monotonic()
        drawn = sample(pipeline, prompts_of(rows), guidance, steps, SEQUENCE_LENGTH, 0)
        seconds = time.monotonic() - start
        results[name] = {
            "real_art": judged(judge, real, concepts),
            "reconstructed": judged(judge, reconstruct(pipeline.vae, real).clamp(0, 1), concepts),
            "samples": judged(judge, drawn, concepts),
            "samples_for_another_caption": judged(judge, drawn, concepts[1:] + concepts[:1]),
            "seconds_per_sample": round(seconds / len(rows), 3),
        }
        draw_grid(real[:64], drawn[:64], pictures / f"samples-{name.replace('_', '-')}.png")
    few, concepts = prompts_of(seen[:96]), [row["concept"] for row in seen[:96]]
    results["by_max_sequence_length"] = {
        str(length): judged(judge, sample(pipeline, few, guidance, steps, length, 0), concepts)
        for length in (16, 77, 256)
    }
    for name in ("text", "judge"):
        log = ROOT / "build" / "logs" / f"{name}.json"
        if log.exists():
            results[name] = json.loads(log.read_text())
    results["megabytes"] = {
        folder: round(sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) / 1e6, 2)
        for folder, path in (("pipeline", pipeline_folder), ("judge", ROOT / "judge"), ("art", ROOT / "art"))
    }
    out.write_text(json.dumps(results, indent=2) + "\n")
    for name, (fields, unit) in CURVES.items():
        draw_curves(name, fields, unit, pictures / f"{name}.png")
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pipeline", type=Path, default=ROOT / "pipeline", dest="pipeline_folder")
    parser.add_argument("--out", type=Path, default=ROOT / "measurements.json")
    parser.add_argument("--pictures", type=Path, default=ROOT / "pictures")
    parser.add_argument("--count", type=int, default=256, help="samples of seen pairs")
    found = measure(**vars(parser.parse_args()))
    write_card(found, ROOT / "README.md")
    print(describe(found))
