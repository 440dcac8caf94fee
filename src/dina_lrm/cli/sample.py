"""`dina-lrm sample`: pictures of a prompt, and of many begun the best, chosen before they are finished."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dina_lrm.cli.options import (
    CutPromptOption,
    DeviceOption,
    Dtype,
    DtypeOption,
    EnsembleOption,
    JsonOption,
    PromptOption,
    RevisionOption,
    SigmaOption,
    check_device,
    read_levels,
    read_sigmas,
    whole_prompt,
)
from dina_lrm.cli.output import print_json
from dina_lrm.errors import BaseMismatchError, ConfigError, ValueRangeError

if TYPE_CHECKING:
    from torch import Tensor

    from dina_lrm.generation import Found, Policy
    from dina_lrm.report.pruning import Choice
    from dina_lrm.scoring import RewardModel
    from dina_lrm.scoring.selection import Cut, Judge


class Read(StrEnum):
    """What the reward is shown of a sample that is not finished."""

    STATE = "state"
    CLEAN = "clean"


START, LEVELS = 16, (0.7, 0.5)
EMOJI_PROMPT_TOKENS = 16  # of the world's T5, which is empty


def sample(
    prompt: PromptOption,
    model: Annotated[
        str | None, typer.Option("--model", metavar="M", help="Reward model to choose by: folder or hub id.")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            "--base",
            metavar="B",
            help="Generator: pipeline folder, owner/name or owner/name@revision (default: emoji world).",
        ),
    ] = None,
    adapter: Annotated[
        Path | None,
        typer.Option("--adapter", metavar="FOLDER", help="LoRA of the generator, as `dina-lrm align` writes it."),
    ] = None,
    num: Annotated[int, typer.Option("--num", metavar="N", min=1, help="Pictures to write.")] = 4,
    prune: Annotated[
        bool, typer.Option("--prune", help="Begin many, read them while they are noise, finish the best.")
    ] = False,
    start: Annotated[
        int | None,
        typer.Option(
            "--start", metavar="N", min=1, help=f"Samples to begin ({START}); without --prune all are finished."
        ),
    ] = None,
    at: Annotated[
        str | None, typer.Option("--at", metavar="S,S,...", help="Noise levels to prune at (default: 0.7,0.5).")
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(
            "--keep", metavar="K,K,...", help="Samples to keep at each (default: evenly fewer, down to --num)."
        ),
    ] = None,
    halving: Annotated[
        bool, typer.Option("--halving", help="Prune by successive halving: half go at each of evenly spaced steps.")
    ] = False,
    read: Annotated[
        Read,
        typer.Option("--read", help="What is read on the way: the noisy state, or the clean picture it is becoming."),
    ] = Read.CLEAN,
    guidance: Annotated[
        float, typer.Option("--guidance", metavar="W", help="Classifier-free guidance; 1 for distilled models.")
    ] = 4.5,
    steps: Annotated[int, typer.Option("--steps", metavar="N", min=1, help="Of the sampler.")] = 28,
    height: Annotated[
        int | None, typer.Option("--height", metavar="Y", help="In pixels (default: the base's own).")
    ] = None,
    width: Annotated[
        int | None, typer.Option("--width", metavar="X", help="In pixels (default: the base's own).")
    ] = None,
    max_sequence_length: Annotated[
        int | None,
        typer.Option("--max-sequence-length", metavar="L", help="Prompt tokens of the generator's long encoder."),
    ] = None,
    sigma: SigmaOption = None,
    ensemble: EnsembleOption = None,
    revision: RevisionOption = None,
    cut_prompt: CutPromptOption = False,
    seed: Annotated[int, typer.Option("--seed", help="Of the noise that pictures begin as.")] = 0,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where pictures go.")] = Path("runs/sample"),
    max_batch_size: Annotated[
        int, typer.Option("--max-batch-size", metavar="N", min=1, help="States in one pass of the network, at most.")
    ] = 16,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = Dtype.FLOAT32,
    as_json: JsonOption = False,
) -> None:
    """Sample pictures of a prompt; with --prune, finish only those that the reward model likes while they are noise.

    --model alone scores the pictures; with --start too, all are finished and the best are written. OUT/pruned.png shows what
    each candidate would have become at each choice, and who went on.
    """
    plan = _plan(num, model, prune, start, at, keep, halving, read)
    finished = read_sigmas(sigma, ensemble)
    studio = _Studio.load(base, adapter, model, revision, device, dtype, max_sequence_length)
    shape = studio.latents_shape(height, width)
    with whole_prompt(cut_prompt):
        judge = studio.judge(prompt, finished)
        found, passes = studio.search(plan, prompt, shape, steps, guidance, seed, judge, max_batch_size)
    rows, cost = _written(studio, found, out, prompt), steps * (1 if guidance == 1 else 2)
    _tell(rows, found, plan, passes, cost, studio.drawn(found, out, adapter, seed, steps, guidance), as_json)


@dataclass(frozen=True)
class _Plan:
    """What was asked for, before anything is loaded.

    Attributes:
        num: pictures to write.
        start: samples to begin.
        prune: whether samples are dropped on the way.
        levels: where; empty for those that halving finds.
        keep: how many at each.
        scored: whether there is a reward.
        read: what it is shown.
    """

    num: int
    start: int
    prune: bool
    levels: tuple[float, ...]
    keep: tuple[int, ...]
    scored: bool
    read: Read

    def cuts(self, grid: Tensor) -> list[Cut]:
        """On a sampler's grid; the finished ones are scored, and the best of them written."""
        from dina_lrm.scoring.selection import Cut, halving_schedule

        if not self.scored:
            return []
        on_the_way = [Cut(sigma, keep) for sigma, keep in zip(self.levels, self.keep, strict=True)]
        if self.prune and not self.levels:
            on_the_way = [cut for cut in halving_schedule(grid, self.start, self.num) if cut.sigma > 0]
        return [*on_the_way, Cut(0.0, self.num)]


def _plan(
    num: int,
    model: str | None,
    prune: bool,
    start: int | None,
    at: str | None,
    keep: str | None,
    halving: bool,
    read: Read,
) -> _Plan:
    """Refuse options that do not go together."""
    given = [name for name, value in (("--at", at), ("--keep", keep), ("--halving", halving)) if value]
    if given and not prune:
        raise ConfigError(f"{given[0]} says how to prune: give --prune with it")
    if (prune or start is not None) and model is None:
        raise ConfigError(f"{'--prune' if prune else '--start'} chooses by a reward: name a reward model with --model")
    if halving and (at or keep):
        raise ConfigError("--halving finds levels and numbers by itself: leave out --at and --keep")
    count = start if start is not None else START if prune else num
    if num > count:
        raise ValueRangeError(f"--num {num} pictures cannot be chosen from --start {count}")
    levels = () if halving or not prune else read_levels("--at", at) if at is not None else LEVELS
    numbers = _whole_numbers(keep) if keep is not None else _evenly_fewer(count, num, len(levels))
    if len(numbers) != len(levels):
        raise ConfigError(f"--keep must say a number for each level of --at, got {len(numbers)} for {len(levels)}")
    if list(levels) != sorted(set(levels), reverse=True):
        raise ValueRangeError(f"--at must name falling levels, got {', '.join(f'{level:g}' for level in levels)}")
    if numbers and numbers[-1] < num:
        raise ValueRangeError(f"--keep ends with {numbers[-1]}, of which --num {num} pictures cannot be written")
    return _Plan(num, count, prune, levels, numbers, model is not None, read)


def _whole_numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise ValueRangeError(f'--keep takes whole numbers such as 8,4, got "{text}"') from error


def _evenly_fewer(start: int, num: int, choices: int) -> tuple[int, ...]:
    """Numbers to keep whose ratios are alike, the last `num`."""
    return tuple(math.ceil(start * (num / start) ** ((place + 1) / choices) - 1e-9) for place in range(choices))


@dataclass(frozen=True)
class _Studio:
    """A generator, and who judges it.

    Attributes:
        policy: the generator.
        reward: None where nobody judges.
    """

    policy: Policy
    reward: RewardModel | None

    @staticmethod
    def load(
        base: str | None,
        adapter: Path | None,
        model: str | None,
        revision: str | None,
        device: str,
        dtype: Dtype,
        max_sequence_length: int | None,
    ) -> _Studio:
        """Load what the options name; the reward stands on the generator's own weights, where it can.

        Raises:
            ConfigError: a generator of clips.
            BaseMismatchError: a reward of another latent space.
        """
        import torch

        from dina_lrm.backbones.loading import load_pipeline
        from dina_lrm.generation import Policy, read_adapter_config
        from dina_lrm.worlds.locate import emoji_root

        check_device(device)
        wanted = None if adapter is None else read_adapter_config(adapter)
        if base is None:
            base, max_sequence_length = str(emoji_root() / "pipeline"), max_sequence_length or EMOJI_PROMPT_TOKENS
        name, _, own = (base, "", "") if Path(base).exists() else base.partition("@")
        pipeline = load_pipeline(name, getattr(torch, dtype.value), device, own or None)
        policy = Policy(pipeline, wanted, max_sequence_length)
        if policy.backbone.latent_axes != 4:
            raise ConfigError(f"{type(pipeline).__name__} draws clips; pictures can be sampled here")
        if adapter is not None:
            policy.load_adapter(adapter)
        return _Studio(policy, None if model is None else _load_reward(model, revision, policy, device, dtype))

    def latents_shape(self, height: int | None, width: int | None) -> tuple[int, ...]:
        """Of one sample `(c, h, w)`."""
        backbone = self.policy.backbone
        sides = [backbone.native_size if side is None else side for side in (height, width)]
        if any(side < 1 or side % backbone.image_multiple for side in sides):
            raise ValueRangeError(
                f"--height and --width must be multiples of {backbone.image_multiple} for this base, got {sides[0]} and {sides[1]}"
            )
        return backbone.latent_channels, *(side // backbone.vae_factor for side in sides)

    def judge(self, prompt: str, sigmas: tuple[float, ...]) -> Judge:
        """Who reads states of the prompt."""
        import torch

        from dina_lrm.scoring.selection import judge_of, random_judge

        if self.reward is None:
            return random_judge(torch.Generator())  # there is nothing to choose, and it is not asked
        return judge_of(self.reward, self.reward.encode_prompts([prompt]), sigmas=sigmas)

    def search(
        self,
        plan: _Plan,
        prompt: str,
        shape: tuple[int, ...],
        steps: int,
        guidance: float,
        seed: int,
        judge: Judge,
        max_batch_size: int,
    ) -> tuple[Found, int]:
        """What was found, and passes of the network."""
        import torch

        from dina_lrm.generation import Chunked, Counted, Guided, prune

        backbone = self.policy.backbone
        text, negative = backbone.encode_prompts([prompt]), backbone.encode_prompts([""])
        network = Counted(Chunked(self.policy, max_batch_size))
        generator = torch.Generator().manual_seed(seed)
        # One by one, so that the first are the same however many there are.
        noise = torch.stack([torch.randn(shape, generator=generator) for _ in range(plan.start)]).to(self.policy.device)
        grid = backbone.sampler_sigmas(steps, shape)
        found = prune(
            Guided(network, negative, guidance), noise, text, grid, judge, plan.cuts(grid), of=plan.read.value
        )
        return found, network.evaluations

    def drawn(
        self, found: Found, out: Path, adapter: Path | None, seed: int, steps: int, guidance: float
    ) -> dict[str, Any]:
        """How, so that it can be done again; and the picture of the choices, where there were any."""
        return {
            "pruned": str(out / "pruned.png") if found.selections else None,
            "base": self.policy.backbone.base,
            "adapter": None if adapter is None else str(adapter),
            "seed": seed,
            "steps": steps,
            "guidance": guidance,
        }

    def pictures(self, latents: Tensor) -> list[Any]:
        """As PIL pictures."""
        import torch

        from dina_lrm.adapters.pictures import as_pictures

        with torch.no_grad():
            return as_pictures(torch.cat([self.policy.backbone.decode_latents(one.unsqueeze(0)) for one in latents]))


def _load_reward(model: str, revision: str | None, policy: Policy, device: str, dtype: Dtype) -> RewardModel:
    """A reward on the generator's weights, or on its own base, if that has the same latents.

    Raises:
        DataError: its base has other latents.
    """
    import torch

    from dina_lrm.backbones import check_latents
    from dina_lrm.scoring import RewardModel

    where = Path(model) if Path(model).exists() else model
    asked: dict[str, Any] = dict(device=device, dtype=getattr(torch, dtype.value), revision=revision)
    try:
        reward = RewardModel.from_pretrained(where, base=policy.pipeline, **asked)
    except BaseMismatchError:
        reward = RewardModel.from_pretrained(where, **asked)
    made_by, fix = policy.backbone.signature(), "take a reward model of the generator's own family"
    check_latents(f"the generator {policy.backbone.base!r}", made_by, reward.network.backbone, fix=fix)
    return reward


def _written(studio: _Studio, found: Found, out: Path, prompt: str) -> list[dict[str, Any]]:
    """Write pictures, the best first; a row for each."""
    order = found.reward.nan_to_num(-math.inf).argsort(descending=True, stable=True).tolist()
    pictures = studio.pictures(found.latents)
    rows = []
    for rank, place in enumerate(order):
        path = out / f"{rank + 1:02d}.png"
        _save(pictures[place], path)
        reward = float(found.reward[place])
        rows.append(
            {
                "picture": str(path),
                "prompt": prompt,
                "candidate": int(found.ancestry[place]),
                "reward": None if math.isnan(reward) else reward,
            }
        )
    # What an earlier call left under the same names would be taken for this one's.
    for path in out.glob("[0-9][0-9].png"):
        if int(path.stem) > len(rows):
            path.unlink()
    (out / "pruned.png").unlink(missing_ok=True)
    if found.selections:
        from dina_lrm.report.pruning import pruning_picture

        _save(pruning_picture(prompt, _choices(studio, found)), out / "pruned.png")
    return rows


def _save(picture: Any, path: Path) -> None:
    from dina_lrm.runtime.files import atomic_write

    with atomic_write(path) as file:
        picture.save(file, "PNG")


def _choices(studio: _Studio, found: Found) -> list[Choice]:
    """What each candidate would have become when it was read."""
    from dina_lrm.report.pruning import Candidate, Choice

    choices = []
    for selection in found.selections:
        assert selection.predicted is not None
        kept = set(selection.kept.tolist())
        pictures = studio.pictures(selection.predicted)
        candidates = tuple(
            Candidate(number, picture, None if math.isnan(reward) else reward, place in kept)
            for place, (number, picture, reward) in enumerate(
                zip(selection.candidates.tolist(), pictures, selection.reward.tolist(), strict=True)
            )
        )
        choices.append(Choice("finished" if selection.sigma == 0 else f"sigma {selection.sigma:.3f}", candidates))
    return choices


def _tell(
    rows: list[dict[str, Any]],
    found: Found,
    plan: _Plan,
    passes: int,
    passes_of_one: int,
    drawn: dict[str, Any],
    as_json: bool,
) -> None:
    """Rewards, and what it cost beside finishing all."""
    every = plan.start * passes_of_one
    choices = [
        {
            "sigma": round(selection.sigma, 6),
            "candidates": len(selection.candidates),
            "kept": len(selection.kept),
            "candidate_ids": selection.candidates.tolist(),
            "rewards": [None if math.isnan(reward) else reward for reward in selection.reward.tolist()],
            "kept_ids": selection.candidates[selection.kept].tolist(),
        }
        for selection in found.selections
    ]
    if as_json:
        for row in rows:
            print_json(row)
        cost = {"network_passes": passes, "network_passes_of_all": every, "states_read": found.reward_evaluations}
        print_json({**cost, "choices": choices, **drawn})
        return
    for choice in choices:
        print(f"sigma {choice['sigma']:.3f}: {choice['kept']} of {choice['candidates']} kept")
    for row in rows:
        print(
            f"{'':9}" if row["reward"] is None else f"{row['reward']:9.4f}",
            f"{row['picture']}  candidate {row['candidate']}",
        )
    print(
        f"network passes: {passes}, to finish all {plan.start} it takes {every} ({100 * passes / every:.0f} %); "
        f"states read by the reward: {found.reward_evaluations}"
    )
