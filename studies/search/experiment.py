"""Search at sampling time on the emoji world, at equal network evaluations, judged by the oracle.

Samplers without noise are deterministic: what pruning does is a choice among whole trajectories. So a pool of trajectories is
sampled once per setting, each state on the way is read by the reward and each finished picture by reward and oracle; every
schedule of pruning, halving, best-of-N and random picking is then replayed on the pool, over many subsets of it (`replay`), and
`check` holds replay and `dina_lrm.generation.search.prune` equal on some prompts. What draws or pushes (SMC, beam, guidance)
runs live.

    python -m studies.search.experiment pool --setting unguided-12
    python -m studies.search.experiment live --setting unguided-12
    python -m studies.search.experiment table
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dina_lrm.generation import (
    Counted,
    FlowNoise,
    Guided,
    Policy,
    RewardGuidance,
    beam,
    best_of_n,
    ode_step,
    prune,
    smc,
    state_at,
)
from dina_lrm.generation.sampler import Field, StepNoise, clean
from dina_lrm.scoring import RewardModel
from dina_lrm.scoring.selection import Cut, Judge, halving_schedule, judge_of, random_judge
from dina_lrm.types import Conditioning
from dina_lrm.worlds.locate import emoji_root
from dina_lrm.worlds.oracle import Oracle

OUT = Path("runs/study-search")
MODELS = {  # the demo's, and one that has also learned from the generator's own samples
    "demo": Path("runs/study-alignment/first/model"),
    "second": emoji_root() / "reward",
}
ROOT = emoji_root()
LENGTH = 1  # the world's T5 is empty


@dataclass(frozen=True)
class Setting:
    """How the generator is asked."""

    steps: int
    guidance: float
    pool: int = 16  # trajectories a prompt


SETTINGS = {
    "unguided-4": Setting(4, 1.0, 16),
    "unguided-12": Setting(12, 1.0, 12),
    "guided-12": Setting(12, 2.5, 12),
}


@dataclass(frozen=True)
class Prompt:
    concept: str
    style: str

    @property
    def text(self) -> str:
        return f"{self.concept}, {self.style} style"


def held_out_prompts(count: int, split: str = "test", seed: int = 0) -> list[Prompt]:
    """Concepts whose preferences the reward never saw, each in one of the styles that it is drawn in."""
    from dina_lrm.worlds.emoji import split_of
    from worlds.emoji.common import TRAINED_STYLES, read_art

    styles: dict[str, list[str]] = {}
    for row in read_art(TRAINED_STYLES):
        if split_of(row["concept"]) == split:
            styles.setdefault(row["concept"], []).append(row["style"])
    rng = np.random.default_rng(seed)
    concepts = rng.permutation(sorted(styles)).tolist()[:count]
    return [Prompt(concept, str(rng.choice(sorted(styles[concept])))) for concept in concepts]


def load_oracle() -> Oracle:
    from worlds.emoji.common import HELD_OUT_STYLE, TRAINED_STYLES, read_art

    drawings: dict[str, list[Tensor]] = {}
    for row in read_art((*TRAINED_STYLES, HELD_OUT_STYLE)):
        drawings.setdefault(row["concept"], []).append(row["pixels"])
    return Oracle.from_folder(ROOT / "oracle", ROOT / "judge", {c: torch.stack(p) for c, p in drawings.items()})


@dataclass
class World:
    """Generator, reward and oracle."""

    policy: Policy
    model: RewardModel
    oracle: Oracle = field(default_factory=load_oracle)

    @staticmethod
    def load(model: str = "demo") -> World:
        from dina_lrm.backbones.loading import load_pipeline

        pipeline = load_pipeline(str(ROOT / "pipeline"), torch.float32)
        return World(Policy(pipeline), RewardModel.from_pretrained(MODELS[model], base=pipeline, merge_adapter=True))

    def grid(self, setting: Setting) -> Tensor:
        return self.policy.backbone.sampler_sigmas(setting.steps, (16, 8, 8))

    def field(self, setting: Setting) -> tuple[Field, Counted]:
        """The sampler's field, and the counter of network passes inside it."""
        network = Counted(self.policy)
        negative = self.policy.backbone.encode_prompts([""], LENGTH)
        return (network if setting.guidance == 1 else Guided(network, negative, setting.guidance)), network

    def text(self, prompts: Sequence[Prompt]) -> Conditioning:
        return self.policy.backbone.encode_prompts([p.text for p in prompts], LENGTH)

    def judge(self, prompts: Sequence[Prompt], **asked: object) -> Judge:
        return judge_of(self.model, self.model.encode_prompts([p.text for p in prompts], LENGTH), **asked)

    def utility(self, latents: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """The oracle's, of what half-precision latents decode to in 8 bits; samples of a prompt behind each other."""
        each = len(latents) // len(prompts)
        pixels = torch.cat([self.policy.backbone.decode_latents(part.half().float()) for part in latents.split(128)])
        reading = self.oracle.read(pixels.mul(255).round() / 255)
        named = [p for p in prompts for _ in range(each)]
        return self.oracle.utility(reading, [p.concept for p in named], [p.style for p in named])


def noise_of(prompts: Sequence[Prompt], number: int, stream: int = 0) -> Tensor:
    """`[q n c h w]`, the first two axes as one; each prompt's from a seed of its own."""
    seeds = [abs(hash_of(p.text)) + 7919 * stream for p in prompts]
    return torch.cat([torch.randn(number, 16, 8, 8, generator=torch.Generator().manual_seed(s)) for s in seeds])


def hash_of(text: str) -> int:
    import hashlib

    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")


# --- the pool -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pool:
    """Whole trajectories `[q n]` and what was read of them.

    Attributes:
        sigmas: the grid.
        state: reward of each state as it stands, `[q n t]`, after steps 1..t; the last is the finished one, as `score` reads it.
        guess: reward of the clean latents predicted there, noised to 0.4, `[q n t]`.
        ensemble: of the finished, mean of 0.2, 0.5, 0.7 over two draws `[q n]`.
        oracle: utility of the finished `[q n]`.
    """

    sigmas: list[float]
    state: np.ndarray
    guess: np.ndarray
    ensemble: np.ndarray
    oracle: np.ndarray


@torch.no_grad()
def sample_pools(
    worlds: dict[str, World], setting: Setting, prompts: Sequence[Prompt], at_once: int = 8
) -> dict[str, Pool]:
    """The same trajectories, read by each world's reward."""
    world = next(iter(worlds.values()))
    grid = world.grid(setting)
    velocity_of, _ = world.field(setting)
    parts = {name: {what: [] for what in ("state", "guess", "ensemble", "oracle")} for name in worlds}
    start = time.time()
    for first in range(0, len(prompts), at_once):
        some = prompts[first : first + at_once]
        latents = noise_of(some, setting.pool)
        number = torch.arange(len(some)).repeat_interleave(setting.pool)
        text = world.text(some)[number]
        judges = {name: one.judge(some) for name, one in worlds.items()}
        read = {name: {"state": [], "guess": []} for name in worlds}
        for place in range(setting.steps):
            state = state_at(latents, float(grid[place]))
            velocity = velocity_of(state, text)
            following = ode_step(state, velocity, float(grid[place + 1]))
            latents = following.noised_latents
            for name, judge in judges.items():
                read[name]["state"].append(judge(following, number))
                read[name]["guess"].append(judge(state_at(clean(state, velocity), 0.0), number))
        final, worth = state_at(latents, 0.0), world.utility(latents, some)
        for name, one in worlds.items():
            for what in ("state", "guess"):
                parts[name][what].append(torch.stack(read[name][what], 1))
            parts[name]["ensemble"].append(one.judge(some, sigmas=(0.2, 0.5, 0.7))(final, number))
            parts[name]["oracle"].append(worth)
        print(f"{first + len(some)}/{len(prompts)} prompts, {time.time() - start:.0f} s", flush=True)
    shape = (len(prompts), setting.pool)

    def pool(found: dict[str, list[Tensor]]) -> Pool:
        values = [torch.cat(found[what]).double().numpy() for what in ("state", "guess", "ensemble", "oracle")]
        return Pool(grid.tolist(), *(v.reshape(*shape, *v.shape[1:]) for v in values))

    return {name: pool(found) for name, found in parts.items()}


def save_pool(pool: Pool, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **asdict(pool))


def load_pool(path: Path) -> Pool:
    loaded = np.load(path)
    return Pool(loaded["sigmas"].tolist(), *(loaded[name] for name in ("state", "guess", "ensemble", "oracle")))


@dataclass(frozen=True)
class Replay:
    """A schedule on the pool: start so many, after `place` steps keep so many by a reading; then pick one of the finished."""

    label: str
    start: int
    cuts: tuple[tuple[int, int], ...] = ()  # (steps taken, keep)
    by: str = "state"  # state, guess, random, oracle
    final: str = "state"  # what picks among the finished: state (as score reads them), ensemble, random, oracle

    def evaluations(self, steps: int) -> int:
        total, alive, before = 0, self.start, 0
        for place, keep in (*self.cuts, (steps, 1)):
            total += alive * (place - before)
            alive, before = keep, place
        return total

    def reads(self) -> int:
        total, alive = 0, self.start
        for _, keep in self.cuts:
            total += alive
            alive = keep
        return total + (alive if alive > 1 else 0)


def replay(pool: Pool, schedule: Replay, subsets: int = 64, seed: int = 0) -> np.ndarray:
    """Mean oracle utility of the picked picture of each prompt, over random subsets of the pool, `[q]`."""
    rng = np.random.default_rng(seed)
    prompts, size, steps = pool.state.shape
    total = np.zeros(prompts)
    for _ in range(subsets):
        alive = np.argsort(rng.random((prompts, size)), axis=1)[:, : schedule.start]
        for place, keep in (*schedule.cuts, (steps, 1)):
            by = schedule.final if place == steps else schedule.by
            values = {
                "state": lambda p=place: pool.state[:, :, p - 1],
                "guess": lambda p=place: pool.guess[:, :, p - 1],
                "ensemble": lambda: pool.ensemble,
                "oracle": lambda: pool.oracle,
                "random": lambda: rng.random((prompts, size)),
            }[by]()
            read = np.take_along_axis(values, alive, 1)
            alive = np.take_along_axis(alive, np.argsort(-read, axis=1)[:, :keep], 1)
        total += np.take_along_axis(pool.oracle, alive, 1)[:, 0]
    return total / subsets


def interval(values: np.ndarray, seed: int = 0, resamples: int = 4000) -> tuple[float, float, float]:
    """Mean over prompts and its 95 % bootstrap interval."""
    rng = np.random.default_rng(seed)
    means = values[rng.integers(0, len(values), (resamples, len(values)))].mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(values.mean()), float(low), float(high)


def schedules(setting: Setting, sigmas: Sequence[float], budget: int) -> list[Replay]:
    """All that cost `budget` whole trajectories or a little less."""
    steps, room = setting.steps, budget * setting.steps
    found = [
        Replay("single", 1),
        Replay("random pick of N", budget, final="random"),
        Replay("best-of-N", budget),
        Replay("best-of-N, ensemble", budget, final="ensemble"),
        Replay("oracle's own best-of-N", budget, final="oracle"),
    ]
    for place in range(1, steps):
        start = min(setting.pool, (room - (steps - place)) // place)
        if start <= 1:
            continue
        for by in ("state", "guess", "oracle"):
            found.append(Replay(f"prune to 1 at {sigmas[place]:.2f} by {by}", start, ((place, 1),), by))
        start = min(setting.pool, (room - 2 * (steps - place)) // place)
        if start > 2:
            for by in ("state", "guess"):
                found.append(Replay(f"prune to 2 at {sigmas[place]:.2f} by {by}, then best", start, ((place, 2),), by))
    for first in (0.95, 0.9, 0.8, 0.65):
        for start in range(setting.pool, 2, -1):
            try:
                cuts = halving_schedule(torch.tensor(sigmas), start, 1, first)
            except ValueError:
                continue
            places = [next(i for i, s in enumerate(sigmas) if s <= cut.sigma + 1e-6) for cut in cuts]
            inner = tuple((p, cut.keep) for p, cut in zip(places, cuts, strict=True) if p < steps)
            for by in ("state", "guess"):
                one = Replay(f"halving from {start}, first at {first} by {by}", start, inner, by)
                if one.evaluations(steps) <= room:
                    found.append(one)
            if one.evaluations(steps) <= room:
                break
    return found


def early_decision(pool: Pool) -> list[dict[str, object]]:
    """Over sigma: how often of two samples of a prompt the reading favours the one that (the oracle | the reward's own final
    verdict) prefers, with 95 % intervals over prompts.
    """
    rows = []
    left, right = np.triu_indices(pool.oracle.shape[1], 1)

    def accuracy(values: np.ndarray, truth: np.ndarray, margin: float = 0.0) -> tuple[float, float, float]:
        a, b = values[:, left] - values[:, right], truth[:, left] - truth[:, right]
        counts = np.abs(b) > margin
        right_ = ((a * b > 0) & counts).sum(1) / np.maximum(1, counts.sum(1))
        keep = counts.sum(1) > 0
        mean, low, high = interval(right_[keep])
        return mean, low, high

    def within(values: np.ndarray, truth: np.ndarray) -> float:
        a, b = values - values.mean(1, keepdims=True), truth - truth.mean(1, keepdims=True)
        return float((a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum()))

    for place, sigma in enumerate(pool.sigmas[1:]):
        for by, values in (("state", pool.state), ("guess", pool.guess)):
            rows.append(
                {
                    "sigma": sigma,
                    "by": by,
                    "oracle": accuracy(values[:, :, place], pool.oracle),
                    "oracle, gaps above 0.5": accuracy(values[:, :, place], pool.oracle, 0.5),
                    "final": accuracy(values[:, :, place], pool.state[:, :, -1]),
                    "ensemble": accuracy(values[:, :, place], pool.ensemble),
                    "correlation with the oracle": within(values[:, :, place], pool.oracle),
                }
            )
    return rows


@torch.no_grad()
def check(world: World, setting: Setting, prompts: Sequence[Prompt], pool: Pool) -> None:
    """`prune` and the pool agree."""
    some = prompts[:4]
    field_, network = world.field(setting)
    place = min(setting.steps - 1, max(1, setting.steps // 3))
    found = prune(
        field_,
        noise_of(some, setting.pool),
        world.text(some),
        world.grid(setting),
        world.judge(some),
        [Cut(pool.sigmas[place], 4), Cut(0.0, 1)],
    )
    alive = np.sort(np.argsort(-pool.state[:4, :, place - 1], axis=1)[:, :4], axis=1)
    final = np.take_along_axis(pool.state[:4, :, -1], alive, 1)
    picked = np.take_along_axis(alive, final.argmax(1)[:, None], 1)[:, 0]
    assert (found.ancestry.numpy() == picked + np.arange(4) * setting.pool).all(), (found.ancestry, picked)
    passes = 1 if setting.guidance == 1 else 2
    assert (
        network.evaluations
        == passes * found.evaluations
        == passes * 4 * (setting.pool * place + 4 * (setting.steps - place))
    )
    print("prune and replay agree; evaluations", found.evaluations)


# --- what draws or pushes ------------------------------------------------------------------------------------------------

Arm = Callable[[World, Setting, Sequence[Prompt]], tuple[Tensor, int, int]]


def run_live(
    world: World, setting: Setting, prompts: Sequence[Prompt], arm: Arm, at_once: int = 16
) -> dict[str, object]:
    """Oracle's utility of each prompt's picture `[q]`, and what it cost a prompt."""
    values, reward, evaluations, reads = [], [], 0, 0
    for first in range(0, len(prompts), at_once):
        some = prompts[first : first + at_once]
        latents, asked, read = arm(world, setting, some)
        with torch.no_grad():
            values.append(world.utility(latents, some))
            reward.append(
                world.judge(some, sigmas=(0.2, 0.5, 0.7), draws=2)(state_at(latents, 0.0), torch.arange(len(some)))
            )
        evaluations += asked
        reads += read
    return {
        "oracle": torch.cat(values).tolist(),
        "reward": torch.cat(reward).tolist(),
        "evaluations": evaluations / len(prompts),
        "reads": reads / len(prompts),
    }


def guided_arm(scale: float, band: tuple[float, float], of: str, number: int = 1) -> Arm:
    def arm(world: World, setting: Setting, prompts: Sequence[Prompt]) -> tuple[Tensor, int, int]:
        judge = world.judge(prompts)
        guidance = RewardGuidance(judge, scale, band, relative=True, of=of) if scale else None
        field_, _ = world.field(setting)
        found = best_of_n(
            field_, noise_of(prompts, number), world.text(prompts), world.grid(setting), judge, guidance=guidance
        )
        return found.latents, found.evaluations, found.reward_evaluations

    return arm


def smc_arm(
    number: int, temperature: float, noise: StepNoise, share: float = 0.5, band: tuple[float, float] = (0.0, 0.9)
) -> Arm:
    def arm(world: World, setting: Setting, prompts: Sequence[Prompt]) -> tuple[Tensor, int, int]:
        field_, _ = world.field(setting)
        seeds = [hash_of(p.text) + 1 for p in prompts]
        found = smc(
            field_,
            noise_of(prompts, number),
            world.text(prompts),
            world.grid(setting),
            world.judge(prompts),
            temperature=temperature,
            seeds=seeds,
            step_noise=noise,
            share=share,
            band=band,
        )
        return found.latents[found.best(len(prompts))], found.evaluations, found.reward_evaluations

    return arm


def beam_arm(width: int, branches: int, noise: StepNoise, band: tuple[float, float] = (0.2, 0.9)) -> Arm:
    def arm(world: World, setting: Setting, prompts: Sequence[Prompt]) -> tuple[Tensor, int, int]:
        field_, _ = world.field(setting)
        seeds = [hash_of(p.text) + 1 for p in prompts]
        found = beam(
            field_,
            noise_of(prompts, width),
            world.text(prompts),
            world.grid(setting),
            world.judge(prompts),
            branches=branches,
            seeds=seeds,
            step_noise=noise,
            band=band,
            keep=1,
        )
        return found.latents, found.evaluations, found.reward_evaluations

    return arm


def prune_arm(start: int, cuts: Sequence[tuple[int, int]], of: str, chance: bool = False) -> Arm:
    """Cuts as (steps taken, keep); what is left when all is finished is scored, and the best taken."""

    def arm(world: World, setting: Setting, prompts: Sequence[Prompt]) -> tuple[Tensor, int, int]:
        field_, _ = world.field(setting)
        grid = world.grid(setting)
        asked = [Cut(float(grid[place]), keep) for place, keep in cuts]
        if not cuts or cuts[-1][1] > 1:
            asked.append(Cut(0.0, 1))
        judge = (
            random_judge(torch.Generator().manual_seed(hash_of(prompts[0].text))) if chance else world.judge(prompts)
        )
        found = prune(field_, noise_of(prompts, start), world.text(prompts), grid, judge, asked, of=of)
        return found.latents, found.evaluations, found.reward_evaluations

    return arm


def live_arms(setting: Setting) -> dict[str, Arm]:
    """At twelve steps 48 evaluations a prompt, or 12 for what guides a single sample."""
    wide, arms = (0.05, 0.9), {}
    arms["plain"] = guided_arm(0.0, wide, "state")
    arms["best-of-4"] = guided_arm(0.0, wide, "state", 4)
    arms["prune 37 to 1 after step 1, clean"] = prune_arm(37, [(1, 1)], "clean")
    arms["prune 26 to 2 after step 1, clean, then best"] = prune_arm(26, [(1, 2)], "clean")
    arms["prune 24 to 5 after step 1, to 1 after step 4, clean"] = prune_arm(24, [(1, 5), (4, 1)], "clean")
    arms["prune 19 to 1 after step 2, clean"] = prune_arm(19, [(2, 1)], "clean")
    arms["prune 37 to 1 after step 1, state"] = prune_arm(37, [(1, 1)], "state")
    arms["prune 37 to 1 after step 1, by chance"] = prune_arm(37, [(1, 1)], "clean", chance=True)
    arms["prune 20 to 1 after step 1, clean (equal with the reward's passes)"] = prune_arm(20, [(1, 1)], "clean")
    for scale in (0.1, 0.2):
        arms[f"guidance {scale}, clean"] = guided_arm(scale, wide, "clean")
    arms["guidance 0.1, state"] = guided_arm(0.1, wide, "state")
    arms["SMC of 4, temperature 1000: noise, and best of 4"] = smc_arm(4, 1000.0, FlowNoise(0.3))
    arms["SMC of 4, temperature 0.1"] = smc_arm(4, 0.1, FlowNoise(0.3))
    arms["beam 4 x 4"] = beam_arm(4, 4, FlowNoise(0.3))
    return arms


def table(pool: Pool, setting: Setting, budget: int) -> list[dict[str, object]]:
    rows = []
    base = replay(pool, Replay("best-of-N", budget))
    for schedule in schedules(setting, pool.sigmas, budget):
        values = replay(pool, schedule)
        rows.append(
            {
                "arm": schedule.label,
                "start": schedule.start,
                "evaluations": schedule.evaluations(setting.steps),
                "reads": schedule.reads(),
                "oracle": interval(values),
                "over best-of-N": interval(values - base),
                "over a single one": interval(values - pool.oracle.mean(1)),
            }
        )
    return rows


def say(rows: Sequence[dict[str, object]]) -> None:
    for row in rows:
        told = {k: "{:.3f} ({:.3f} to {:.3f})".format(*v) if isinstance(v, tuple) else v for k, v in row.items()}
        print(" | ".join(f"{k} {v}" for k, v in told.items()))


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("pool", "live", "table", "check"))
    parser.add_argument("--setting", default="unguided-12")
    parser.add_argument("--models", default="demo,second")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--split", default="test")
    parser.add_argument("--arms", default="", help="only those whose label holds one of these, between commas")
    parser.add_argument("--budget", type=int, default=4)
    asked = parser.parse_args()
    setting, prompts = SETTINGS[asked.setting], held_out_prompts(asked.prompts, asked.split)
    names = asked.models.split(",")

    def place(kind: str, name: str, ending: str) -> Path:
        return OUT / f"{kind}-{asked.setting}-{asked.split}-{name}.{ending}"

    if asked.what == "pool":
        worlds = {name: World.load(name) for name in names}
        for name, pool in sample_pools(worlds, setting, prompts).items():
            save_pool(pool, place("pool", name, "npz"))
            check(worlds[name], setting, prompts, pool)
    for name in names if asked.what == "check" else ():
        check(World.load(name), setting, prompts, load_pool(place("pool", name, "npz")))
    for name in names if asked.what == "live" else ():
        world, path = World.load(name), place("live", name, "json")
        found = json.loads(path.read_text()) if path.is_file() else {}
        for label, arm in live_arms(setting).items():
            if label not in found and any(word in label for word in asked.arms.split(",")):
                start = time.time()
                found[label] = run_live(world, setting, prompts, arm)
                path.parent.mkdir(exist_ok=True)
                path.write_text(json.dumps(found))
                print(
                    name, label, interval(np.array(found[label]["oracle"])), f"{time.time() - start:.0f} s", flush=True
                )
    for name in names if asked.what == "table" else ():
        print("=====", asked.setting, name)
        path = place("pool", name, "npz")
        if path.is_file():
            say(table(load_pool(path), setting, asked.budget))
            print()
            say(early_decision(load_pool(path)))
        path = place("live", name, "json")
        if path.is_file():
            print()
            live = json.loads(path.read_text())
            plain, best = (np.array(live[which]["oracle"]) for which in ("plain", "best-of-4"))
            say(
                [
                    {
                        "arm": label,
                        "evaluations": one["evaluations"],
                        "reads": one["reads"],
                        "oracle": interval(np.array(one["oracle"])),
                        "over plain": interval(np.array(one["oracle"]) - plain),
                        "over best-of-4": interval(np.array(one["oracle"]) - best),
                        "reward": interval(np.array(one["reward"])),
                    }
                    for label, one in live.items()
                ]
            )


if __name__ == "__main__":
    main()
