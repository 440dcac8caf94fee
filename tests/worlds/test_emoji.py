"""What a policy is asked for, and who judges it: splits that share no concept, the oracle as a scorer of pictures."""

from __future__ import annotations

import json

import pytest
import torch

from dina_lrm.data import PreferenceData
from dina_lrm.errors import ValueRangeError
from dina_lrm.worlds.emoji import asked_for, emoji_prompts, emoji_scorer, split_of
from dina_lrm.worlds.locate import emoji_root


def test_splits_share_no_concept_and_are_those_of_the_preferences() -> None:
    concepts = {split: {asked_for(p)[0] for p in emoji_prompts(split)} for split in ("train", "validation", "test")}
    assert not concepts["train"] & concepts["test"] and not concepts["train"] & concepts["validation"]
    assert len(emoji_prompts("train")) == 1983
    data = PreferenceData.open(emoji_root() / "preferences")
    for split in ("train", "test"):
        shown = {origin.concept for origin in data.pairs(split).chosen_origin if origin is not None}
        assert all(split_of(concept) == split for concept in shown)


def test_the_oracle_gives_what_the_preferences_say() -> None:
    data = PreferenceData.open(emoji_root() / "preferences")
    rows = [
        row
        for row in data.candidates.slice(0, 400).to_pylist()
        if row["prompt"].endswith(" style") and row["prompt"].count(",") == 1
    ][:8]
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(emoji_root() / "pipeline" / "vae")
    latents = data.latents([row["latents_row"] for row in rows])
    with torch.no_grad():
        decoded = vae.decode(latents / vae.config.scaling_factor + (vae.config.shift_factor or 0)).sample
    pixels = ((decoded / 2 + 0.5).clamp(0, 1) * 255).round() / 255
    found = emoji_scorer()(pixels, [row["prompt"] for row in rows])
    told = torch.tensor([row["oracle_utility"] for row in rows])
    assert torch.allclose(found, told, atol=0.02), json.dumps([found.tolist(), told.tolist()])


def test_what_cannot_be_read_is_refused() -> None:
    with pytest.raises(ValueRangeError, match="fox, noto style"):
        asked_for("a fox")
    with pytest.raises(ValueRangeError, match='"train"'):
        emoji_prompts("dev")
