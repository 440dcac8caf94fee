"""Seeds: every draw of a run is a function of the run's seed, its purpose, the process and the step.

Nothing random is carried from step to step, so a resumed run draws exactly what the killed one would have drawn.
"""

from __future__ import annotations

import hashlib

import torch

__all__ = ["derive_seed", "derived_generator"]


def derive_seed(seed: int, purpose: str, *indices: int) -> int:
    """A seed in 0..2^63 for one purpose at one place: the head of SHA-256 over all of them."""
    text = "/".join([str(seed), purpose, *map(str, indices)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def derived_generator(seed: int, purpose: str, *indices: int) -> torch.Generator:
    """A CPU generator with the derived seed."""
    return torch.Generator().manual_seed(derive_seed(seed, purpose, *indices))
