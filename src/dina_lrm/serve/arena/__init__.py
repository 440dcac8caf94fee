"""The arena: people compare two pictures blindly, and their votes become preferences.

A folder of candidates (`source`), an SQLite file of votes (`store`), sealed names for what is shown (`tickets`), the choice
of the next pair (`selection`) with the served model's opinion (`judge`), what votes and model have in common
(`agreement`), and the way into our preference format (`export`).
"""

from dina_lrm.serve.arena.arena import Arena, ArenaSettings, ArenaStats, ShownPair
from dina_lrm.serve.arena.judge import EngineJudge, Judge
from dina_lrm.serve.arena.router import arena_router
from dina_lrm.serve.arena.source import CandidateSource, open_source
from dina_lrm.serve.arena.store import Vote, VoteStore

__all__ = [
    "Arena",
    "ArenaSettings",
    "ArenaStats",
    "CandidateSource",
    "EngineJudge",
    "Judge",
    "ShownPair",
    "Vote",
    "VoteStore",
    "arena_router",
    "open_source",
]
