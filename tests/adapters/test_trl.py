"""TRL's contracts: how GRPO and DDPO call a reward function and what they do with its answer."""

import asyncio
import inspect

import pytest
import torch

from dina_lrm.adapters.asking import Asking
from dina_lrm.adapters.trl import ddpo_reward, grpo_reward
from dina_lrm.errors import ConfigError, ImageError, ShapeError
from tests.adapters.fake import brightness

STATE = dict(completion_ids=[[1], [2], [3]], trainer_state=object(), log_extra=print, log_metric=print)


def said(text, *parts):
    return [{"role": "system", "content": "draw"}, {"role": "user", "content": text}, *parts]


def drawn(picture):
    content = [{"type": "text", "text": "here"}, {"type": "image", "image": picture}]
    return [{"role": "assistant", "content": content}]


def as_the_trainer_takes(rewards):
    """None becomes NaN, and NaN is left out of the weighted sum."""
    column = torch.tensor([torch.nan if reward is None else reward for reward in rewards], dtype=torch.float32)
    return column.unsqueeze(1).nansum(dim=1)


def test_pictures_as_completions(model, pictures):
    reward = grpo_reward(model, Asking(value="utility"))
    assert reward.__name__ == "dina_reward" and not inspect.iscoroutinefunction(reward)
    rewards = reward(prompts=["a", "bb", "ccc"], completions=pictures, **STATE)
    expected = [brightness(picture) + 1 + place for place, picture in enumerate(pictures)]
    assert rewards == pytest.approx(expected) and all(isinstance(one, float) for one in rewards)
    assert as_the_trainer_takes(rewards).tolist() == pytest.approx(expected)


def test_messages_hold_prompts_and_pictures(model, pictures):
    prompts = [said("a"), said([{"type": "text", "text": "bb"}]), said("ccc")]
    rewards = grpo_reward(model)(prompts=prompts, completions=[drawn(picture) for picture in pictures], **STATE)
    assert model.calls[0]["prompts"] == ["a", "bb", "ccc"] and None not in rewards


def test_pictures_in_a_column_and_by_path(model, pictures, tmp_path):
    paths = []
    for place, picture in enumerate(pictures):
        picture.save(tmp_path / f"{place}.png")
        paths.append(str(tmp_path / f"{place}.png"))
    ask = dict(prompts=["a", "b", "c"], completions=["words"] * 3)
    held = grpo_reward(model, images="picture")(**ask, picture=pictures, **STATE)
    assert held == grpo_reward(model, images="picture")(**ask, picture=paths, **STATE)
    with pytest.raises(ConfigError, match="no column 'image'.*completion_ids"):
        grpo_reward(model, images="image")(**ask, picture=paths, **STATE)


def test_what_holds_no_picture_has_no_reward(model, pictures):
    rewards = grpo_reward(model)(prompts=["a", "b", "c"], completions=[pictures[0], "no", drawn(None)], **STATE)
    assert rewards[0] is not None and rewards[1:] == [None, None]
    assert grpo_reward(model)(prompts=["a"], completions=["/etc/passwd.png"], **STATE) == [None]


def test_a_picture_that_cannot_be_scored_has_no_reward_and_a_warning(model, pictures, black, tmp_path):
    with pytest.warns(RuntimeWarning, match="sample 1 has no reward: image 0 is black"):
        rewards = grpo_reward(model)(prompts=["a", "b", "c"], completions=[pictures[0], black, pictures[1]], **STATE)
    assert rewards[1] is None and None not in (rewards[0], rewards[2])
    reward, missing = grpo_reward(model, images="picture"), str(tmp_path / "missing.png")
    with pytest.warns(RuntimeWarning, match="sample 0 has no reward.*there is no such file"):
        rewards = reward(prompts=["a", "b"], completions=["", ""], picture=[missing, pictures[0]])
    assert rewards[0] is None and rewards[1] is not None
    with pytest.raises(ImageError, match="no such file"):
        reward(prompts=["a"], completions=[""], picture=[missing])


def test_where_no_picture_can_be_scored_it_raises(model, black):
    with pytest.raises(ImageError, match="black"):
        grpo_reward(model)(prompts=["a", "b"], completions=[black, black], **STATE)
    with pytest.raises(ShapeError, match="2 prompts need as many pictures in completions, got 1"):
        grpo_reward(model)(prompts=["a", "b"], completions=[black], **STATE)


def test_ddpo_takes_two_things_apart(model, pictures, pixels):
    function = ddpo_reward(model, Asking(value="utility"))
    reward, metadata = function(pixels, ("a", "bb", "ccc"), ({}, {}, {}))
    assert torch.as_tensor(reward).tolist() == pytest.approx(
        [brightness(picture) + 1 + place for place, picture in enumerate(pictures)]
    )
    assert metadata == {}
    with pytest.raises(ImageError):
        function(torch.zeros_like(pixels), ("a", "b", "c"), ())


def test_it_runs_inside_an_event_loop_too(model, pictures):
    async def main():
        return await asyncio.to_thread(grpo_reward(model), prompts=["a"] * 3, completions=pictures)

    assert None not in asyncio.run(main())


def test_a_message_whose_key_for_a_picture_is_empty_is_read_on(model, pictures):
    """Data sets give every message all keys, with None where it has nothing."""
    filled = [{"role": "assistant", "image": None, "content": drawn(picture)[0]["content"]} for picture in pictures]
    rewards = grpo_reward(model)(prompts=["a"] * 3, completions=[[one] for one in filled], **STATE)
    assert None not in rewards
