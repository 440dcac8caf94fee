"""Questions about candidates, apart from who reads the states.

A question is a generator: it yields `Reading`s, is sent their utilities, and returns its answer. A model drives one by
itself (`RewardModel.answer`); a server drives many at once and joins readings of one key into one forward pass. How many
readings there will be may depend on the utilities: an adaptive question asks until it is decided.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor

from dina_lrm.errors import ShapeError, ValueRangeError
from dina_lrm.metrics import SequentialTest, looks_at, moderated, student_quantile
from dina_lrm.noise import Adaptive, ForwardProcess, NoiseEnsemble
from dina_lrm.noise.ensembles import Drawing
from dina_lrm.preference import Calibration, Likelihood
from dina_lrm.scoring.summary import Draws, Levels
from dina_lrm.types import Comparison, Conditioning, NoisedState, Ranking, Reward, Spread, TensorRecord

T = TypeVar("T")


@dataclass(frozen=True)
class Reading(TensorRecord):
    """Noised states to be read by the network.

    Attributes:
        state: the states `[m]`.
        conditioning: prompts `[p]`.
        rows: the prompt of each state, as a row of `conditioning` `[m]`.
        joined: this many consecutive states are read as one, their tokens joined; 1 reads each by itself.
    """

    state: NoisedState
    conditioning: Conditioning
    rows: Tensor
    joined: int = 1

    def __len__(self) -> int:
        """Utilities that it asks for."""
        return len(self.rows) // self.joined

    def __getitem__(self, part: slice) -> Reading:
        """Some of the utilities' states, by consecutive places."""
        start, stop, _ = part.indices(len(self))
        states = slice(start * self.joined, stop * self.joined)
        return replace(self, state=self.state[states], rows=self.rows[states])

    @property
    def key(self) -> Hashable:
        """Readings of one key fit into one forward pass: latent shape, prompt length (None if masked), and `joined`."""
        prompt = self.conditioning
        length = prompt.prompt_embeds.shape[1] if prompt.prompt_mask is None else None
        return tuple(self.state.noised_latents.shape[1:]), length, self.joined

    @staticmethod
    def cat(parts: Sequence[Reading]) -> Reading:
        """Readings of one key as one, in order."""
        if len(parts) == 1:
            return parts[0]
        rows, first = [], 0
        for part in parts:
            rows.append(part.rows + first)
            first += len(part.conditioning)
        return Reading(
            NoisedState.cat([part.state for part in parts]),
            Conditioning.cat([part.conditioning for part in parts]),
            torch.cat(rows),
            parts[0].joined,
        )


Question: TypeAlias = Generator[Reading, Tensor, T]


def answer_all(questions: Sequence[Question[T]], read: Callable[[Reading], Tensor], max_batch_size: int) -> list[T]:
    """Drive many questions to their answers, their readings joined.

    Args:
        questions: of one model.
        read: of a reading to its utilities.
        max_batch_size: most states in one reading; a single question's reading is never cut.

    Returns:
        The answers, in order.
    """
    answers: dict[int, T] = {}
    asked: dict[int, Reading] = {}

    def step(place: int, utility: Tensor | None) -> None:
        try:
            asked[place] = next(questions[place]) if utility is None else questions[place].send(utility)
        except StopIteration as done:
            answers[place] = done.value

    for place in range(len(questions)):
        step(place, None)
    while asked:
        key = next(iter(asked.values())).key
        batch: list[int] = []
        states = 0
        for place, reading in asked.items():
            if reading.key == key and (not batch or states + len(reading.rows) <= max_batch_size):
                batch.append(place)
                states += len(reading.rows)
            if states >= max_batch_size:
                break
        readings = [asked.pop(place) for place in batch]
        utilities = torch.split(read(Reading.cat(readings)), [len(reading) for reading in readings])
        for place, utility in zip(batch, utilities, strict=True):
            step(place, utility)
    return [answers[place] for place in range(len(questions))]


@dataclass(frozen=True)
class Part:
    """Candidates of one latent shape.

    Attributes:
        places: among all candidates `[m]`, int64 on the CPU.
        latents: clean latents `[m c h w]`, float32 on the model's device.
    """

    places: Tensor
    latents: Tensor


@dataclass(frozen=True)
class Candidates:
    """What is asked about: samples with their prompts and noise.

    Attributes:
        parts: the samples, those of one latent shape together.
        conditioning: of each sample `[b]`, or one for all.
        seed: of the noise; one for all, or one a sample.
        noise: `[b c h w]` in place of seeded noise.
        drawing: where the draws of a question stand; each question begins anew.
    """

    parts: tuple[Part, ...]
    conditioning: Conditioning
    seed: int | tuple[int, ...]
    noise: Tensor | None = None
    drawing: Drawing = field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        return sum(len(part.places) for part in self.parts)

    @property
    def shares_noise(self) -> bool:
        """Whether all candidates meet the same noise."""
        seeds = 1 if isinstance(self.seed, int) else len(set(self.seed))
        return len(self.parts) == 1 and seeds == 1 and self.noise is None

    @property
    def recorded_seed(self) -> int | tuple[int, ...] | None:
        """What the noise was drawn from; None if it was given."""
        return None if self.noise is not None else self.seed

    def conditioning_of(self, part: Part) -> Conditioning:
        """Prompts of a part `[m]`, or the one of all."""
        if len(self.conditioning) == 1 or len(part.places) == len(self):
            return self.conditioning
        return self.conditioning[part.places.to(self.conditioning.prompt_embeds.device)]

    def noise_of(self, part: Part, ensemble: NoiseEnsemble, start: int, stop: int) -> Tensor:
        """Noise of draws `start` to `stop` of a part: `[draws m c h w]`."""
        if self.noise is not None:
            return self.noise[part.places.to(self.noise.device)].to(part.latents).unsqueeze(0)
        seed = self.seed if isinstance(self.seed, int) else [self.seed[place] for place in part.places.tolist()]
        return ensemble.noise(part.latents, seed, start, stop, self.drawing)


@dataclass(frozen=True)
class Asker:
    """Makes questions in the terms of one model.

    Attributes:
        process: latents and noise to states.
        law: of choice, from utilities to probabilities.
        calibration: utility to reward.
        levels: the levels that are read where these are asked for.
        add_noise: False reads clean latents under the stated sigma.
        states_ahead: most states that are made for one reading, but for a single draw (or antithetic pair) of all
            candidates; None makes all that are asked for together. Whoever may stop a question in its midst bounds what is
            made in vain.
    """

    process: ForwardProcess
    law: Likelihood
    calibration: Calibration
    levels: Callable[[Sequence[float]], list[float]]
    add_noise: bool
    states_ahead: int | None = None

    def score(self, candidates: Candidates, ensemble: NoiseEnsemble) -> Question[Reward]:
        """Rewards of all candidates, each with its own number of draws if that is adaptive.

        Raises:
            ValueRangeError: adaptive draws without a standard error to reach.
        """
        levels, candidates = self._levels(candidates, ensemble), replace(candidates, drawing={})
        seen = Draws.none(len(candidates), ensemble)
        everyone = torch.arange(len(candidates))
        if not isinstance(ensemble.draws, Adaptive):
            seen = seen.more(
                everyone, (yield from self._draw(candidates, ensemble, levels, everyone, 0, ensemble.draws))
            )
        elif ensemble.draws.standard_error is None:
            raise ValueRangeError("adaptive draws of a score need the standard_error that is to be reached, got none")
        else:
            target, open_ones, start = ensemble.draws.standard_error, everyone, 0
            for stop in looks_at(3 * ensemble.step, ensemble.max_draws, ensemble.step):
                drawn = yield from self._draw(candidates, ensemble, levels, open_ones, start, stop)
                seen, start = seen.more(open_ones, drawn), stop
                # Widened as an interval from so few draws is, so that some that agree by luck do not pass for certainty.
                few = student_quantile(0.975, max(1, stop // ensemble.step - 1)) / student_quantile(0.975, math.inf)
                reached = seen.standard_error(levels).cpu()[open_ones] * few <= target
                open_ones = open_ones[~reached]
                if not len(open_ones):
                    break
        return self._reward(seen, levels, candidates)

    def state(self, state: NoisedState, conditioning: Conditioning) -> Question[Reward]:
        """Reward of states that are noised already: nothing is added to them."""
        rows = torch.arange(len(state), device=state.sigma.device) % len(conditioning)
        utility = yield Reading(state, conditioning, rows)
        spread = self.law.variance(state.sigma.float()).sqrt()
        one_level = bool((state.sigma == state.sigma[0]).all())
        alike = [slice(None)] if one_level else [slice(i, i + 1) for i in range(len(state))]
        reward = torch.cat([self.calibration(utility[some], (float(state.sigma[some][0]),)) for some in alike])
        return Reward(
            reward=reward,
            utility=utility,
            utility_std=spread,
            standard_error=spread,
            draws=utility.unsqueeze(1),
            sigmas=state.sigma[:1] if one_level else state.sigma,
            seed=None,
            spent=torch.ones_like(state.sigma, dtype=torch.int64),
        )

    def compare(self, candidates: Candidates, ensemble: NoiseEnsemble, tie_band: float) -> Question[Comparison]:
        """The first of two candidates against the second.

        Raises:
            ShapeError: not two candidates.
        """
        if len(candidates) != 2:
            raise ShapeError(f"a comparison is of two candidates, got {len(candidates)}")
        seen, levels, decided = yield from self._contest(candidates, ensemble, tie_band)
        reward, spread = self._reward(seen, levels, candidates), self._spread(candidates, ensemble, levels)
        return self._comparison(seen, levels, reward, (0, 1), tie_band, decided, spread)

    def rank(self, candidates: Candidates, ensemble: NoiseEnsemble, tie_band: float) -> Question[Ranking]:
        """All candidates in order; adaptive draws go to those that may still be the best."""
        seen, levels, decided = yield from self._contest(candidates, ensemble, tie_band)
        reward, spread = self._reward(seen, levels, candidates), self._spread(candidates, ensemble, levels)
        leader = self._leader(seen, levels)
        # On the draws that a candidate shares with the leader: means over different noise do not compare.
        deficit = torch.tensor([float(seen.margins(levels, place, leader).mean()) for place in range(len(candidates))])
        deficit[leader] = math.inf
        order = deficit.argsort(descending=True, stable=True)
        # Those that were dropped stand behind those that were not, the first of them last: what they lead by on the few
        # draws that they have was lead over a leader of then.
        order = order[seen.count[order].argsort(descending=True, stable=True)]
        places = tuple(order.tolist())
        lead = None
        if len(places) > 1:
            lead = self._comparison(seen, levels, reward, places[:2], tie_band, decided, spread)
        return Ranking(places, reward, lead, decided)

    def probability(self, margin: Tensor, levels: Levels, draws: int) -> Tensor:
        """P(a preferred) for margins `[n]` that are means over so many draws of the levels."""
        return self.law.log_prob_of_mean(margin, levels.sigmas, levels.weights, draws).exp()

    def _levels(self, candidates: Candidates, ensemble: NoiseEnsemble) -> Levels:
        if candidates.noise is not None and ensemble.max_draws != 1:
            raise ShapeError(f"noise [b c h w] is a single draw, got draws={ensemble.draws}")
        return Levels.of(ensemble, self.levels(ensemble.sigmas), self.law)

    def _draw(
        self, candidates: Candidates, ensemble: NoiseEnsemble, levels: Levels, which: Tensor, start: int, stop: int
    ) -> Question[Tensor]:
        """Utilities `[m draws columns]` of draws `start` to `stop` of some candidates, in the order of `which`."""
        found, places = [], []
        for part in candidates.parts:
            chosen = torch.isin(part.places, which)
            if not chosen.any():
                continue
            some = part
            if not chosen.all():
                some = Part(part.places[chosen], part.latents[chosen.to(part.latents.device)])
            drawn = []
            at_once = self._draws_at_once(len(some.places) * len(levels.sigmas), stop - start, ensemble.step)
            for first in range(start, stop, at_once):
                last = min(stop, first + at_once)
                utility = yield self._reading(candidates, some, ensemble, levels, first, last)
                drawn.append(utility.view(last - first, len(some.places), ensemble.columns))
            found.append(torch.cat(drawn).transpose(0, 1))
            places.append(some.places)
        order = torch.cat(places).argsort()  # `which` is in ascending order
        return torch.cat(found)[order.to(found[0].device)]

    def _draws_at_once(self, states: int, draws: int, step: int) -> int:
        """Of so many draws of so many states each: those that one reading may hold.

        A pair is never parted: for its other half all draws before it would be made again.
        """
        return draws if self.states_ahead is None else min(draws, max(1, self.states_ahead // states // step) * step)

    def _reading(
        self, candidates: Candidates, part: Part, ensemble: NoiseEnsemble, levels: Levels, start: int, stop: int
    ) -> Reading:
        """States in the order draw, sample, level."""
        latents = part.latents
        shape = (stop - start, len(latents), len(levels.sigmas), *latents.shape[1:])
        clean = latents[None, :, None].expand(shape).flatten(0, 2)
        sigma = torch.tensor(levels.sigmas, device=latents.device).repeat((stop - start) * len(latents))
        if self.add_noise:
            noise = candidates.noise_of(part, ensemble, start, stop).unsqueeze(2).expand(shape).flatten(0, 2)
            state = self.process.add_noise(clean, noise, sigma)
        else:
            state = NoisedState(clean, sigma)
        conditioning = candidates.conditioning_of(part)
        rows = torch.arange(len(latents), device=latents.device) % len(conditioning)
        rows = rows.repeat_interleave(len(levels.sigmas)).repeat(stop - start)
        return Reading(state, conditioning, rows, len(levels.sigmas) if ensemble.fusion == "tokens" else 1)

    def _contest(
        self, candidates: Candidates, ensemble: NoiseEnsemble, tie_band: float
    ) -> Question[tuple[Draws, Levels, bool]]:
        """Draw until the best is known: those that it surely beats get no more draws."""
        if not 0 <= tie_band < 0.5:
            raise ValueRangeError(f"tie_band must be 0 or more and below 0.5, got {tie_band:g}")
        levels, candidates = self._levels(candidates, ensemble), replace(candidates, drawing={})
        seen = Draws.none(len(candidates), ensemble)
        if not isinstance(ensemble.draws, Adaptive):
            everyone = torch.arange(len(candidates))
            drawn = yield from self._draw(candidates, ensemble, levels, everyone, 0, ensemble.draws)
            return seen.more(everyone, drawn), levels, True
        spread, step = self._spread(candidates, ensemble, levels), ensemble.step
        looks = looks_at(step if spread else 2 * step, ensemble.max_draws, step)
        rivals = max(1, len(candidates) - 1)
        total = ensemble.max_draws // step
        test = SequentialTest(total, len(looks) - 1, ensemble.draws.error_rate / rivals, spread)
        alive, decided, start = torch.arange(len(candidates)), False, 0
        for stop in looks:
            seen = seen.more(alive, (yield from self._draw(candidates, ensemble, levels, alive, start, stop)))
            alive, decided = self._survivors(seen, levels, test, alive, tie_band)
            start = stop
            if decided:
                break
        return seen, levels, decided

    def _survivors(
        self, seen: Draws, levels: Levels, test: SequentialTest, alive: Tensor, tie_band: float
    ) -> tuple[Tensor, bool]:
        """Who may still be the best, and whether that is settled: alone, or equal to the leader within the tie band."""
        leader = self._leader(seen, levels)
        left, settled = [leader], True
        for rival in alive.tolist():
            if rival == leader:
                continue
            units = seen.units(seen.margins(levels, leader, rival))
            reach = test.reach(float(units.var()) if len(units) > 1 else 0.0, len(units))
            margin = float(units.mean())
            if len(units) < test.total and margin > reach:
                continue
            left.append(rival)
            tied = False
            if math.isfinite(reach):
                farthest = torch.tensor([abs(margin) + reach], dtype=torch.float64)
                # The verdict that the whole budget would give is at its number of draws.
                whole = float(self.probability(farthest, levels, seen.ensemble.max_draws))
                tied = whole <= 0.5 + tie_band
            settled = settled and tied and len(units) < test.total
        return torch.tensor(sorted(left)), settled

    def _leader(self, seen: Draws, levels: Levels) -> int:
        """The best of those with most draws."""
        mean = seen.utility(levels).detach().cpu()
        return int(torch.where(seen.alive(), mean, -math.inf).argmax())

    def _spread(self, candidates: Candidates, ensemble: NoiseEnsemble, levels: Levels) -> Spread | None:
        """What calibration knows of a draw's margin: it was measured for plain draws that both candidates meet."""
        if ensemble.antithetic or ensemble.fusion == "tokens" or not candidates.shares_noise:
            return None
        known = [self.calibration.margin_spread(sigma) for sigma in levels.sigmas]
        # Levels of a draw share their noise: as if wholly correlated, the sum of their deviations.
        deviation = sum(w * math.sqrt(one.variance) for w, one in zip(levels.weights, known, strict=True) if one)
        dof = min((one.dof for one in known if one), default=0.0)
        return Spread(deviation**2, dof) if all(known) else None

    def _comparison(
        self,
        seen: Draws,
        levels: Levels,
        reward: Reward,
        pair: tuple[int, ...],
        tie_band: float,
        decided: bool,
        spread: Spread | None,
    ) -> Comparison:
        a, b = pair
        units = seen.units(seen.margins(levels, a, b)).cpu().double()
        mean, count = units.mean(), len(units)
        variance, dof = moderated(spread, float(units.var()) if count > 1 else 0.0, count)
        if dof:
            error = student_quantile(0.975, dof) * math.sqrt(variance / count)
        else:
            error = student_quantile(0.975, math.inf) * math.sqrt(2) * levels.deviation
        points = torch.stack([mean, mean - error, mean + error])
        probability, low, high = self.probability(points, levels, count * seen.ensemble.step).tolist()
        return Comparison(
            probability=probability,
            interval=(low, high),
            margin=float(mean),
            reward_a=float(reward.reward[a]),
            reward_b=float(reward.reward[b]),
            tie_band=tie_band,
            decided=decided,
            spent=int(reward.spent[a] + reward.spent[b]),
        )

    def _reward(self, seen: Draws, levels: Levels, candidates: Candidates) -> Reward:
        utility = seen.utility(levels)
        return Reward(
            reward=self.calibration(utility, levels.sigmas, levels.weights),
            utility=utility,
            utility_std=seen.utility_std(levels),
            standard_error=seen.standard_error(levels),
            draws=seen.values.flatten(1),
            sigmas=torch.tensor(levels.sigmas if seen.joined else levels.sigmas * seen.values.shape[1]),
            seed=candidates.recorded_seed,
            spent=seen.count.to(utility.device) * len(levels.sigmas),
        )
