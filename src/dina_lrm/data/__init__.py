"""Preferences on disk: candidates, their latents, and labelled pairs by split."""

from dina_lrm.data.batches import (
    PairBatches,
    PromptGroups,
    collate,
    collate_groups,
    conditioning_by_prompt,
    unique_prompts,
)
from dina_lrm.data.folder import PairTable, PreferenceData, vote_share
from dina_lrm.data.schema import Candidate, Origin, PreferencePair
from dina_lrm.data.write import LatentParts, extend_preference_data, refuse_foreign_data, write_preference_data

__all__ = [
    "Candidate",
    "LatentParts",
    "Origin",
    "PairBatches",
    "PairTable",
    "PreferenceData",
    "PreferencePair",
    "PromptGroups",
    "collate",
    "collate_groups",
    "conditioning_by_prompt",
    "extend_preference_data",
    "refuse_foreign_data",
    "unique_prompts",
    "vote_share",
    "write_preference_data",
]
