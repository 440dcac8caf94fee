import torch

from dina_lrm.types import NoisedState


def test_the_head_stays_in_float32_under_autocast(golden_model, golden_conditioning, cases):
    state = NoisedState(cases["0.latents"], torch.full((3,), 0.4))
    with torch.autocast("cpu", torch.bfloat16):
        network = golden_model.network
        features = network.features(state, golden_conditioning)
        utility = network(state, golden_conditioning)
        joined = network.read_joined([features])
    assert features.temb.dtype == utility.dtype == joined.dtype == torch.float32
    assert torch.equal(utility, network.head(features))


def test_joining_one_level_is_reading_it(golden_model, golden_conditioning, cases):
    state = NoisedState(cases["0.latents"], torch.full((3,), 0.4))
    network = golden_model.network
    joined = network.read_joined([network.features(state, golden_conditioning)])
    assert torch.allclose(joined, network(state, golden_conditioning), atol=1e-6)
