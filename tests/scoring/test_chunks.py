"""Chunks of states, and what happens when memory ends."""

import pytest
import torch

from dina_lrm.errors import ValueRangeError, WorkError
from dina_lrm.scoring.chunks import in_chunks


class Memory:
    """A reader that holds so many items at once."""

    def __init__(self, room: int, error: type[Exception] = torch.OutOfMemoryError) -> None:
        self.room, self.error, self.sizes = room, error, []

    def __call__(self, part: slice) -> torch.Tensor:
        size = part.stop - part.start
        self.sizes.append(size)
        if size > self.room:
            raise self.error("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        return torch.arange(part.start, part.stop)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
def test_out_of_memory_halves_and_goes_on_where_it_was(error):
    read = Memory(3, error)
    with torch.no_grad(), pytest.warns(RuntimeWarning, match=r"out of memory with \d+ states"):
        values = in_chunks(10, 8, read, torch.cat)
    assert values.tolist() == list(range(10))
    assert read.sizes == [8, 4, 2, 2, 2, 2, 2]


def test_one_item_that_does_not_fit_is_an_end():
    with torch.no_grad(), pytest.raises(WorkError, match="one state does not fit"):
        in_chunks(4, 1, Memory(0), torch.cat)


def test_with_gradients_nothing_is_tried_again():
    with pytest.raises(torch.OutOfMemoryError):
        in_chunks(4, 4, Memory(1), torch.cat, once=True)


def test_another_error_is_no_matter_of_memory():
    def read(part: slice) -> torch.Tensor:
        raise RuntimeError("shapes differ")

    with torch.no_grad(), pytest.raises(RuntimeError, match="shapes differ"):
        in_chunks(4, 4, read, torch.cat)


@pytest.mark.parametrize("fusion", ["mean", "tokens"])
def test_a_score_survives_a_memory_that_ends(golden_model, golden_conditioning, cases, monkeypatch, fusion):
    ask = dict(conditioning=golden_conditioning, latents=cases["0.latents"], sigmas=(0.2, 0.6), draws=2, fusion=fusion)
    with torch.no_grad():
        whole = golden_model.score(**ask)
    features, sizes = golden_model.network.features, []

    def small(state, conditioning):
        sizes.append(len(state))
        if len(state) > 2:
            raise torch.OutOfMemoryError("no more")
        return features(state, conditioning)

    monkeypatch.setattr(golden_model.network, "features", small)
    with pytest.warns(RuntimeWarning, match="out of memory"):  # gradients are enabled, and nothing needs one
        pieces = golden_model.score(**ask, max_batch_size=8)
    assert max(sizes) > 2 and torch.allclose(whole.draws, pieces.draws, atol=1e-5)


def test_a_memory_budget_sets_the_size(golden_model, golden_conditioning, cases, monkeypatch):
    latents = cases["0.latents"]
    backbone, sizes = golden_model.network.backbone, []
    length = golden_conditioning.prompt_embeds.shape[1]
    one = backbone.activation_bytes(latents.shape[1:], length)
    features = golden_model.network.features
    monkeypatch.setattr(golden_model.network, "features", lambda s, c: sizes.append(len(s)) or features(s, c))
    ask = dict(conditioning=golden_conditioning, latents=latents, sigmas=(0.2, 0.6), draws=3)
    with torch.no_grad():
        budgeted = golden_model.score(**ask, memory_budget=2 * one + 1)
        assert max(sizes) == 2
        assert torch.allclose(budgeted.reward, golden_model.score(**ask).reward, atol=1e-5)
    with pytest.raises(ValueRangeError, match="memory_budget is 10"):
        golden_model.score(**ask, memory_budget=10)
    with pytest.raises(ValueRangeError, match="stand without memory_budget"):
        golden_model.score(**ask, memory_budget=one, max_batch_size=2)


def test_pictures_are_encoded_in_chunks_too(golden_model, golden_conditioning, monkeypatch):
    encode, sizes = golden_model.network.backbone.encode_images, []
    monkeypatch.setattr(
        golden_model.network.backbone, "encode_images", lambda pixels: sizes.append(len(pixels)) or encode(pixels)
    )
    pixels = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    golden_model.score(conditioning=golden_conditioning[:1], images=pixels, max_batch_size=2)
    assert sizes == [2, 1]


def test_what_is_not_finite_is_not_ranked(golden_model, golden_conditioning, cases, monkeypatch):
    monkeypatch.setattr(
        golden_model.network.head, "read", lambda contexts: torch.full((len(contexts.image),), torch.nan)
    )
    with pytest.raises(WorkError, match="not finite"):
        golden_model.score(conditioning=golden_conditioning, latents=cases["0.latents"])


def test_half_latents_are_noised_in_float32(golden_model, golden_conditioning, cases):
    half = cases["0.latents"].to(torch.bfloat16)
    ask = dict(conditioning=golden_conditioning, noise=cases["0.noise"])
    assert torch.equal(
        golden_model.score(**ask, latents=half).reward, golden_model.score(**ask, latents=half.float()).reward
    )
