"""Results as a demo might find them, made up from a seed."""

from __future__ import annotations

import io
import math

import pytest
import torch
from PIL import Image

from dina_lrm.evals import AccuracyEstimate, CalibrationCard, EvalCard, ReliabilityBin, SigmaProfile
from dina_lrm.report import (
    BestOf,
    DemoResults,
    EncodingFacts,
    RankedPicture,
    RankedPrompt,
    SamplePicture,
    SplitFacts,
    StepTime,
    TableRow,
    TrainingFacts,
    ValidationPoint,
    WorldFacts,
)

SPLITS = {"test": "held-out prompts", "unseen_style": "a style never seen", "unseen_damage": "damage never seen"}
KINDS = ("concept", "damage", "generator", "style")


def estimate(value: float, half: float = 0.012, pairs: int = 2400) -> AccuracyEstimate:
    return AccuracyEstimate(value=value, low=value - half, high=value + half, pairs=pairs, prompts=150)


def made_up_card(split: str, rule: str, sigmas: tuple[float, ...], value: float, shown: str = "own") -> EvalCard:
    kinds = {
        kind: estimate(value + shift, 0.025, 600) for kind, shift in zip(KINDS, (-0.05, 0.06, 0.0, -0.01), strict=True)
    }
    bins = tuple(
        ReliabilityBin(confidence=c, share=estimate(0.5 + 0.92 * (c - 0.5), 0.03, 240))
        for c in (0.51, 0.54, 0.58, 0.63, 0.69, 0.76, 0.83, 0.9, 0.95, 0.99)
    )
    return EvalCard(
        split=split,
        rule=rule,
        sigmas=sigmas,
        draws=1,
        fusion="mean",
        prompts_shown=shown,
        seed=0,
        prompts=150,
        candidates=1800,
        pairs=2400,
        vote_ties=84,
        predicted_ties=0,
        accuracy=estimate(value),
        accuracy_by_kind=kinds,
        oracle_accuracy=estimate(value + 0.04),
        oracle_accuracy_by_kind=kinds,
        ceiling=estimate(0.903, 0.006),
        ceiling_by_kind={kind: estimate(0.9, 0.012, 600) for kind in KINDS},
        kendall_tau=estimate(2 * value - 1.05),
        calibration=CalibrationCard(
            ece=0.031, brier=estimate(0.09), nll=estimate(0.47), vote_entropy=0.35, reliability=bins
        ),
        seconds=4.2,
        candidates_per_second=428.0,
    )


def made_up_run(name: str, label: str, backbone: str, top: float) -> TrainingFacts:
    generator = torch.Generator().manual_seed(len(name))
    steps = list(range(10, 1010, 10))
    wobble = torch.randn(2, len(steps), generator=generator)
    rise = [1 - math.exp(-s / 220) for s in steps]
    return TrainingFacts(
        name=name,
        label=label,
        backbone=backbone,
        head="query",
        steps=1000,
        batch_size=7,
        pairs=28_000,
        trained_parameters=1_240_000,
        seconds=238.0,
        pairs_per_second=134.4,
        model=f"models/{name}",
        at_step=tuple(steps),
        loss=tuple(0.3 - (top - 0.5) * 0.5 * r + 0.015 * float(w) for r, w in zip(rise, wobble[0], strict=True)),
        accuracy=tuple(0.52 + (top - 0.52) * r + 0.04 * float(w) for r, w in zip(rise, wobble[1], strict=True)),
        learning_rate=tuple(3e-4 * min(1, s / 50) * (1 + math.cos(math.pi * s / 1000)) / 2 for s in steps),
        validation=tuple(
            ValidationPoint(step=s, sigma=sigma, accuracy=0.52 + (top - 0.53) * (1 - math.exp(-s / 220)))
            for s in (200, 400, 600, 800, 1000)
            for sigma in (0.1, 0.4, 0.7)
        ),
    )


def made_up_profile() -> SigmaProfile:
    sigmas = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    shapes = {
        "concept": lambda s: 0.58 + 0.3 * math.sin(math.pi * min(1.0, s / 1.35)),
        "damage": lambda s: 0.97 - 0.3 * s**2.5,
        "generator": lambda s: 0.74 + 0.1 * math.sin(math.pi * s) - 0.08 * s,
        "style": lambda s: 0.7 + 0.12 * math.sin(math.pi * s),
    }
    by_kind = {kind: tuple(estimate(shape(s), 0.025, 600) for s in sigmas) for kind, shape in shapes.items()}
    every = tuple(estimate(sum(by_kind[k][i].value for k in by_kind) / 4) for i in range(len(sigmas)))
    return SigmaProfile(split="test", sigmas=sigmas, all=every, by_kind=by_kind)


def made_up_table() -> tuple[TableRow, ...]:
    levels = (0.2, 0.5, 0.7)
    rows = (
        ("sigma-0.1", "one draw, sigma 0.1", "model", "", (0.1,), 0.79, "own"),
        ("sigma-0.4", "one draw, sigma 0.4", "model", "", (0.4,), 0.82, "own"),
        ("tokens", "tokens of 0.2, 0.5, 0.7", "model", "", levels, 0.835, "own"),
        ("mean", "mean of 0.2, 0.5, 0.7", "model", "", levels, 0.841, "own"),
        (
            "random",
            "Random backbone",
            "control",
            "same blocks, budget and schedule; random weights",
            levels,
            0.71,
            "own",
        ),
        ("swapped", "Prompts swapped", "control", "the model is shown another prompt", levels, 0.66, "swapped"),
        ("blank", "Prompts blanked", "control", "the model is shown no prompt", levels, 0.7, "blank"),
    )
    return tuple(
        TableRow(
            name=name,
            label=label,
            group=group,
            note=note,
            cards={
                split: made_up_card(split, label, sigmas, value - 0.02 * place, shown)
                for place, split in enumerate(SPLITS)
            },
            gap={} if name == "mean" else {split: estimate(0.841 - value) for split in SPLITS},
        )
        for name, label, group, note, sigmas, value, shown in rows
    )


def made_up_rankings(prompts: list[str]) -> tuple[RankedPrompt, ...]:
    return tuple(
        RankedPrompt(
            prompt=prompt,
            pool="of the generator" if row % 2 else "of every origin",
            pictures=tuple(
                RankedPicture(
                    picture=f"picture-{(8 * row + place) % 32}",
                    origin=("real", "20 steps", "blur 0.45", "real: ram")[place % 4],
                    reward=1.9 - 0.45 * place,
                    oracle_utility=1 - 0.2 * place,
                    oracle_rank=1 + (place * 3) % 8,
                )
                for place in range(8)
            ),
        )
        for row, prompt in enumerate(prompts)
    )


def made_up_results(fast: bool = False) -> DemoResults:
    prompts = [f"steam train number {i}, glossy style" for i in range(32)]
    split_facts = {
        name: SplitFacts(
            label=label,
            prompts=150,
            pairs=2400,
            candidates=1800,
            measured_prompts=40 if fast else 150,
            measured_pairs=2400,
        )
        for name, label in {"train": "training", **SPLITS}.items()
    }
    return DemoResults(
        version="0.1.0",
        fast=fast,
        seed=0,
        finished="2026-11-23 12:00 UTC",
        machine={"cores": "2", "torch": "2.13.0"},
        world=WorldFacts(
            name="the emoji world",
            description="A Stable Diffusion 3 in miniature, trained on openly licensed emoji.",
            transformer_parameters=14_200_000,
            transformer_blocks=8,
            kept_blocks=4,
            latent_shape=(16, 8, 8),
            image_size=64,
            quality={"reconstruction PSNR, dB": 28.4},
        ),
        splits=split_facts,
        encoding=EncodingFacts(
            prompts=900, prompts_per_second=310.0, pictures=64, pictures_per_second=95.0, reconstruction_psnr=28.9
        ),
        training=(
            made_up_run("main", "pretrained", "pretrained", 0.85),
            made_up_run("random", "random weights", "random", 0.71),
        ),
        headline="mean",
        table=made_up_table(),
        profile=made_up_profile(),
        samples=tuple(SamplePicture(prompt=prompts[i], picture=f"picture-{i}") for i in range(32)),
        rankings=made_up_rankings(prompts[:6]),
        best_of=tuple(
            BestOf(
                pool=pool,
                n=n,
                prompts=80,
                best=estimate(5.62, 0.1),
                average=estimate(4.05, 0.08),
                worst=estimate(2.9, 0.1),
                oracle_best=estimate(6.4, 0.09),
                captured=0.67,
            )
            for pool, n in (("of the generator", 6), ("of every origin", 8))
        ),
        times=(
            StepTime(name="world", label="Find the world", seconds=0.4),
            StepTime(name="train", label="Train the reward model", seconds=243.0),
        ),
        commands=(
            'dina-lrm score --model demo/models/main --prompt "red apple, noto style" a.png b.png --sigma 0.1',
            'dina-lrm compare --model demo/models/main --prompt "red apple, noto style" a.png b.png',
            "dina-lrm info demo/models/main",
        ),
    )


def made_up_pictures() -> dict[str, bytes]:
    pictures = {}
    for i in range(32):
        file = io.BytesIO()
        Image.new("RGB", (64, 64), (8 * i, 120, 255 - 8 * i)).save(file, "PNG")
        pictures[f"picture-{i}"] = file.getvalue()
    return pictures


@pytest.fixture
def results() -> DemoResults:
    return made_up_results()


@pytest.fixture
def pictures() -> dict[str, bytes]:
    return made_up_pictures()
