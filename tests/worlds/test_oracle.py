from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dina_lrm.errors import DataError, ShapeError, ValueRangeError
from dina_lrm.worlds.judge import Judge
from dina_lrm.worlds.oracle import Electorate, Oracle, Reading, StyleReader, Taste, agreement

CONCEPTS, STYLES = ["apple", "pear", "bear"], ("flat", "noto")


@pytest.fixture
def oracle() -> Oracle:
    judge = Judge(CONCEPTS, (4, 4, 8, 8)).eval().requires_grad_(False)
    reader = StyleReader(STYLES, (4 + 10) + (4 + 10) + 2 * 8).eval().requires_grad_(False)
    drawings = torch.randint(256, (3, 2, 3, 64, 64), generator=torch.Generator().manual_seed(2)).byte()
    return Oracle(judge, reader, dict(zip(CONCEPTS, drawings, strict=True)))


def certain(oracle: Oracle, concept: int, style: int, quality: float) -> Reading:
    """A picture about which there is no doubt, and that looks like no drawing."""
    concepts, styles = torch.full((1, 3), -50.0), torch.full((1, 2), -50.0)
    concepts[0, concept], styles[0, style] = 0, 0
    away = -oracle.read(oracle.drawings["apple"][:1] / 255).outlook
    return Reading(concepts, styles, torch.tensor([quality]), away)


def test_utility_is_the_sum_of_its_terms(oracle: Oracle) -> None:
    taste = oracle.taste
    whole = taste.concept + taste.style + taste.quality
    assert oracle.utility(certain(oracle, 0, 1, 1.0), ["apple"], ["noto"]).item() == pytest.approx(whole)
    assert oracle.utility(certain(oracle, 1, 1, 1.0), ["apple"], ["noto"]).item() == pytest.approx(
        whole - taste.concept
    )
    assert oracle.utility(certain(oracle, 0, 0, 1.0), ["apple"], ["noto"]).item() == pytest.approx(whole - taste.style)
    assert oracle.utility(certain(oracle, 0, 1, 0.0), ["apple"], ["noto"]).item() == pytest.approx(
        whole - taste.quality
    )
    assert oracle.utility(certain(oracle, 1, 0, 0.0), ["apple"], ["noto"]).item() == 0


def test_a_real_drawing_is_as_alike_as_can_be(oracle: Oracle) -> None:
    drawings = oracle.drawings["pear"] / 255
    blurred = torch.nn.functional.avg_pool2d(drawings, 9, 1, 4)
    reading, off = oracle.read(drawings), oracle.read(blurred)
    plain = replace(reading, outlook=-reading.outlook)
    gain = oracle.utility(reading, ["pear"] * 2, [None] * 2) - oracle.utility(plain, ["pear"] * 2, [None] * 2)
    assert gain.tolist() == pytest.approx([oracle.taste.likeness] * 2, abs=0.01)
    some = oracle.utility(replace(reading, outlook=off.outlook), ["pear"] * 2, [None] * 2)
    assert (some < oracle.utility(reading, ["pear"] * 2, [None] * 2)).all()


def test_a_prompt_without_style_has_no_style_term(oracle: Oracle) -> None:
    readings = [certain(oracle, 0, style, 0.5) for style in range(2)]
    first, second = oracle.utility(Reading.cat(readings), ["apple"] * 2, [None] * 2)
    assert first == second


def test_agreement_runs_from_floor_to_certainty() -> None:
    log_prob = torch.tensor([-100.0, -8.0, -4.0, 0.0])
    assert agreement(log_prob, -8.0).tolist() == [0, 0, 0.5, 1]


def test_a_picture_is_worth_the_same_alone_and_in_a_batch(oracle: Oracle) -> None:
    pixels = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    together = oracle.utility(oracle.read(pixels, batch_size=2), ["pear"] * 3, ["flat"] * 3)
    alone = oracle.utility(oracle.read(pixels[1:2]), ["pear"], ["flat"])
    assert together[1:2].tolist() == pytest.approx(alone.tolist(), abs=1e-5)


def test_readings_are_what_the_judge_says(oracle: Oracle) -> None:
    pixels = torch.rand(2, 3, 64, 64)
    reading = oracle.read(pixels)
    torch.testing.assert_close(reading.concept_log_probs, oracle.judge.concept_log_probs(pixels))
    torch.testing.assert_close(reading.quality, oracle.judge.quality(pixels))
    torch.testing.assert_close(reading.style_log_probs.exp().sum(1), torch.ones(2))


def test_an_oracle_survives_its_folder(oracle: Oracle, tmp_path: Path) -> None:
    oracle.judge.save(tmp_path / "judge")
    Oracle(oracle.judge, oracle.style_reader, {}, Taste(concept=2.0)).save(tmp_path / "oracle")
    again = Oracle.from_folder(tmp_path / "oracle", tmp_path / "judge", {})
    assert again.taste == Taste(concept=2.0)
    assert again.styles == STYLES
    pixels = torch.rand(1, 3, 64, 64)
    read = [o.read(pixels).style_log_probs for o in (again, oracle)]
    torch.testing.assert_close(*read, atol=1e-2, rtol=0)


def test_a_folder_that_is_no_oracle(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no oracle"):
        Oracle.from_folder(tmp_path, tmp_path, {})


def test_unknown_names_and_wrong_counts(oracle: Oracle) -> None:
    reading = certain(oracle, 0, 0, 1.0)
    with pytest.raises(ValueRangeError, match="no concept 'plum'"):
        oracle.utility(reading, ["plum"], [None])
    with pytest.raises(ValueRangeError, match="no style 'oil'"):
        oracle.utility(reading, ["pear"], ["oil"])
    with pytest.raises(ValueRangeError, match="no drawing of 'pear'"):
        Oracle(oracle.judge, oracle.style_reader, {}).utility(reading, ["pear"], [None])
    with pytest.raises(ShapeError, match="1 pictures"):
        oracle.utility(reading, ["pear", "pear"], [None])


def test_everybody_votes() -> None:
    votes = Electorate().vote(torch.randn(50, generator=torch.Generator().manual_seed(0)), seed=1)
    assert votes.shape == (50, 3)
    assert (votes.sum(dim=1) == 9).all()
    assert torch.equal(votes, Electorate().vote(torch.randn(50, generator=torch.Generator().manual_seed(0)), seed=1))


def test_without_noise_the_better_wins_and_the_band_ties() -> None:
    votes = Electorate(noise=0.0, tie_band=0.25).vote(torch.tensor([1.0, -1.0, 0.2, -0.25]), seed=0)
    assert votes.tolist() == [[9, 0, 0], [0, 9, 0], [0, 0, 9], [0, 0, 9]]


def test_vote_shares_follow_the_law() -> None:
    law = Electorate(num_annotators=20000, noise=0.8, tie_band=0.3)
    share = law.vote(torch.tensor([0.5]), seed=3)[0].double() / 20000
    normal = torch.distributions.Normal(0.5, 0.8)
    first, second = 1 - normal.cdf(torch.tensor(0.3)), normal.cdf(torch.tensor(-0.3))
    assert share.tolist() == pytest.approx([first.item(), second.item(), 1 - first.item() - second.item()], abs=0.01)
