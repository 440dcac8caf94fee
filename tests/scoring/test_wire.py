"""Records that travel: what was found passes through JSON unchanged, and what a client says is held to its kind."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import BaseModel, ValidationError

from dina_lrm.errors import DataError
from dina_lrm.noise import Adaptive
from dina_lrm.scoring.wire import (
    AdaptiveOptions,
    CompareRequest,
    ComparisonReply,
    LoadRequest,
    RankingReply,
    RankRequest,
    RewardReply,
    ScoreOptions,
    ScoreRequest,
)
from dina_lrm.types import Comparison, Ranking, Reward


def reward(seed: int | tuple[int, ...] | None = 3) -> Reward:
    draws = torch.tensor([[0.1, math.nan], [1 / 3, 2 / 3]])
    values = torch.tensor([0.1, 1e-30])
    return Reward(values, values * 3, values / 7, values, draws, torch.tensor([0.4, 0.7]), seed, torch.tensor([1, 2]))


def comparison() -> Comparison:
    return Comparison(0.7, (0.6, 0.8), 1 / 3, 0.1, -0.2, 0.05, True, 8)


def through_json(reply: BaseModel) -> BaseModel:
    return type(reply).model_validate_json(reply.model_dump_json())


@pytest.mark.parametrize("seed", [3, 2**63 - 1, (1, 2), None])
def test_a_reward_comes_back_bit_for_bit(seed: int | tuple[int, ...] | None) -> None:
    reply = RewardReply.of(reward(seed), "tiny", "abc")
    found = through_json(reply).record()
    assert found.seed == seed and reply.draws[0] == [pytest.approx(0.1), None]
    for name, value in vars(reward(seed)).items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(getattr(found, name).nan_to_num(7), value.nan_to_num(7)), name
            assert getattr(found, name).dtype == value.dtype


def test_a_reward_with_a_gradient_is_told_without_it() -> None:
    values = torch.ones(1, requires_grad=True)
    found = Reward(values, values, values, values, values[:, None], torch.ones(1), 0, torch.ones(1, dtype=torch.int64))
    assert RewardReply.of(found, "tiny", None).reward == [1.0]


def test_a_comparison_and_a_ranking_come_back() -> None:
    reply = ComparisonReply.of(comparison(), "tiny", None, 4)
    assert reply.verdict == "a" and through_json(reply).record() == comparison()
    for lead in (comparison(), None):
        ranking = Ranking((1, 0), reward(), lead, False)
        found = through_json(RankingReply.of(ranking, "tiny", "abc", 4)).record()
        assert found.order == (1, 0) and found.lead == lead and not found.decided


def test_lists_of_different_lengths_are_no_reward() -> None:
    reply = RewardReply.of(reward(), "tiny", None)
    for name, value in (("utility", [0.1]), ("draws", [[0.1], [0.1, 0.2]]), ("spent", [])):
        with pytest.raises(DataError, match="different lengths"):
            reply.model_copy(update={name: value}).record()


def test_an_older_client_reads_a_newer_server() -> None:
    text = ComparisonReply.of(comparison(), "tiny", None, 4).model_dump_json()
    assert ComparisonReply.model_validate_json(text[:-1] + ',"more": 1}').record() == comparison()


def test_options_say_what_python_callers_say() -> None:
    assert ScoreOptions().rule == 1 and CompareRequest().draws == 4 and RankRequest().draws == 1
    rule = Adaptive(5, 0.1, 0.2)
    options = ScoreOptions(adaptive=AdaptiveOptions.of(rule))
    assert options.rule == rule and through_json(options) == options


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (ScoreRequest, '{"sigma": 0.4}'),
        (ScoreRequest, '{"sigmas": [1.1]}'),
        (ScoreRequest, '{"sigmas": [NaN]}'),
        (ScoreRequest, '{"sigmas": []}'),
        (ScoreRequest, '{"draws": "1"}'),
        (ScoreRequest, '{"draws": 1.5}'),
        (ScoreRequest, '{"draws": true}'),
        (ScoreRequest, '{"draws": 100000}'),
        (ScoreRequest, '{"seed": -1}'),
        (ScoreRequest, '{"seed": 9223372036854775808}'),
        (ScoreRequest, '{"fusion": "median"}'),
        (ScoreRequest, '{"prompts": "a"}'),
        (ScoreRequest, '{"prompts": [1]}'),
        (ScoreRequest, '{"adaptive": {"max_draws": 1}}'),
        (CompareRequest, '{"tie_band": 0.5}'),
        (LoadRequest, '{"name": "../a", "path": "b"}'),
        (LoadRequest, '{"name": "a", "path": ""}'),
        (LoadRequest, '{"name": "a", "path": "b", "dtype": "int8"}'),
    ],
)
def test_a_request_is_held_to_its_kind(kind: type[BaseModel], text: str) -> None:
    with pytest.raises(ValidationError):
        kind.model_validate_json(text)
