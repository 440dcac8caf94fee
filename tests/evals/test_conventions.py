"""The same margins under every convention for ties, by hand."""

from __future__ import annotations

import pytest
import torch

from dina_lrm.evals import tie_card

# Prompt 0: right, wrong, vote tie, predicted tie. Prompt 1: right. Prompt 2: both tied.
MARGIN = torch.tensor([1.0, -1.0, 2.0, 0.0, 0.5, 0.0])
TARGET = torch.tensor([0.9, 0.9, 0.5, 0.8, 1.0, 0.5])
PROMPT = torch.tensor([0, 0, 0, 0, 1, 2])


@pytest.mark.parametrize(
    ("name", "micro", "per_prompt"),
    [
        ("ours", 2.5 / 4, (0.5 + 1) / 2),
        ("drop", 2 / 3, (0.5 + 1) / 2),
        ("half", 3.5 / 6, (2 / 4 + 1 + 0.5) / 3),
        ("wrong", 2 / 6, (1 / 4 + 1 + 0) / 3),
        ("correct", 5 / 6, (3 / 4 + 1 + 1) / 3),
        ("decided", 2 / 4, (1 / 3 + 1) / 2),
    ],
)
def test_what_ties_earn(name: str, micro: float, per_prompt: float) -> None:
    row = tie_card(MARGIN, TARGET, PROMPT).conventions[name]
    assert row.micro.value == pytest.approx(micro)
    assert row.per_prompt.value == pytest.approx(per_prompt)


def test_shares_of_ties_and_tau_b() -> None:
    card = tie_card(MARGIN, TARGET, PROMPT)
    assert (card.vote_ties, card.predicted_ties) == pytest.approx((2 / 6, 2 / 6))
    # Prompt 0: right less wrong is 0; prompt 1: 1; prompt 2 has no untied pair.
    assert card.tau_b.value == pytest.approx(0.5) and card.tau_b.prompts == 2


def test_without_ties_all_conventions_agree_and_swapping_changes_nothing() -> None:
    g = torch.Generator().manual_seed(0)
    margin, target, prompt = torch.randn(60, generator=g), torch.rand(60, generator=g), torch.arange(60) // 6
    card, swapped = tie_card(margin, target, prompt), tie_card(-margin, 1 - target, prompt)
    assert len({row.micro.value for row in card.conventions.values()}) == 1
    assert card.conventions["drop"].per_prompt.value == pytest.approx(card.conventions["drop"].micro.value)
    assert card.conventions["ours"].micro.value == swapped.conventions["ours"].micro.value


def test_a_tie_band_is_found_where_ties_are_small_margins() -> None:
    g = torch.Generator().manual_seed(1)
    truth = torch.randn(2000, generator=g)
    target = torch.where(truth.abs() < 0.4, 0.5, (truth > 0).float())
    prompt = torch.arange(2000) // 10
    card = tie_card(truth, target, prompt)
    assert card.calibrated_ties.accuracy.value > 0.98
    assert card.calibrated_ties.smallest_margin == pytest.approx((0.4, 0.4), abs=0.03)
    decided = tie_card(truth, (truth > 0).float(), prompt)
    assert decided.calibrated_ties.smallest_margin == (-1.0, -1.0) and decided.calibrated_ties.accuracy.value == 1.0


def test_one_prompt_has_no_other_half() -> None:
    card = tie_card(MARGIN[:2], TARGET[:2], PROMPT[:2])
    assert card.calibrated_ties.accuracy.pairs == 0 and card.calibrated_ties.smallest_margin == ()
