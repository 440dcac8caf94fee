import pytest
import torch

from dina_lrm.errors import ConfigError, ShapeError, ValueRangeError
from dina_lrm.noise import NoiseEnsemble, seeded_noise


def test_noise_is_a_function_of_its_seed():
    assert torch.equal(seeded_noise((3, 4, 4), 7), seeded_noise((3, 4, 4), 7))
    assert not torch.equal(seeded_noise((3, 4, 4), 7), seeded_noise((3, 4, 4), 8))


def test_the_first_draws_do_not_depend_on_how_many_follow():
    assert torch.equal(seeded_noise((3, 5, 5), 1, draws=4)[:2], seeded_noise((3, 5, 5), 1, draws=2))


def test_one_draw_is_what_a_seeded_generator_gives():
    expected = torch.randn(16, 8, 8, generator=torch.Generator().manual_seed(3))
    assert torch.equal(seeded_noise((16, 8, 8), 3)[0], expected)


def test_noise_is_standard_normal():
    noise = seeded_noise((64, 64, 16), 0)
    assert abs(noise.mean()) < 0.01 and abs(noise.std() - 1) < 0.01


@pytest.mark.parametrize(("seed", "draws"), [(-1, 1), (2**63, 1), (0, 0)])
def test_bad_seeds_and_counts_are_refused(seed, draws):
    with pytest.raises(ValueRangeError):
        seeded_noise((1, 2, 2), seed, draws)


def test_one_seed_serves_all_candidates_and_own_seeds_do_not_look_at_neighbours():
    latents = torch.zeros(3, 2, 4, 4)
    shared = NoiseEnsemble(draws=2).noise(latents, 5)
    assert torch.equal(shared[:, 0], shared[:, 2])
    own = NoiseEnsemble(draws=2).noise(latents, [4, 5, 6])
    assert torch.equal(own[:, 1], shared[:, 0])


@pytest.mark.parametrize("sigmas", [(), (1.2,), (0.4, -0.1)])
def test_levels_outside_are_refused(sigmas):
    with pytest.raises(ValueRangeError, match="sigmas"):
        NoiseEnsemble(sigmas)


def test_unknown_fusion_and_wrong_seed_count_are_refused():
    with pytest.raises(ConfigError, match="mean, tokens"):
        NoiseEnsemble(fusion="sum")
    with pytest.raises(ShapeError, match="2 samples need one seed or 2, got 3"):
        NoiseEnsemble().noise(torch.zeros(2, 1, 2, 2), [1, 2, 3])


def test_draws_bit_by_bit_are_those_of_one_call_and_none_is_drawn_twice(monkeypatch):
    ensemble, latents, drawing = NoiseEnsemble(draws=6, antithetic=True), torch.zeros(2, 2, 4, 4), {}
    whole, drawn, randn = ensemble.noise(latents, [5, 6]), [], torch.randn
    monkeypatch.setattr(torch, "randn", lambda *size, **how: drawn.append(size) or randn(*size, **how))
    parts = [ensemble.noise(latents, [5, 6], start, stop, drawing) for start, stop in ((0, 2), (2, 6))]
    assert torch.equal(torch.cat(parts), whole) and len(drawn) == 2 * 3
    odd = [ensemble.noise(latents, 5, start, stop, drawing) for start, stop in ((0, 1), (1, 4), (0, 6))]
    assert torch.equal(torch.cat(odd[:2])[:, 0], whole[:4, 0]) and torch.equal(odd[2][:, 1], whole[:, 0])
