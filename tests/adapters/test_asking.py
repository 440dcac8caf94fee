import pytest
import torch

from dina_lrm.adapters.asking import Asking
from dina_lrm.errors import ConfigError, ImageError, NoAnswerError, ValueRangeError, WorkError
from tests.adapters.fake import FakeModel, brightness


def test_what_is_asked_is_passed_on(model, pictures):
    asking = Asking(sigmas=(0.2, 0.5), draws=4, fusion="tokens", antithetic=True, seed=7)
    asking.score(model, prompts=["a"], images=pictures)
    call = model.calls[0]
    assert (call["sigmas"], call["draws"], call["fusion"]) == ((0.2, 0.5), 4, "tokens")
    assert call["antithetic"] is True and call["seed"] == 7


def test_the_number_is_the_one_asked_for(model, pictures):
    reward = Asking().score(model, prompts=["a", "b", "c"], images=pictures)
    assert torch.equal(Asking().values(reward), reward.reward)
    assert torch.equal(Asking(value="utility").values(reward), reward.utility)
    with pytest.raises(ConfigError, match="value must be one of reward, utility, got 'score'"):
        Asking(value="score")


def test_a_number_that_is_none_is_not_given():
    reward = FakeModel.reward(torch.tensor([1.0, float("nan")]), (0.4,), 0)
    with pytest.raises(WorkError, match="sample 1 was given the reward nan"):
        Asking().values(reward)


def test_one_bad_picture_costs_the_others_nothing(model, pictures, black):
    found = Asking(value="utility").of_each(model, ["a", "bb", "c"], [pictures[0], black, pictures[1]])
    assert isinstance(found[1], ImageError)
    assert found[0] == pytest.approx(brightness(pictures[0]) + 1) and found[2] == pytest.approx(
        brightness(pictures[1]) + 1
    )


def test_where_none_can_be_scored_it_raises(model, black):
    with pytest.raises(ImageError, match="image 0 is black"):
        Asking().of_each(model, ["a", "b"], [black, black])
    with pytest.raises(ImageError):
        Asking().of_each(model, ["a"], [black])
    assert Asking().of_each(model, [], []) == []


def test_a_server_without_an_answer_is_not_asked_for_each(pictures):
    class Gone(FakeModel):
        def score(self, **ask):
            self.calls.append(ask)
            raise NoAnswerError("no answer in 120 s")

    gone = Gone()
    with pytest.raises(NoAnswerError):
        Asking().of_each(gone, ["a", "b", "c"], pictures)
    assert len(gone.calls) == 1


def test_a_server_that_goes_in_the_middle_costs_one_deadline(pictures, black):
    class Going(FakeModel):
        def score(self, **ask):
            if len(self.calls) == 2:
                self.calls.append(ask)
                raise NoAnswerError("no answer in 120 s")
            return super().score(**ask)

    going = Going()
    found = Asking().of_each(going, ["a", "b", "c"], [pictures[0], black, pictures[1]])
    assert isinstance(found[0], float) and all(isinstance(one, NoAnswerError) for one in found[1:])
    assert len(going.calls) == 3


def test_without_a_seed_each_sample_has_one_of_its_own(model, pictures):
    for _ in range(2):
        Asking(seed=None).score(model, prompts=["a"], images=pictures)
    assert len({seed for call in model.calls for seed in call["seed"]}) == 6


def test_what_no_model_could_be_asked_is_refused_when_it_is_said():
    with pytest.raises(ValueRangeError, match="draws must be 1 or more, got 0"):
        Asking(draws=0)
    with pytest.raises(ConfigError, match="fusion must be one of"):
        Asking(fusion="sum")
