import pytest
import torch

from dina_lrm.scoring import samples
from dina_lrm.scoring.samples import Samples, joined, joined_states
from dina_lrm.types import Reward

LATENTS = torch.arange(5.0).view(5, 1, 1, 1).expand(5, 16, 2, 2).contiguous()
EMBEDS = torch.arange(5.0).view(5, 1, 1)


def reward(values, draws, seed=0, sigmas=None):
    values = torch.tensor(values)
    drawn = values.unsqueeze(1).repeat(1, draws)
    levels = torch.full((draws,), 0.4) if sigmas is None else torch.tensor(sigmas)
    return Reward(values, values, values, values, drawn, levels, seed, torch.full((len(values),), draws))


def test_few_samples_travel_in_one_request():
    whole = Samples({"latents": LATENTS}, (), {"prompt_embeds": EMBEDS}, (), 0)
    assert whole.parts() == [whole] and len(whole) == 5


@pytest.mark.parametrize("limit", ["MOST_STATES", "MOST_BYTES"])
def test_many_are_cut_and_what_stands_for_all_stands_for_each_part(monkeypatch, limit):
    monkeypatch.setattr(samples, limit, 2 if limit == "MOST_STATES" else 2 * (LATENTS[0].nbytes + 4))
    whole = Samples({"latents": LATENTS}, (), {"prompt_embeds": EMBEDS[:1]}, (), (1, 2, 3, 4, 5))
    parts = whole.parts()
    assert [len(part) for part in parts] == [2, 2, 1]
    assert [part.seed for part in parts] == [(1, 2), (3, 4), (5,)]
    assert torch.equal(torch.cat([part.tensors["latents"] for part in parts]), LATENTS)
    assert all(torch.equal(part.text["prompt_embeds"], EMBEDS[:1]) for part in parts)


def test_pictures_are_numbered_anew_in_each_part(monkeypatch):
    monkeypatch.setattr(samples, "MOST_STATES", 2)
    files = [torch.full((place + 1,), place, dtype=torch.uint8) for place in range(3)]
    parts = Samples({}, files, {}, ("a", "b", "c"), 0).parts()
    assert [sorted(part.blob) for part in parts] == [["image.0", "image.1"], ["image.0"]]
    assert [part.prompts for part in parts] == [("a", "b"), ("c",)] and int(parts[1].blob["image.0"][0]) == 2


@pytest.mark.parametrize(
    "wrong",
    [
        Samples({"latents": LATENTS}, (), {}, ("a", "b"), 0),
        Samples({"latents": LATENTS}, (), {}, ("a",), (1, 2)),
        Samples({"latents": LATENTS}, (), {"prompt_embeds": EMBEDS[:2]}, (), 0),
        Samples({"latents": LATENTS, "noise": LATENTS[:2]}, (), {}, ("a",), 0),
    ],
)
def test_what_does_not_fit_together_is_left_to_the_server_to_refuse(monkeypatch, wrong):
    monkeypatch.setattr(samples, "MOST_STATES", 2)
    assert wrong.parts() == [wrong]


def test_answers_are_joined_in_order_and_padded():
    whole = joined([reward([1.0, 2.0], 1, (5, 6)), reward([3.0], 3, (7,))])
    assert whole.reward.tolist() == [1, 2, 3] and whole.seed == (5, 6, 7) and whole.spent.tolist() == [1, 1, 3]
    assert whole.draws.isnan().sum(dim=1).tolist() == [2, 2, 0] and len(whole.sigmas) == 3
    assert joined([reward([1.0], 1), reward([2.0], 1)]).seed == 0
    assert joined([reward([1.0], 1, None), reward([2.0], 1, None)]).seed is None


def test_states_of_one_level_say_it_once():
    one, two = reward([1.0, 2.0], 1, None, [0.5]), reward([3.0], 1, None, [0.5])
    assert joined_states([one, two]).sigmas.tolist() == [0.5]
    assert joined_states([one, reward([3.0], 1, None, [0.25])]).sigmas.tolist() == [0.5, 0.5, 0.25]
    assert joined_states([reward([1.0, 2.0], 1, None, [0.5, 0.25]), two]).sigmas.tolist() == [0.5, 0.25, 0.5]
