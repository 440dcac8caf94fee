"""From configuration to who acts in a run: the policy, and what judges it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dina_lrm.alignment.config import (
    AlignConfig,
    AnyReward,
    FactoryRewardConfig,
    LatentRewardConfig,
    SamplerConfig,
    ServerRewardConfig,
    made_by,
)
from dina_lrm.alignment.prompts import refuse_cut
from dina_lrm.alignment.rewards import LatentTerm, Mixture, PixelTerm, Term, Weighted
from dina_lrm.backbones import check_latents
from dina_lrm.backbones.loading import load_pipeline
from dina_lrm.backbones.pipeline import PipelineBackbone
from dina_lrm.data import PreferenceData
from dina_lrm.encoding import encode_prompts_once
from dina_lrm.errors import BaseMismatchError, ConfigError, DataError
from dina_lrm.generation import Policy
from dina_lrm.model import RewardNetwork
from dina_lrm.runtime.accelerator import Accelerator
from dina_lrm.runtime.seeds import derive_seed
from dina_lrm.runtime.sharding import shard_frozen
from dina_lrm.scoring.client import RewardClient
from dina_lrm.scoring.reward_model import RewardModel
from dina_lrm.types import Conditioning

__all__ = ["Cast", "build_term", "latents_shape", "load_cast", "real_latents", "share_base"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Cast:
    """Who acts in a run.

    Attributes:
        policy: the generator that learns.
        mixture: what it is rewarded for.
        judges: what only looks on.
        text: prompts as the policy reads them; the empty one is among them.
        readers: reward networks on the policy's base.
    """

    policy: Policy
    mixture: Mixture
    judges: tuple[Weighted, ...]
    text: Callable[[Sequence[str]], Conditioning]
    readers: tuple[RewardNetwork, ...] = ()

    def prompt_lookup(self, prompts: Sequence[str]) -> Conditioning:
        """Encoded prompts, where the policy is."""
        return self.text(prompts).to(self.policy.device)


def load_cast(
    config: AlignConfig, prompts: Sequence[str], device: torch.device | str, given: dict[str, Any] | None = None
) -> Cast:
    """Load a pipeline once; put policy and rewards on its weights; encode all prompts; let the text encoders go.

    Args:
        config: of the run.
        prompts: all that will be asked for.
        device: where to put everything.
        given: rewards by name that are at hand already, in place of what their configuration would make.

    Raises:
        DataError: prompts that are cut.
        BaseMismatchError: a reward of another latent space.
        ConfigError: a reward without what the algorithm needs.
    """
    # As far as a configuration tells, before anything is loaded: what a factory makes may be a local model.
    served = [r.name for r in config.rewards if isinstance(r, ServerRewardConfig) and r.name not in (given or {})]
    _refuse_blind(config, served)
    # What is to be dealt out is whole in no accelerator's memory: `share_base` brings each its part.
    place = "cpu" if config.base_shards > 1 else device
    pipeline = load_pipeline(config.base, DTYPES[config.dtype], place, config.base_revision)
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(config.seed, "initial weights"))
        policy = Policy(pipeline, config.adapter, config.max_sequence_length)
    if config.base_shards > 1:
        policy.move_encoders(device)
    if config.gradient_checkpointing:
        policy.backbone.enable_gradient_checkpointing()
    texts, cache = tuple(dict.fromkeys((*prompts, ""))), config.out / "cache"
    if not config.cut_prompts:
        refuse_cut(policy.backbone, texts, "the generator")

    def weighted(reward: AnyReward) -> Weighted:
        term = build_term(reward, policy, texts, config, (given or {}).get(reward.name))
        return Weighted(reward.name, term, reward.weight)

    mixture = Mixture(tuple(map(weighted, config.rewards)), config.normalise)
    judges = tuple(map(weighted, config.evaluation.judges))
    _refuse_unfit(config, mixture)
    table = encode_prompts_once(policy.backbone, texts, cache)
    policy.drop_text_encoders()
    return Cast(policy, mixture, judges, table.lookup, tuple(_readers(config, given or {}, (*mixture.terms, *judges))))


def _readers(config: AlignConfig, given: dict[str, Any], terms: Sequence[Weighted]) -> Iterator[RewardNetwork]:
    """Of the rewards that were loaded here; those that were given, or made by others, may be anybody's."""
    loaded = {r.name for r in (*config.rewards, *config.evaluation.judges) if isinstance(r, LatentRewardConfig)}
    for weighted in terms:
        if weighted.name in loaded - given.keys() and isinstance(weighted.term, LatentTerm):
            assert isinstance(weighted.term.reward, RewardModel)
            yield weighted.term.reward.network


def share_base(cast: Cast, shards: int, accelerator: Accelerator) -> None:
    """Deal the base's blocks out over processes, for the policy and for the rewards that read on it (`shard_frozen`).

    Args:
        cast: just loaded.
        shards: processes that hold a copy together.
        accelerator: whose processes, and where they run.
    """
    cast.policy.drop_original()
    backbones = [cast.policy.backbone, *(reader.backbone for reader in cast.readers)]
    shard_frozen([(b.network, b.blocks) for b in backbones], accelerator.device, accelerator.num_processes, shards)
    for reader in cast.readers:
        reader.head.to(accelerator.device)
        reader.dealt_out = True


def _refuse_blind(config: AlignConfig, blind: Sequence[str]) -> None:
    if config.algorithm.build().needs_gradient and blind:
        raise ConfigError(
            f"{config.algorithm.kind} climbs the reward's gradient, and none passes through {', '.join(blind)}; take a latent "
            "reward model in this process, a differentiable scorer, or an algorithm that only ranks (flow_grpo, nft, dpo)"
        )


def _refuse_unfit(config: AlignConfig, mixture: Mixture) -> None:
    _refuse_blind(config, [weighted.name for weighted in mixture.terms if not weighted.term.differentiable])
    stateless = [w.name for w in mixture.terms if not (isinstance(w.term, LatentTerm) and w.term.text is not None)]
    if config.algorithm.build().reads_states and stateless:
        raise ConfigError(
            f"{config.algorithm.kind} judges noised states, which {', '.join(stateless)} cannot read; take latent reward "
            "models in this process"
        )


def build_term(
    config: AnyReward, policy: Policy, texts: Sequence[str], run: AlignConfig, given: Any | None = None
) -> Term:
    """A reward as a term.

    Args:
        config: of the reward.
        policy: whose samples it is to judge.
        texts: all prompts.
        run: that it is for.
        given: a `RewardFunction`, or a scorer of pictures, in place of what the configuration would make.
    """
    reads: dict[str, Any] = {
        "sigmas": config.sigmas,
        "draws": config.draws,
        "fusion": config.fusion,
        "band": config.band,
    }
    match config:
        case LatentRewardConfig():
            if given is not None and not isinstance(given, RewardModel):
                raise ConfigError(
                    f"reward {config.name} is of kind latent, so a RewardModel is to be given, got {type(given).__name__}; "
                    "configure it as kind server or factory"
                )
            return _local_term(given or _load_reward(config, policy), policy, texts, run, reads)
        case ServerRewardConfig():
            key = None if config.api_key_variable is None else os.environ.get(config.api_key_variable)
            if config.api_key_variable is not None and not key:
                raise ConfigError(f"reward {config.name}: environment variable {config.api_key_variable} is not set")
            client = given or RewardClient(config.url, model=config.model, api_key=key, timeout=config.timeout)
            return LatentTerm(client, **reads)
        case FactoryRewardConfig():
            made = given if given is not None else made_by(config.make)(**config.options)
            if isinstance(made, RewardModel):
                return _local_term(made, policy, texts, run, reads)
            if config.reads == "latents":
                return LatentTerm(made, **reads)
            return PixelTerm(made, config.differentiable)


def _load_reward(config: LatentRewardConfig, policy: Policy) -> RewardModel:
    try:
        return RewardModel.from_pretrained(
            config.model,
            base=policy.pipeline,
            device=policy.device,
            dtype=policy.backbone.dtype,
            revision=config.revision,
        )
    except BaseMismatchError as error:
        raise BaseMismatchError(
            f"reward {config.model!r} does not read what the generator {policy.backbone.base!r} draws: {error}"
        ) from error


def _local_term(
    model: RewardModel, policy: Policy, texts: Sequence[str], run: AlignConfig, reads: dict[str, Any]
) -> LatentTerm:
    backbone = model.network.backbone
    check_latents(
        f"the generator {policy.backbone.base!r}",
        policy.backbone.signature(),
        backbone,
        fix="take a reward model of the generator's own family",
    )
    if not run.cut_prompts:
        refuse_cut(backbone, texts, "the reward model")
    table = encode_prompts_once(backbone, texts, run.out / "cache")
    if isinstance(backbone, PipelineBackbone):
        backbone.drop_text_encoders()
    return LatentTerm(model, table.lookup, **reads)


def latents_shape(policy: Policy, sampler: SamplerConfig) -> tuple[int, int, int]:
    """Of one sample `(c, h, w)`.

    Raises:
        ConfigError: sides that the base does not take.
    """
    backbone = policy.backbone
    height, width = sampler.height or backbone.native_size, sampler.width or backbone.native_size
    if height % backbone.image_multiple or width % backbone.image_multiple:
        raise ConfigError(
            f"sides must be multiples of {backbone.image_multiple} for this base, got height {height} and width {width}"
        )
    return backbone.latent_channels, height // backbone.vae_factor, width // backbone.vae_factor


def real_latents(
    folder: Path, text: Callable[[Sequence[str]], Conditioning], prompts: Sequence[str], policy: Policy
) -> Callable[[int, torch.Generator], tuple[Tensor, Conditioning]]:
    """Real pictures of a preference folder, to be drawn from: candidates of origin "real" and detail "right" with prompts of the run.

    Raises:
        DataError: there are none, or they are of another latent space.
    """
    data = PreferenceData.open(folder)
    check_latents(str(folder), data.dataset_info().get("backbone", {}), policy.backbone)
    known = set(prompts)
    table = data.candidates.select(["prompt", "origin", "latents_row"]).to_pylist()
    rows = [
        (row["latents_row"], row["prompt"])
        for row in table
        if row["prompt"] in known and (row["origin"] or {}).get("kind") == "real" and row["origin"]["detail"] == "right"
    ]
    if not rows:
        raise DataError(f"{folder} has no real pictures of the run's prompts for the pretraining loss")

    def draw(count: int, generator: torch.Generator) -> tuple[Tensor, Conditioning]:
        places = torch.randint(len(rows), (count,), generator=generator).tolist()
        latents = data.latents([rows[place][0] for place in places])
        conditioning = text([rows[place][1] for place in places])
        return latents.to(policy.device), conditioning.to(policy.device)

    return draw
