"""The arena: which pair a voter sees, what the vote was, and how voters and model agree."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import random
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field

from dina_lrm.config import Config
from dina_lrm.data import PreferenceData
from dina_lrm.errors import DataError, DinaError
from dina_lrm.serve.arena.agreement import Agreement
from dina_lrm.serve.arena.export import Encode, export_votes
from dina_lrm.serve.arena.judge import Judge
from dina_lrm.serve.arena.selection import (
    Pair,
    expected_information,
    ordered,
    pairs_of,
    random_pair,
    set_apart,
    tally,
)
from dina_lrm.serve.arena.source import CandidateSource, open_source
from dina_lrm.serve.arena.store import Choice, Sampling, Vote, VoteStore
from dina_lrm.serve.arena.tickets import NONCE_BYTES, Showing, TicketOffice
from dina_lrm.serve.errors import UnavailableError

REMEMBERED_VOTERS = 10_000
# What passes: files or memory that others have taken, a disk elsewhere. All else stays, and would be tried for ever.
MOMENTARY = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT)
log = logging.getLogger(__name__)


class ArenaSettings(Config):
    """How the arena picks pairs and looks at candidates.

    Attributes:
        random_share: of the prompts, set apart for random pairs; and of the pairs shown, how many are of them. The store
            keeps it with the seed: prompts never change sides.
        prior_votes: how many votes the model's opinion of a pair is worth when the next pair is picked.
        pool: prompts among whose pairs the next one is picked.
        ahead: prompts whose candidates are scored in the background when a pair is asked for.
        sigmas: noise levels at which candidates are scored.
        draws: noise tensors a level.
        seed: of everything: prompts set apart, order of pairs, sides, and noise.
    """

    random_share: float = Field(1 / 3, gt=0, le=1)
    prior_votes: float = Field(2.0, gt=0)
    pool: int = Field(16, ge=1)
    ahead: int = Field(2, ge=0)
    sigmas: tuple[float, ...] = (0.4,)
    draws: int = Field(4, ge=1)
    seed: int = Field(0, ge=0)


class ShownPair(BaseModel):
    """A pair for a voter's eyes.

    Attributes:
        pair: the ticket to vote under; null if the voter has seen every pair.
        prompt: of both pictures.
        left: name of the picture on the left, of `/v1/arena/pictures/NAME`.
        right: of the picture on the right.
        answered: how many answers this voter has given, skips among them.
    """

    model_config = ConfigDict(frozen=True)

    pair: str | None
    prompt: str | None
    left: str | None
    right: str | None
    answered: int


class ArenaStats(BaseModel):
    """Where the arena stands.

    Attributes:
        source: name of the collection of candidates.
        prompts: how many have two candidates or more.
        candidates: of these prompts.
        voters: who have answered.
        answers: votes and skips.
        model: who is compared with; null where no model is loaded, or the one that is objects.
        objection: why the model judges none of these candidates; null if it has nothing against them.
        unscored: decided votes whose candidates the model has not scored yet.
        unscorable: decided votes with a candidate that the model cannot score.
        random: agreement on pairs at random: an estimate for all pairs of the collection.
        active: on pairs picked because the model was unsure: lower than that, and no estimate of it.
        mine: on the random pairs of the voter who asks; null if nobody is named.
        mine_active: on the other pairs of the voter who asks.
    """

    model_config = ConfigDict(frozen=True)

    source: str
    prompts: int
    candidates: int
    voters: int
    answers: int
    model: str | None
    objection: str | None
    unscored: int
    unscorable: int
    random: Agreement
    active: Agreement
    mine: Agreement | None
    mine_active: Agreement | None


class Arena:
    """Blind comparisons, chosen and counted.

    Nothing that a voter is sent tells what the model thinks, where a picture came from, or how the pair was picked.

    Attributes:
        source: of the candidates.
        store: of votes and utilities.
        settings: how pairs are picked.
        judge: whose opinion guides the choice and is compared with; None for nobody's.
    """

    def __init__(
        self,
        source: CandidateSource,
        store: VoteStore,
        settings: ArenaSettings | None = None,
        judge: Judge | None = None,
    ) -> None:
        self.source, self.store = source, store
        self.settings = settings or ArenaSettings()
        self.judge = judge
        self._office = TicketOffice(store.secret, source.prompt_of)
        prompts = sorted(source.by_prompt)
        apart = set_apart(prompts, self.settings.random_share, self.settings.seed)
        self._prompts: dict[Sampling, list[str]] = {
            "random": [prompt for prompt in prompts if prompt in apart],
            "active": [prompt for prompt in prompts if prompt not in apart],
        }
        self._check()
        self._voted: dict[str, set[str]] = {}  # candidates that were voted on, by prompt
        for vote in store.votes():
            self._remember(vote)
        self._known: dict[str, set[str]] = {}  # candidates that were scored, by the judge's identity
        self._aside: dict[str, set[str]] = {}  # candidates that could not be scored, by the judge's identity
        self._unreadable: set[str] = set()  # candidates whose picture cannot be shown
        self._scoring: dict[str, asyncio.Task[None]] = {}
        self._shown: dict[str, ShownPair] = {}  # to voters who have a name

    def _check(self) -> None:
        """Refuse a store that belongs to something else."""
        path, asked = self.store.path, f"random_share {self.settings.random_share:g}, seed {self.settings.seed}"
        kept = self.store.fact("settings", asked)
        if kept != asked:
            raise DataError(
                f"{path} was made with {kept}, now {asked} is asked for: prompts would change sides; name another"
            )
        lost = self.store.candidates() - self.source.prompt_of.keys()
        if lost:
            raise DataError(
                f"{path} has votes on {min(lost)!r}, which {self.source.name} lacks; name the folder that was voted on, or "
                "another file"
            )

    @classmethod
    def open(
        cls, folder: str | Path, store: str | Path, settings: ArenaSettings | None = None, split: str | None = None
    ) -> Arena:
        """Open an arena.

        Args:
            folder: a preference folder, or one with `prompts.jsonl`.
            store: of the votes, an SQLite file; made if need be.
            settings: how pairs are picked.
            split: of a preference folder, to take only its prompts.

        Returns:
            The arena, without a judge.

        Raises:
            DataError: either cannot be read, or they do not belong together.
        """
        return cls(open_source(folder, split), VoteStore.open(store), settings)

    def close(self) -> None:
        """Stop asking the judge, and close the store."""
        for task in self._scoring.values():
            task.cancel()
        self.store.close()

    def picture(self, name: str) -> bytes | None:
        """The WebP of a picture, by the name in a pair; None if there is none.

        Raises:
            DataError: it cannot be read; its pairs are not shown again.
            UnavailableError: it cannot be read now.
        """
        candidate = self._office.candidate(name)
        if candidate is None:
            return None
        try:
            return self.source.shown(candidate)
        except DinaError as error:
            if _is_momentary(error):
                raise UnavailableError("this picture of the arena cannot be read now; ask again later") from None
            if candidate not in self._unreadable:
                log.warning("arena: %r cannot be shown and is set aside: %s", candidate, error)
            self._unreadable.add(candidate)
            # The error's own words name a file, and voters are strangers.
            raise DataError("this picture of the arena cannot be read; ask for another pair") from None

    def next_pair(self, voter: str) -> ShownPair:
        """A pair for a voter; a fresh one each time for whoever has no name.

        For a named voter it is a function of seed, name, number of answers, and what is voted and scored so far; until
        they answer it stays the same, so asking again is no way to fish for another pair.

        Args:
            voter: a name that the voter keeps; empty if none.

        Returns:
            The pair, without what would sway a voter.
        """
        answers = self.store.votes(voter=voter) if voter else []
        shown = self._shown.get(voter)
        lost = {self._office.picture(candidate) for candidate in list(self._unreadable)}  # threads add to it
        if shown is None or shown.answered != len(answers) or not lost.isdisjoint((shown.left, shown.right)):
            shown = self._deal(voter, answers)
        if voter and shown.pair is not None:
            self._shown[voter] = shown
            while len(self._shown) > REMEMBERED_VOTERS:
                self._shown.pop(next(iter(self._shown)), None)  # threads deal side by side
        return shown

    def _deal(self, voter: str, answers: Sequence[Vote]) -> ShownPair:
        """The next pair of a voter who has given these answers."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        if voter:
            nonce = random.Random(f"{self.settings.seed}\n{voter}\n{len(answers)}").randbytes(NONCE_BYTES)
        rng = random.Random(self.settings.seed.to_bytes(8, "big") + nonce)
        seen = {ordered(vote.left, vote.right) for vote in answers}
        for lost in list(self._unreadable):
            seen.update(ordered(lost, other) for other in self.source.by_prompt[self.source.prompt_of[lost]])
        kinds: list[Sampling] = ["random", "active"]
        if rng.random() >= self.settings.random_share:
            kinds.reverse()
        for sampling in kinds:
            pair = self._pick(sampling, seen, rng)
            if pair is not None:
                left, right = pair if rng.random() < 0.5 else (pair[1], pair[0])
                ticket = self._office.issue(Showing(left, right, sampling, nonce), voter)
                sides = self._office.picture(left), self._office.picture(right)
                return ShownPair(
                    pair=ticket,
                    prompt=self.source.prompt_of[left],
                    left=sides[0],
                    right=sides[1],
                    answered=len(answers),
                )
        return ShownPair(pair=None, prompt=None, left=None, right=None, answered=len(answers))

    def vote(self, ticket: str, choice: Choice, voter: str) -> bool:
        """Write an answer down.

        Args:
            ticket: of the pair.
            choice: what was chosen.
            voter: the name under which the pair was asked for; empty if none.

        Returns:
            False if the same answer stood there already.

        Raises:
            TicketError: no ticket of this arena, or another voter's.
            AlreadyVotedError: this voter answered otherwise before.
        """
        showing = self._office.read(ticket, voter)
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        prompt = self.source.prompt_of[showing.left]
        vote = Vote(ticket, voter, prompt, showing.left, showing.right, choice, showing.sampling, now)
        fresh = self.store.add(vote)
        self._remember(vote)
        return fresh

    def stats(self, voter: str = "") -> ArenaStats:
        """Where the arena stands; the random pairs alone estimate how far voters and model agree.

        Args:
            voter: whose own numbers are wanted too; empty for nobody's.
        """
        votes = self.store.votes()
        identity = self._identity
        named = sorted({name for vote in votes for name in (vote.left, vote.right)})
        known = {} if identity is None else self.store.utilities(identity, named)

        def agreement(sampling: Sampling, among: Sequence[Vote]) -> Agreement:
            chosen = [vote for vote in among if vote.sampling == sampling]
            return Agreement.of(chosen, known, None if self.judge is None else self.judge.probability)

        mine = [vote for vote in votes if vote.voter == voter] if voter else []
        on_random, on_active = agreement("random", votes), agreement("active", votes)
        aside = self._aside.get(identity or "", set())
        hopeless = sum(vote.choice in ("left", "right") and not aside.isdisjoint(vote.sides) for vote in votes)
        return ArenaStats(
            source=self.source.name,
            prompts=len(self.source.by_prompt),
            candidates=len(self.source.prompt_of),
            voters=len({vote.voter for vote in votes}),
            answers=len(votes),
            model=None if identity is None else identity.rpartition(":")[0],
            objection=None if self.judge is None else self.judge.objection,
            unscored=sum(one.decided - one.compared for one in (on_random, on_active)) - hopeless,
            unscorable=hopeless,
            random=on_random,
            active=on_active,
            mine=agreement("random", mine) if voter else None,
            mine_active=agreement("active", mine) if voter else None,
        )

    def export(
        self, folder: str | Path, encode: Encode | None = None, backbone: Mapping[str, Any] | None = None
    ) -> PreferenceData:
        """Write the votes as a preference folder: split "test" of random pairs, "train" of those picked by the model.

        Args:
            folder: where; a preference folder that lies there is replaced.
            encode: pictures to latents, such as `RewardModel.encode_images`; not needed where the source has latents.
            backbone: what `encode` stands on, such as `Backbone.signature()`.

        Returns:
            The folder, opened.

        Raises:
            DataError: nobody has voted, or the candidates' latents have several shapes.
        """
        votes = chain.from_iterable(self.store.pages())
        return export_votes(folder, self.source, votes, self.store.voters(), encode, backbone or {})

    def export_json(self) -> Iterator[str]:
        """Every vote as JSON, in parts; voters under sealed names."""
        yield f'{{"source": {json.dumps(self.source.name)}, "votes": ['
        between = ""
        for page in self.store.pages():
            yield between + ", ".join(json.dumps(self._public(vote)) for vote in page)
            between = ", "
        yield "]}"

    def _public(self, vote: Vote) -> dict[str, Any]:
        left, right = map(self.source.public_name, vote.sides)
        return {**asdict(vote), "voter": self._office.voter(vote.voter), "left": left, "right": right}

    def look_ahead(self) -> None:
        """Have candidates scored in the background, inside a running event loop: of what was voted on, then of others."""
        judge, identity = self.judge, self._identity
        if judge is None or identity is None:
            return
        for prompt, candidates in (*self._behind(identity), *self._to_come(identity)):
            if len(self._scoring) >= self.settings.ahead:
                return
            if prompt not in self._scoring:
                self._scoring[prompt] = asyncio.create_task(self._score(judge, prompt, candidates, identity))

    async def settled(self) -> None:
        """Wait until nothing is being scored."""
        while self._scoring:
            await asyncio.gather(*self._scoring.values())

    def _behind(self, identity: str) -> Iterator[tuple[str, list[str]]]:
        """Candidates that were voted on and are not scored, by prompt."""
        done = self._done(identity)
        for prompt, candidates in list(self._voted.items()):
            if not candidates <= done:
                yield prompt, sorted(candidates - done)

    def _to_come(self, identity: str) -> Iterator[tuple[str, list[str]]]:
        """Prompts whose pairs may be picked next, in any order, with their candidates that are not scored."""
        done = self._done(identity)
        for prompt in random.sample(self._prompts["active"], len(self._prompts["active"])):
            candidates = [name for name in self.source.by_prompt[prompt] if name not in done]
            if candidates:
                yield prompt, candidates

    async def _score(self, judge: Judge, prompt: str, candidates: Sequence[str], identity: str) -> None:
        try:
            await self._try(judge, prompt, candidates, identity)
        except Exception as error:  # in the background there is nobody else to tell
            # No vote hangs on it: the pair is shown all the same, and scored another time.
            log.warning("arena: candidates of a prompt are not scored yet: %s: %s", type(error).__name__, error)
            return
        finally:
            del self._scoring[prompt]
        if next(self._behind(identity), None) is not None:
            self.look_ahead()

    async def _try(self, judge: Judge, prompt: str, candidates: Sequence[str], identity: str) -> None:
        """Have candidates scored: together, or, if that fails, each by itself, so that a bad one is alone set aside."""
        try:
            found = await judge.utilities(prompt, candidates)
        except Exception as error:
            if isinstance(error, UnavailableError) or _is_momentary(error) or judge.identity != identity:
                raise  # not the candidates' fault
            if len(candidates) > 1:
                for one in candidates:
                    await self._try(judge, prompt, [one], identity)
                return
            self._aside.setdefault(identity, set()).update(candidates)
            log.warning("arena: %r cannot be scored and is set aside: %s", candidates[0], error)
            return
        if judge.identity == identity:  # else another model may have answered
            await asyncio.to_thread(self.store.add_utilities, identity, dict(zip(candidates, found, strict=True)))
            self._scored(identity).update(candidates)

    @property
    def _identity(self) -> str | None:
        return None if self.judge is None else self.judge.identity

    def _done(self, identity: str) -> set[str]:
        """Candidates that a model need not be asked about any more: scored, or set aside."""
        aside = self._aside.get(identity)
        return self._scored(identity) | aside if aside else self._scored(identity)

    def _scored(self, identity: str) -> set[str]:
        """Candidates that a model has scored."""
        if identity not in self._known:
            self._known[identity] = self.store.scored(identity)
        return self._known[identity]

    def _remember(self, vote: Vote) -> None:
        self._voted.setdefault(vote.prompt, set()).update((vote.left, vote.right))

    def _pick(self, sampling: Sampling, seen: set[Pair], rng: random.Random) -> Pair | None:
        """A pair that this voter has not seen; None if there is none left."""
        picked = self._most_telling(seen, rng) if sampling == "active" else None
        return picked or random_pair(self.source.by_prompt, self._prompts[sampling], seen, rng)

    def _most_telling(self, seen: set[Pair], rng: random.Random) -> Pair | None:
        """The pair whose next vote is expected to tell most, among scored prompts; None where there is none."""
        judge, identity = self.judge, self._identity
        if judge is None or identity is None:
            return None
        done, aside, by_prompt = self._done(identity), self._aside.get(identity, set()), self.source.by_prompt
        ready = [prompt for prompt in self._prompts["active"] if done.issuperset(by_prompt[prompt])]
        pool = rng.sample(ready, min(self.settings.pool, len(ready)))
        scored = {prompt: [name for name in by_prompt[prompt] if name not in aside] for prompt in pool}
        pairs = [pair for prompt in pool for pair in pairs_of(scored[prompt]) if pair not in seen]
        if not pairs:
            return None
        utilities = self.store.utilities(identity, [name for prompt in pool for name in scored[prompt]])
        margins = torch.tensor([utilities[one] - utilities[other] for one, other in pairs], dtype=torch.float64)
        votes = tally(self.store.votes(prompts=pool))
        counts = torch.tensor([votes.get(pair, (0.0, 0.0)) for pair in pairs], dtype=torch.float64)
        told = expected_information(judge.probability(margins), counts[:, 0], counts[:, 1], self.settings.prior_votes)
        best = (told >= told.max() * (1 - 1e-9)).nonzero().flatten().tolist()
        return pairs[rng.choice(best)]


def _is_momentary(error: Exception) -> bool:
    """Whether the machine could not read a picture just then, whatever the file holds."""
    return isinstance(error.__cause__, OSError) and error.__cause__.errno in MOMENTARY
