from __future__ import annotations

import torch

from dina_lrm.runtime.seeds import derive_seed, derived_generator


def test_a_seed_is_a_function_of_all_that_it_is_for() -> None:
    seeds = {
        derive_seed(seed, purpose, *indices)
        for seed in (0, 1)
        for purpose in ("noise", "levels")
        for indices in ((), (0,), (1,), (0, 1), (1, 0))
    }
    assert len(seeds) == 20
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(3, "noise", 1, 2) == derive_seed(3, "noise", 1, 2)


def test_what_is_drawn_never_changes_between_versions() -> None:
    assert derive_seed(0, "noise", 0, 0) == 3063214539133759720


def test_two_generators_of_one_purpose_draw_alike() -> None:
    first, second = (torch.randn(4, generator=derived_generator(1, "noise", 2)) for _ in range(2))
    assert torch.equal(first, second)
