"""Evaluation of models whose utilities are known."""

import json
import math
from dataclasses import replace

import pytest
import torch

from dina_lrm.checkpoint import CalibrationConfig, LevelCalibrationConfig
from dina_lrm.errors import ShapeError
from dina_lrm.evals import (
    EvalCard,
    ScoringRule,
    SigmaProfile,
    SplitView,
    accuracy_gap,
    evaluate,
    make_card,
    prompt_seed,
    score_split,
    score_views,
    sigma_profile,
)
from tests.evals.elsewhere import answered_elsewhere


def test_a_model_that_knows_the_truth(folder, model):
    card = evaluate(model, folder, "test")
    assert card.accuracy.value == card.oracle_accuracy.value == card.ceiling.value == 1.0
    assert card.kendall_tau.value == pytest.approx(1.0)
    assert card.accuracy_by_kind["concept"].value == 1.0
    assert (card.pairs, card.vote_ties, card.predicted_ties) == (36, 6, 0)
    assert (card.accuracy.pairs, card.oracle_accuracy.pairs, card.accuracy.prompts) == (30, 36, 6)
    assert (card.prompts, card.candidates) == (6, 24)


def test_answers_of_another_device(folder, model, monkeypatch):
    monkeypatch.setattr(model, "score", answered_elsewhere(model.score))
    assert evaluate(model, folder, "test").accuracy.value == 1.0


def test_a_model_that_has_it_backwards(folder, model):
    model.sign = -1.0
    card = evaluate(model, folder, "test")
    assert card.accuracy.value == 0.0
    assert card.kendall_tau.value == pytest.approx(-1.0)
    assert card.ceiling.value == 1.0


def test_a_model_without_an_opinion(folder, model):
    model.sign = 0.0
    card = evaluate(model, folder, "test")
    assert card.accuracy.value == 0.5
    assert card.predicted_ties == 30
    assert card.calibration.nll.value == pytest.approx(math.log(2))


def test_prompts_swapped_and_blank(folder, model):
    model.prompt_matters = True
    assert evaluate(model, folder, "test").accuracy.value == 1.0
    for control in ("swapped", "blank"):
        assert evaluate(model, folder, "test", prompts=control).accuracy.value == 0.0


def test_each_candidate_is_scored_once_and_shares_noise_with_its_prompt(folder, model):
    scored = score_split(model, folder, "test", ScoringRule((0.4,)), seed=5)
    assert sum(call["batch"] for call in model.asked) == 24
    seeds = {(int(g), s) for g, s in zip(scored.view.prompt_of, model.asked[0]["seed"], strict=True)}
    assert seeds == {(g, prompt_seed(f"thing {g}", 5)) for g in range(6)}
    assert len({s for _, s in seeds}) == 6


def test_candidates_that_splits_share_are_scored_once(folder, model):
    model.noise_scale = 1.0
    whole, part = SplitView.of(folder, "test"), SplitView.of(folder, "test", max_prompts=2)
    both = score_views(model, folder, [whole, part], ScoringRule())
    assert sum(call["batch"] for call in model.asked) == 24
    alone = score_split(model, folder, part, ScoringRule())
    assert torch.equal(both[1].utility, alone.utility)
    assert both[0].seconds == pytest.approx(3 * both[1].seconds)


def test_the_rule_reaches_the_model(folder, model):
    evaluate(model, folder, "test", ScoringRule((0.2, 0.7), draws=3, fusion="tokens"))
    assert model.asked[0] | {"seed": None, "batch": None} == {
        "sigmas": (0.2, 0.7),
        "draws": 3,
        "fusion": "tokens",
        "seed": None,
        "batch": None,
    }


def test_two_runs_agree(folder, model):
    model.noise_scale = 3.0
    first, second = (evaluate(model, folder, "test", seed=1) for _ in range(2))
    assert first.model_copy(update={"seconds": 0.0, "candidates_per_second": 0.0}) == second.model_copy(
        update={"seconds": 0.0, "candidates_per_second": 0.0}
    )


def test_the_log_loss_is_never_below_the_entropy_of_the_votes(folder, model):
    model.sign = 0.3
    card = evaluate(model, folder, "test")
    assert card.calibration.nll.value >= card.calibration.vote_entropy


def test_a_card_survives_json(folder, model, tmp_path):
    card = evaluate(model, folder, "test")
    assert EvalCard.model_validate_json(card.to_json()) == card
    card.save(tmp_path / "card.json")
    assert json.loads((tmp_path / "card.json").read_text())["split"] == "test"


def test_a_card_without_an_oracle_has_no_oracle_numbers(folder, model):
    scored = score_split(model, folder, "test", ScoringRule())
    blind = SplitView(**{**vars(scored.view), "oracle": torch.full_like(scored.view.oracle, torch.nan)})
    card = make_card(type(scored)(**{**vars(scored), "view": blind}))
    assert math.isnan(card.oracle_accuracy.value) and card.oracle_accuracy.pairs == 0
    assert math.isnan(card.ceiling.value) and math.isnan(card.kendall_tau.value)
    assert card.accuracy.value == 1.0
    restored = EvalCard.model_validate_json(card.to_json())
    assert math.isnan(restored.ceiling.low)


def test_the_gap_between_two_models(folder, model):
    good = score_split(model, folder, "test", ScoringRule())
    model.sign = -1.0
    bad = score_split(model, folder, "test", ScoringRule())
    gap = accuracy_gap(good, bad)
    assert (gap.value, gap.low, gap.high, gap.pairs) == (1.0, 1.0, 1.0, 30)
    assert accuracy_gap(good, good).value == 0.0
    with pytest.raises(ShapeError, match="same pairs"):
        accuracy_gap(good, score_split(model, folder, "test", ScoringRule(), max_prompts=2))


def test_a_profile_over_sigma(folder, model):
    model.noise_scale = 30.0
    seen = []
    profile = sigma_profile(model, folder, "test", (0.0, 0.9), report=lambda sigma, found: seen.append(sigma))
    assert seen == [0.0, 0.9]
    # Noise is shared by a prompt's candidates here, so it can not change their order.
    assert [e.value for e in profile.all] == [1.0, 1.0]
    assert set(profile.by_kind) == {"concept", "style"}
    assert SigmaProfile.model_validate_json(profile.to_json()) == profile


def test_a_card_is_made_by_the_law_of_the_model_that_was_asked(folder, model):
    level = LevelCalibrationConfig(sigma=0.4, centre=0.0, spread=1.0, deviation=50.0, settled_deviation=50.0)
    fitted = replace(model, calibration=CalibrationConfig(fitted_on="x", levels=(level,)).build())
    own, other = (make_card(score_split(one, folder, "test", ScoringRule())) for one in (model, fitted))
    assert own.accuracy == other.accuracy and own.calibration.ece < other.calibration.ece
