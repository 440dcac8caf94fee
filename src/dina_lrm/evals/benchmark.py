"""Benchmarks by name or file: which pairs, and how a model is asked about them."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from pydantic import Field

from dina_lrm.config import Config, load_config, parse_config
from dina_lrm.data import PreferenceData
from dina_lrm.errors import ConfigError
from dina_lrm.evals.card import Card, EvalCard
from dina_lrm.evals.conventions import TieCard, tie_card
from dina_lrm.evals.evaluate import make_card, score_split
from dina_lrm.evals.rules import Prompts, ScoringRule
from dina_lrm.evals.space import check_latent_space
from dina_lrm.noise import Fusion
from dina_lrm.scoring import RewardModel
from dina_lrm.worlds.locate import emoji_root

__all__ = ["BenchmarkCard", "RuleConfig", "TaskConfig", "available_tasks", "find_task", "run_task"]

EMOJI = "emoji"
_SUFFIXES = (".yaml", ".yml", ".json")


class RuleConfig(Config):
    """How a model is asked; builds a `ScoringRule`.

    Attributes:
        sigmas: noise levels.
        draws: of noise at every level.
        fusion: how levels are joined.
        antithetic: draws come in pairs of a noise and its negative.
    """

    sigmas: tuple[float, ...] = (0.4,)
    draws: int = Field(1, ge=1)
    fusion: Fusion = "mean"
    antithetic: bool = False

    def build(self) -> ScoringRule:
        """The rule."""
        return ScoringRule(self.sigmas, self.draws, self.fusion, self.antithetic)


class TaskConfig(Config):
    """A benchmark.

    Attributes:
        name: of the benchmark.
        data: preference folder, relative to the file that names it; or "emoji", the embedded world.
        split: of the folder.
        rule: how a model is asked.
        prompts: which prompts it is shown.
        seed: of the noise.
    """

    name: str
    data: str
    split: str = "test"
    rule: RuleConfig = RuleConfig()
    prompts: Prompts = "own"
    seed: int = 0

    def open(self) -> PreferenceData:
        """The pairs."""
        return PreferenceData.open(emoji_root() / "preferences" if self.data == EMOJI else Path(self.data))


class BenchmarkCard(Card):
    """One model on one benchmark.

    Attributes:
        model: as it was named.
        task: the benchmark as it was run.
        calibrated_on: what the model's probabilities were fitted on, and for what where that is not what was asked; None
            if they were not.
        card: accuracy, agreement with an oracle, calibration.
        ties: the same scores under every convention for ties.
    """

    model: str
    task: TaskConfig
    calibrated_on: str | None
    card: EvalCard
    ties: TieCard


def available_tasks() -> tuple[str, ...]:
    """Names of the built-in benchmarks."""
    found = (Path(str(path)) for path in files("dina_lrm.evals").joinpath("tasks").iterdir())
    return tuple(sorted(path.stem for path in found if path.suffix in _SUFFIXES))


def find_task(name: str) -> TaskConfig:
    """A benchmark by what the user calls it.

    Args:
        name: of a built-in one, a task file (.yaml, .json), or a preference folder.

    Raises:
        ConfigError: none of these, or a file with a wrong key or value.
    """
    path = Path(name)
    if path.is_dir():
        return TaskConfig(name=path.resolve().name, data=str(path))
    if path.suffix in _SUFFIXES:
        task = load_config(TaskConfig, path)
        data = task.data if task.data == EMOJI else str(path.parent / task.data)
        return task.model_copy(update={"data": data})
    if name not in available_tasks():
        raise ConfigError(
            f"task must be one of {', '.join(available_tasks())}, a .yaml or .json file, or a preference folder; got {name!r}"
        )
    return load_config(TaskConfig, Path(str(files("dina_lrm.evals").joinpath("tasks", f"{name}.yaml"))))


def run_task(
    model: RewardModel,
    task: TaskConfig,
    name: str = "",
    max_prompts: int | None = None,
    max_batch_size: int = 64,
) -> BenchmarkCard:
    """Score the pairs of a benchmark and make its card.

    Args:
        model: the reward model.
        task: which pairs, and how to ask.
        name: of the model, for the card.
        max_prompts: only so many prompts.
        max_batch_size: noised pictures in one forward.

    Returns:
        The card.

    Raises:
        DataError: latents of another space than the model's, or no pairs.
    """
    task = parse_config(TaskConfig, task.model_dump(), task.name)  # what --flags changed is checked like the rest
    data = task.open()
    check_latent_space(data, model.network.backbone)
    scored = score_split(
        model, data, task.split, task.rule.build(), task.prompts, task.seed, max_batch_size, max_prompts
    )
    return BenchmarkCard(
        model=name,
        task=task,
        calibrated_on=_calibrated_on(model, task),
        card=make_card(scored),
        ties=tie_card(scored.margin, scored.view.target, scored.view.prompt_of_pair),
    )


def _calibrated_on(model: RewardModel, task: TaskConfig) -> str | None:
    """Where tokens are joined the map and law of means stand in: nothing was fitted to that."""
    fitted = model.config.calibration.fitted_on
    joined = task.rule.fusion == "tokens" and len(task.rule.sigmas) > 1
    return f"{fitted}, for means of levels and not for joined tokens" if fitted and joined else fitted
