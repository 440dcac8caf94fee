"""flow_grpo: a factory called with a device, whose result is called with images, prompts and metadata.

flow_grpo keeps its factories in a table by name and hands over `device` only to those whose code has a local of that name;
`multi_score` multiplies each of the scores by a weight and adds them up. It has no word for a missing reward, so a sample
that cannot be scored stops the call.

    score_functions["dina"] = image_score(model)        # beside "pickscore", in flow_grpo/rewards.py

The fork for latent reward models calls a function of the final latents and the sampler's own text states: `latent_score`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from dina_lrm.adapters.asking import DEFAULT, Asking
from dina_lrm.adapters.pictures import Batch, as_pictures
from dina_lrm.scoring.protocol import RewardFunction
from dina_lrm.types import Conditioning, Reward

Details: TypeAlias = dict[str, list[float]]


def image_score(model: RewardFunction, asking: Asking = DEFAULT) -> Callable[..., Callable[..., Any]]:
    """A factory `name(device) -> fn(images, prompts, metadata, ref_images=None) -> (scores, dict)`.

    The scores are a list of floats in the order of the images. The model stays where it is, whatever the device.

    Args:
        model: local or behind HTTP.
        asking: which noise is looked at, and which number is given.
    """

    def dina_score(device: Any) -> Callable[..., tuple[list[float], Details]]:
        del device  # the trainer looks for a local of this name

        def _fn(
            images: Batch, prompts: Sequence[str], metadata: Any, ref_images: Any = None
        ) -> tuple[list[float], Details]:
            del metadata, ref_images
            reward = asking.score(model, prompts=list(prompts), images=as_pictures(images))
            return asking.values(reward).tolist(), _details(reward)

        return _fn

    return dina_score


def latent_score(model: RewardFunction, asking: Asking = DEFAULT) -> Callable[..., Callable[..., Any]]:
    """A factory of the fork's form: `fn(latents, prompt_embeds, pooled_prompt_embeds, u, metadata=None) -> (scores, dict)`.

    The scores are a tensor `[b]` on the latents' device. Where the latents need a gradient, a model in this process passes
    it on, and a client refuses.

    Args:
        model: local or behind HTTP.
        asking: which noise is looked at; `u`, where the trainer gives it, stands for its levels (0.4 unless said, as there).
    """

    def dina_latent_score(device: Any) -> Callable[..., tuple[Tensor, Details]]:
        del device

        def _fn(
            latents: Tensor,
            prompt_embeds: Tensor,
            pooled_prompt_embeds: Tensor | None,
            u: float | None = None,
            metadata: Any = None,
        ) -> tuple[Tensor, Details]:
            del metadata
            asked = asking if u is None else replace(asking, sigmas=(float(u),))
            conditioning = Conditioning(prompt_embeds, pooled_prompt_embeds)
            with torch.set_grad_enabled(torch.is_grad_enabled() and latents.requires_grad):
                reward = asked.score(model, conditioning=conditioning, latents=latents)
            return asked.values(reward).to(latents.device), _details(reward)

        return _fn

    return dina_latent_score


def _details(reward: Reward) -> Details:
    """What else is known of the scores, a list a name as the trainer logs them."""
    told = {
        "utility": reward.utility,
        "utility_std": reward.utility_std,
        "standard_error": reward.standard_error,
    }
    return {f"dina_{name}": values.detach().tolist() for name, values in told.items()}
