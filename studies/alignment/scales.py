"""The rewards' units: how far each is spread over the generator's samples of one prompt.

A pull has a weight beside the reward's, so the same pull is another one for a reward of other units. Runs weigh a rival's reward so
that it is spread as far as the latent one.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from dina_lrm.alignment.prompts import evenly
from dina_lrm.backbones.loading import load_pipeline
from dina_lrm.demo.align_settings import LEVELS
from dina_lrm.errors import DataError
from dina_lrm.runtime.files import atomic_write
from dina_lrm.scoring import RewardModel
from dina_lrm.worlds.emoji import emoji_prompts
from dina_lrm.worlds.locate import emoji_root
from studies.alignment.rival import SIZES, Rival
from studies.alignment.second_round import Source, draw
from studies.runs import fingerprint

__all__ = ["measure_scales", "weight_of"]

NAME = "scales.json"


@torch.no_grad()
def measure_scales(root: Path, num_prompts: int) -> None:
    """Standard deviation of each reward within two samples of each of some training prompts; measured when first asked for of
    these weights.

    Args:
        root: folder of the study, where all rewards are trained.
        num_prompts: how many.
    """
    of = fingerprint(root / "reward" / "model", *(root / f"rival-{size}" for size in SIZES), num_prompts)
    if (root / NAME).is_file() and json.loads((root / NAME).read_text(encoding="utf-8")).get("of") == of:
        return
    prompts = [prompt for prompt in evenly(emoji_prompts("train"), num_prompts) for _ in range(2)]
    latents = draw([Source(4, 1.0), Source(4, 1.0)], prompts[::2], seed=1)[0].flatten(0, 1)
    pipeline = load_pipeline(str(emoji_root() / "pipeline"), torch.float32)
    model = RewardModel.from_pretrained(root / "reward" / "model", base=pipeline)
    text = model.encode_prompts(prompts, 1)
    pixels = torch.cat([model.network.backbone.decode_latents(part) for part in latents.split(64)])
    rewards = {"latent": model.score(latents=latents, conditioning=text, sigmas=LEVELS).reward}
    rewards |= {f"rival-{size}": Rival.from_folder(root / f"rival-{size}")(pixels, prompts) for size in SIZES}
    found = {name: float(reward.view(-1, 2).var(dim=1).mean().sqrt()) for name, reward in rewards.items()}
    with atomic_write(root / NAME) as file:
        file.write(json.dumps({"of": of, **found}, indent=1).encode())


def weight_of(root: Path, rival: str) -> float:
    """By what a rival's reward is multiplied.

    Args:
        root: folder of the study.
        rival: its folder's name.

    Raises:
        DataError: the scales have not been measured.
    """
    path = root / NAME
    if not path.is_file():
        raise DataError(
            f"{path} is missing: the rewards of the study are not trained yet; run python -m studies.alignment"
        )
    scales = json.loads(path.read_text(encoding="utf-8"))
    return float(round(scales["latent"] / scales[rival], 3))
