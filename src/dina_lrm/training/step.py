"""One training step: pair, noised pair, utilities, log-probability, loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dina_lrm.errors import ShapeError
from dina_lrm.metrics import pair_credit
from dina_lrm.noise import ForwardProcess, Levels
from dina_lrm.preference import Likelihood, Objective
from dina_lrm.types import PreferenceBatch, PreferenceGroups, TensorRecord

__all__ = ["StepResult", "pair_loss", "pair_utilities", "training_step"]


@dataclass(frozen=True)
class StepResult(TensorRecord):
    """What one step found.

    Attributes:
        loss: mean over the groups of the mean over their pairs, a scalar with gradient.
        log_prob: log-probability of chosen `[m]`.
        margin: utility of chosen less utility of rejected `[m]`.
        sigma: noise level of each pair `[m]`.
        accuracy: share of decided pairs in the right order, a scalar; a predicted tie is half right; NaN if nothing was
            decided.
    """

    loss: Tensor
    log_prob: Tensor
    margin: Tensor
    sigma: Tensor
    accuracy: Tensor


def pair_utilities(
    network: nn.Module,
    batch: PreferenceBatch | PreferenceGroups,
    process: ForwardProcess,
    sigma: Tensor,
    noise: Tensor,
) -> tuple[Tensor, Tensor]:
    """Utilities of chosen and rejected, seen through the same noise at the same level, in one forward.

    Args:
        network: `(state, conditioning) -> utility`.
        batch: m pairs in g groups; plain pairs are groups of their own, and the forward has 2m states.
        process: the rule from latents to a state.
        sigma: noise level of each group `[g]`.
        noise: `[g c h w]`, one for all candidates of a group: common random numbers.

    Returns:
        Two of `[m]`, float32.

    Raises:
        ShapeError: not one sigma and one noise a group.
    """
    groups = batch.grouped()
    if not len(sigma) == len(noise) == groups.num_groups:
        raise ShapeError(
            f"{groups.num_groups} groups need as many sigmas and noises, got {len(sigma)} and {len(noise)}"
        )
    state = process.add_noise(groups.latents, noise[groups.group], sigma[groups.group])
    utility = network(state, groups.conditioning).float()
    return utility[groups.chosen], utility[groups.rejected]


def mean_over_groups(values: Tensor, group: Tensor, counted: Tensor) -> Tensor:
    """Mean over groups of the mean over each group's counted values: a prompt with many pairs weighs no more.

    Args:
        values: `[m]`.
        group: of each value, whole numbers from 0 `[m]`.
        counted: which values there are `[m]`, bool; a group without any is none.

    Returns:
        A scalar; 0 where nothing counts.
    """
    counts = torch.bincount(group, weights=counted.to(values))
    share = counted / counts[group].clamp_min(1)
    return (values * share).sum() / (counts > 0).sum().clamp_min(1)


def pair_loss(
    chosen: Tensor,
    rejected: Tensor,
    sigma: Tensor,
    target: Tensor,
    likelihood: Likelihood,
    objective: Objective,
    *,
    soft_labels: bool = True,
) -> tuple[Tensor, Tensor]:
    """Loss of each pair and log-probability of its chosen side, both `[b]`.

    Hard labels are the majority of the votes; the loss of a tie then says nothing, and is not to be counted.
    """
    log_prob = likelihood.log_prob(chosen, rejected, sigma)
    reversed_log_prob = likelihood.log_prob(rejected, chosen, sigma)
    if soft_labels:
        return objective(log_prob, target, reversed_log_prob), log_prob
    return objective(log_prob, (target > 0.5).to(log_prob), reversed_log_prob), log_prob


def training_step(
    network: nn.Module,
    batch: PreferenceBatch | PreferenceGroups,
    process: ForwardProcess,
    levels: Levels,
    likelihood: Likelihood,
    objective: Objective,
    generator: torch.Generator,
    *,
    sigma: Tensor | None = None,
    soft_labels: bool = True,
) -> StepResult:
    """Draw one sigma and one noise a group, and weigh what the network says (paper, section 3).

    Args:
        network: `(state, conditioning) -> utility`.
        batch: m pairs in g groups, or plain pairs, each a group of its own; on the network's device.
        process: the rule from latents to a state.
        levels: distribution over sigma.
        likelihood: law of choice.
        objective: log-probability to loss.
        generator: on the CPU; levels are drawn first, then noise.
        sigma: levels drawn already `[g]`, as where several processes share one stratified draw.
        soft_labels: the share of votes as target, or the majority.

    Returns:
        The loss with its gradient; the rest is detached.

    Raises:
        ShapeError: an empty batch.
    """
    if not len(batch):
        raise ShapeError("a training step needs at least one pair, got an empty batch")
    groups = batch.grouped()
    device, num_groups = groups.latents.device, groups.num_groups
    if sigma is None:
        sigma = levels.sample(num_groups, generator)
    sigma = sigma.to(device)
    noise = torch.randn((num_groups, *groups.latents.shape[1:]), generator=generator).to(device)
    chosen, rejected = pair_utilities(network, groups, process, sigma, noise)
    target, group = groups.target.to(chosen), groups.group[groups.chosen]
    level = sigma[group]
    loss, log_prob = pair_loss(chosen, rejected, level, target, likelihood, objective, soft_labels=soft_labels)
    margin = (chosen - rejected).detach()
    # A margin that is not finite has no order; the loss says so to whoever asks.
    accuracy = pair_credit(margin.nan_to_num(), target).accuracy
    counted = torch.ones_like(target, dtype=torch.bool) if soft_labels else target != 0.5
    mean = mean_over_groups(loss, group, counted)
    return StepResult(mean, log_prob.detach(), margin, level, torch.tensor(accuracy, device=device))
