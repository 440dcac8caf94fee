"""A second round of preferences: on what policies draw that have climbed the rewards of the first round.

A reward that has only seen other people's samples is fooled by directions that none of them shows. So first-round rewards, one
on latents and one on pixels, are climbed without restraint, towards what they like and people need not; those policies'
samples, beside the generator's own at several step counts and guidances, are put to the vote of the same annotators. All rewards
of the study then learn from the first round and the second together: the very same pairs.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dina_lrm.alignment import FactoryRewardConfig, LatentRewardConfig, ReflConfig
from dina_lrm.alignment.prompts import evenly
from dina_lrm.alignment.run import AlignRun
from dina_lrm.backbones.loading import load_pipeline
from dina_lrm.data import Candidate, Origin, PreferenceData, PreferencePair, write_preference_data
from dina_lrm.demo.align_settings import align_config
from dina_lrm.encoding import encode_prompts_once
from dina_lrm.generation import Guided, Policy, rollout
from dina_lrm.metrics import clustered_mean
from dina_lrm.runtime.accelerator import create_accelerator
from dina_lrm.worlds.emoji import asked_for, emoji_prompts, emoji_scorer, seed_of
from dina_lrm.worlds.locate import emoji_root
from dina_lrm.worlds.oracle import Electorate

__all__ = ["Source", "climb", "second_round", "standing"]

CLIMB_UPDATES = (10, 20, 30)
LEARNING_RATE = 3e-4


@dataclass(frozen=True)
class Source:
    """One way of drawing a sample.

    Attributes:
        steps: of the sampler.
        guidance: of it.
        adapter: of the policy that draws; None is the generator as it was.
        name: told as the candidate's origin.
    """

    steps: int
    guidance: float
    adapter: Path | None = None
    name: str = "generator"


OWN = (Source(4, 1.0), Source(4, 1.0), Source(2, 1.0), Source(2, 2.0), Source(4, 2.5), Source(8, 2.0))


def climb(out: Path, reward: LatentRewardConfig | FactoryRewardConfig, seed: int = 0) -> list[Path]:
    """Climb a reward without restraint; the adapters on the way, the first time it is asked for.

    Args:
        out: where they go.
        reward: to be fooled.
        seed: of the run.
    """
    folders = [out / f"update-{update:02d}" for update in CLIMB_UPDATES]
    if all(folder.is_dir() for folder in folders):
        return folders
    plain = align_config(out, ReflConfig(late=0.5), LEARNING_RATE, 16, CLIMB_UPDATES[-1])
    unseen = plain.evaluation.model_copy(update={"every": 0})
    config = plain.model_copy(update={"rewards": (reward,), "ema_decay": 0.0, "evaluation": unseen, "seed": seed})
    run = AlignRun(config, create_accelerator(device="cpu"))
    for number in range(config.num_updates):
        run.update(number)
        if number + 1 in CLIMB_UPDATES:
            run.export(out / f"update-{number + 1:02d}")
    return folders


def second_round(folder: Path, adapters: Sequence[Path], num_prompts: int = 600, seed: int = 0) -> PreferenceData:
    """The world's preferences with a second round added to their training split; made once.

    Args:
        folder: to write.
        adapters: of policies that have fooled a reward.
        num_prompts: of the second round, of train concepts.
        seed: of the samples' noise.
    """
    if folder.is_dir():
        return PreferenceData.open(folder)
    first = PreferenceData.open(emoji_root() / "preferences")
    prompts = evenly(emoji_prompts("train"), num_prompts)
    sources = (*OWN, *(Source(4, 1.0, adapter, f"{adapter.parent.name} {adapter.name}") for adapter in adapters))
    drawn, worth = draw(sources, prompts, seed)
    old = first.latents(range(first.info["counts"]["latents"]))
    candidates = list(_old_candidates(first))
    fresh, pairs = _put_to_the_vote(sources, prompts, worth, len(old))
    splits = {split: list(_old_pairs(first, split)) for split in first.splits}
    splits["train"] += pairs
    latents = torch.cat([old, drawn.flatten(0, 1)])
    info = {key: value for key, value in first.info["backbone"].items() if key != "latent_shape"}
    about = {**first.info["about"], "second_round": {"prompts": len(prompts), "pairs": len(pairs)}}
    return write_preference_data(folder, [*candidates, *fresh], latents, splits, "emoji-second-round", info, about)


@torch.no_grad()
def draw(sources: Sequence[Source], prompts: Sequence[str], seed: int, batch_size: int = 50) -> tuple[Tensor, Tensor]:
    """Samples of each prompt from each source `[q s c h w]`, and what the oracle thinks of them `[q s]`."""
    pipeline = load_pipeline(str(emoji_root() / "pipeline"), torch.float32)
    policy = Policy(pipeline, max_sequence_length=1)
    table = encode_prompts_once(policy.backbone, (*prompts, ""))
    blank = {name: value.detach().clone() for name, value in policy.backbone.adapter_state().items()}
    scorer, backbone = emoji_scorer(), policy.backbone
    shape = (backbone.latent_channels, backbone.facts.native_latent_side, backbone.facts.native_latent_side)
    latents, worth = [], []
    for place, source in enumerate(sources):
        if source.adapter is None:
            backbone.load_adapter_state(blank)
        else:
            policy.load_adapter(source.adapter)
        grid = backbone.sampler_sigmas(source.steps, shape)
        generator = torch.Generator().manual_seed(seed_of("second round", place, seed))
        noise = torch.randn(len(prompts), *shape, generator=generator)
        field = Guided(policy, table.lookup([""]), source.guidance)
        parts, values = [], []
        for start in range(0, len(prompts), batch_size):
            words = prompts[start : start + batch_size]
            found = rollout(field, noise[start : start + batch_size], table.lookup(words), grid).latents
            found = found.half().float()  # as they are stored: the oracle sees what a reward model is given
            parts.append(found)
            values.append(scorer(backbone.decode_latents(found), words))
        latents.append(torch.cat(parts))
        worth.append(torch.cat(values))
        print(
            f"{source.name}, {source.steps} steps, guidance {source.guidance:g}: {float(worth[-1].mean()):.3f}",
            flush=True,
        )
    return torch.stack(latents, dim=1), torch.stack(worth, dim=1)


def standing(data: PreferenceData) -> dict[str, list[float]]:
    """Where the samples of the policies that had climbed a reward stand by the oracle, against the generator's own asked the same
    way: `{policy: [mean, low, high]}` over prompts.
    """
    asked = "4 steps, guidance 1"
    worth: dict[str, dict[str, list[float]]] = {}
    for row in data.candidates.select(["candidate", "prompt", "origin", "oracle_utility"]).to_pylist():
        origin = Origin.from_row(row["origin"])
        if row["candidate"].startswith("second-") and origin.detail == asked:
            worth.setdefault(origin.kind, {}).setdefault(row["prompt"], []).append(row["oracle_utility"])
    own = worth.pop("generator")
    found = {}
    for policy, values in worth.items():
        gain = torch.tensor([values[prompt][0] - sum(base) / len(base) for prompt, base in own.items()]).double()
        estimate = clustered_mean(gain, torch.arange(len(gain)))
        found[policy] = [round(value, 4) for value in (estimate.value, estimate.low, estimate.high)]
    return found


def _put_to_the_vote(
    sources: Sequence[Source], prompts: Sequence[str], worth: Tensor, first_row: int
) -> tuple[list[Candidate], list[PreferencePair]]:
    electorate, candidates, pairs = Electorate(), [], []
    couples = list(itertools.combinations(range(len(sources)), 2))
    for q, prompt in enumerate(prompts):
        concept, style = asked_for(prompt)
        names = [f"second-{q:04d}-{s:02d}" for s in range(len(sources))]
        for s, (name, source) in enumerate(zip(names, sources, strict=True)):
            row, value = first_row + q * len(sources) + s, float(worth[q, s])
            origin = Origin(source.name, concept, style, f"{source.steps} steps, guidance {source.guidance:g}")
            candidates.append(Candidate(name, prompt, row, origin, None, value))
        rng = np.random.default_rng(seed_of("second pairs", prompt))
        sides = [(a, b) if rng.random() < 0.5 else (b, a) for a, b in couples]
        difference = torch.stack([worth[q, a] - worth[q, b] for a, b in sides])
        votes = electorate.vote(difference, seed_of("second votes", prompt)).tolist()
        for (a, b), (for_a, for_b, tied) in zip(sides, votes, strict=True):
            if for_a < for_b:
                a, b, for_a, for_b = b, a, for_b, for_a
            pairs.append(PreferencePair(prompt, names[a], names[b], for_a, for_b, tied, "generator"))
    return candidates, pairs


def _old_candidates(data: PreferenceData) -> Iterable[Candidate]:
    for row in data.candidates.to_pylist():
        yield Candidate(
            row["candidate"],
            row["prompt"],
            row["latents_row"],
            Origin.from_row(row["origin"]),
            row["preview"],
            row["oracle_utility"],
        )


def _old_pairs(data: PreferenceData, split: str) -> Iterable[PreferencePair]:
    table: Any = data.pairs(split)
    for k in range(len(table)):
        yield PreferencePair(
            table.prompt[k],
            table.chosen[k],
            table.rejected[k],
            int(table.votes_chosen[k]),
            int(table.votes_rejected[k]),
            int(table.votes_tied[k]),
            table.kind[k],
        )
