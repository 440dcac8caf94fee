"""Rewards in a mixture: who could not be judged is masked and never a reward of zero."""

from __future__ import annotations

import math

import pytest
import torch

from dina_lrm.alignment.algorithms.base import mean_over
from dina_lrm.alignment.rewards import Finished, Mixture, PixelTerm, Weighted
from dina_lrm.errors import ConfigError, DataError, NoAnswerError
from dina_lrm.generation import state_at


def finished(count: int = 4, group_size: int = 2, prompts: tuple[str, ...] | None = None) -> Finished:
    latents = torch.arange(count * 4.0).view(count, 1, 2, 2) / 10
    words = prompts or tuple(f"p{place // group_size}" for place in range(count))
    return Finished(latents, words, lambda z: z.expand(-1, 3, -1, -1) * 2, (0,) * count, group_size)


def mean(pixels, prompts):
    return pixels.flatten(1).mean(dim=1)


def test_pixels_are_decoded_once_for_all_terms() -> None:
    decoded = []

    def decode(latents):
        decoded.append(len(latents))
        return latents

    samples = Finished(torch.ones(2, 3, 2, 2), ("a", "a"), decode, (0, 0))
    Mixture((Weighted("one", PixelTerm(mean)), Weighted("two", PixelTerm(mean))))(samples)
    assert decoded == [2]


def test_gradients_pass_to_the_latents_where_they_may() -> None:
    samples = finished()
    samples.latents.requires_grad_()
    judged = PixelTerm(mean)(samples)
    assert torch.allclose(torch.autograd.grad(judged.reward.sum(), samples.latents)[0], torch.tensor(0.5))
    assert not PixelTerm(mean, differentiable=False)(finished()).reward.requires_grad


def test_none_and_nan_are_masks() -> None:
    judged = PixelTerm(lambda pixels, prompts: [1.0, None, math.nan, 4.0])(finished())
    assert judged.valid.tolist() == [True, False, False, True]
    assert judged.reward.tolist() == [1.0, 0.0, 0.0, 4.0]


def test_a_gradient_of_what_was_judged_survives_what_was_not() -> None:
    samples = finished()
    samples.latents.requires_grad_()
    judged = PixelTerm(lambda pixels, prompts: mean(pixels, prompts) / torch.tensor([1.0, 0.0, 1.0, 1.0]))(samples)
    gradient = torch.autograd.grad((judged.reward * judged.valid).sum(), samples.latents)[0]
    assert judged.valid.tolist() == [True, False, True, True]
    assert gradient[0].isfinite().all() and gradient[2].isfinite().all()


def test_nan_in_the_gradient_of_a_masked_sample_reaches_nobody() -> None:
    samples = finished()
    samples.latents[1] -= 9.0
    weight = torch.ones((), requires_grad=True)
    shifted = Finished(samples.latents * weight, samples.prompts, samples.decode, samples.seeds, samples.group_size)
    root = PixelTerm(lambda pixels, prompts: pixels.flatten(1).mean(dim=1).sqrt())
    total = Mixture((Weighted("root", root),))(shifted).total
    assert total.valid.tolist() == [True, False, True, True]
    gradient = torch.autograd.grad(mean_over(total.reward, total.valid), weight)[0]
    assert gradient.isfinite() and gradient != 0


def test_one_bad_sample_costs_no_other_its_reward() -> None:
    def scorer(pixels, prompts):
        if "bad" in prompts:
            raise RuntimeError("cannot read this one")
        return mean(pixels, prompts)

    with pytest.warns(UserWarning, match="1 of 4 samples were not judged"):
        judged = PixelTerm(scorer)(finished(prompts=("a", "a", "bad", "b")))
    assert judged.valid.tolist() == [True, True, False, True]
    assert torch.allclose(judged.reward[judged.valid], mean(finished().pixels, ())[[0, 1, 3]])


def test_latents_that_are_not_finite_are_never_asked_about() -> None:
    samples, asked = finished(), []
    samples.latents[1, 0, 0, 0] = math.nan

    def scorer(pixels, prompts):
        asked.append(len(pixels))
        return mean(pixels, prompts)

    assert PixelTerm(scorer)(samples).valid.tolist() == [True, False, True, True]
    assert asked == [3]


@pytest.mark.parametrize("error", [RuntimeError("all"), DataError("wrong"), NoAnswerError("away")])
def test_when_nothing_can_be_judged_the_reason_is_raised(error) -> None:
    asked = []

    def scorer(pixels, prompts):
        asked.append(len(pixels))
        raise error

    with pytest.raises(type(error), match=str(error)):
        PixelTerm(scorer)(finished())
    # Wrong input and a judge that is away are not asked about sample by sample.
    assert asked == ([4, 1, 1, 1, 1] if type(error) is RuntimeError else [4])


def test_weights_and_normalisation_by_hand() -> None:
    one = PixelTerm(lambda pixels, prompts: torch.tensor([1.0, 3.0, 10.0, 10.0]))
    two = PixelTerm(lambda pixels, prompts: torch.tensor([100.0, 300.0, 500.0, 100.0]))
    terms = (Weighted("one", one, 1.0), Weighted("two", two, 0.5))
    assert Mixture(terms)(finished()).total.reward.tolist() == [51.0, 153.0, 260.0, 60.0]
    grouped = Mixture(terms, "group")(finished()).total.reward
    # Each term has mean 0 and spread 1 in each prompt's samples, whatever its scale.
    assert torch.allclose(grouped, torch.tensor([-1.5, 1.5, 0.5, -0.5]), atol=1e-3)
    batched = Mixture((Weighted("one", one),), "batch")(finished()).total.reward
    assert torch.allclose(batched.mean(), torch.tensor(0.0), atol=1e-6)
    assert torch.allclose(batched.std(correction=0), torch.tensor(1.0), atol=1e-3)


def test_what_one_term_cannot_judge_is_judged_by_none() -> None:
    one = PixelTerm(lambda pixels, prompts: [1.0, None, 2.0, 4.0])
    two = PixelTerm(lambda pixels, prompts: [1.0, 1.0, 1.0, 1.0])
    verdict = Mixture((Weighted("one", one), Weighted("two", two)), "batch")(finished())
    assert verdict.total.valid.tolist() == [True, False, True, True]
    assert verdict.parts["two"].valid.all()
    # Spread and mean are those of the samples that were judged.
    assert torch.allclose(verdict.total.reward[[0, 2, 3]].mean(), torch.tensor(0.0), atol=1e-5)


def test_what_makes_no_mixture_is_refused() -> None:
    term = PixelTerm(mean)
    with pytest.raises(ConfigError, match="each of its own name"):
        Mixture((Weighted("a", term), Weighted("a", term)))
    with pytest.raises(ConfigError, match="group of one"):
        Mixture((Weighted("a", term),), "group")(finished(group_size=1))
    with pytest.raises(ConfigError, match="group of one"):
        Mixture((Weighted("a", term),), "group").of_state(state_at(torch.zeros(1, 1, 2, 2), 0.5), ("a",), 1)
    with pytest.raises(ConfigError, match=r"one number a picture, \[4\], got \[4, 1\]"):
        PixelTerm(lambda pixels, prompts: torch.ones(4, 1))(finished())
    with pytest.raises(ConfigError, match="finished samples only"):
        term.of_state(state_at(torch.zeros(1, 1, 2, 2), 0.5), ("a",))
