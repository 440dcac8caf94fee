"""Gradients, adapters, and what is saved of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dina_lrm.backbones import Backbone
from dina_lrm.checkpoint import BaseReference, ModelConfig, load_model, save_model, verify_model
from dina_lrm.errors import CheckpointError, ConfigError
from dina_lrm.heads import QueryHeadConfig
from dina_lrm.model import build_network
from dina_lrm.types import Conditioning, Features, NoisedState
from tests.conformance.case import ADAPTER, Case, furthest, loss, same, teach
from tests.conformance.features import NEAR
from tests.conformance.loading import is_idle

HEAD = QueryHeadConfig(width=16, num_queries=2, num_attention_heads=2)


def gradient(backbone: Backbone, state: NoisedState, conditioning: Conditioning) -> Tensor:
    """Of the loss in the noised latents; the parameters' stand in them."""
    latents = state.noised_latents.clone().requires_grad_()
    for parameter in backbone.parameters():
        parameter.grad = None
    loss(backbone.features(NoisedState(latents, state.sigma), conditioning)).backward()
    assert latents.grad is not None
    return latents.grad


def learned(backbone: Backbone) -> dict[str, Tensor]:
    return {name: p.grad for name, p in backbone.named_parameters() if p.grad is not None}


def kept(backbone: Backbone, state: NoisedState, conditioning: Conditioning) -> int:
    """Numbers that a forward keeps for the backward."""
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (sizes.append(t.numel()), t)[1], lambda t: t):
        backbone.features(state, conditioning)
    return sum(sizes)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def model_config(case: Case, **changes: Any) -> ModelConfig:
    backbone = case.config.model_copy(update=changes)
    return ModelConfig(backbone=backbone, base=BaseReference(name=str(case.folder)), head=HEAD)


class LearningTests:
    """The latents and the adapter learn, the base never."""

    def test_gradients_reach_the_latents(
        self, backbone: Backbone, state: NoisedState, conditioning: Conditioning
    ) -> None:
        found = gradient(backbone, state, conditioning)
        assert found.isfinite().all() and all(one.any() for one in found)
        assert not learned(backbone)

    def test_gradients_reach_the_adapter(
        self, case: Case, adapted: Backbone, state: NoisedState, conditioning: Conditioning
    ) -> None:
        gradient(adapted, state, conditioning)
        grads, trainable = learned(adapted), {n for n, p in adapted.named_parameters() if p.requires_grad}
        assert trainable == grads.keys() == {n for n, _ in adapted.named_parameters() if "lora_" in n}
        assert {"lora_A", "lora_B"} <= {part for name in grads for part in name.split(".")}
        assert all(value.isfinite().all() for value in grads.values())
        assert not [name for name, value in grads.items() if not value.any() and not is_idle(case, name)]

    def test_checkpointing_keeps_less_and_gives_the_same_gradient(
        self, case: Case, pipeline: Any, adapted: Backbone, state: NoisedState, conditioning: Conditioning
    ) -> None:
        of_latents = gradient(adapted, state, conditioning)
        of_adapter = {name: value.clone() for name, value in learned(adapted).items()}
        kept_by_all = kept(adapted, state, conditioning)
        sparing = teach(case.load(pipeline, adapter=ADAPTER))
        sparing.enable_gradient_checkpointing()
        torch.testing.assert_close(gradient(sparing, state, conditioning), of_latents)
        assert learned(sparing).keys() == of_adapter.keys()
        for name, value in learned(sparing).items():
            torch.testing.assert_close(value, of_adapter[name], msg=name)
        assert kept(sparing, state, conditioning) < 0.7 * kept_by_all

    def test_a_fresh_adapter_changes_nothing_and_takes_the_state_of_another(
        self,
        case: Case,
        pipeline: Any,
        adapted: Backbone,
        state: NoisedState,
        conditioning: Conditioning,
        features: Features,
    ) -> None:
        fresh, tensors = case.load(pipeline, adapter=ADAPTER), adapted.adapter_state()
        assert furthest(fresh.features(state, conditioning), features) < 1e-6
        first = next(iter(tensors))
        with pytest.raises(CheckpointError, match=first):
            fresh.load_adapter_state({name: value for name, value in tensors.items() if name != first})
        fresh.load_adapter_state(tensors)
        assert same(fresh.features(state, conditioning), adapted.features(state, conditioning))

    def test_an_adapter_that_learned_changes_the_features(
        self, adapted: Backbone, state: NoisedState, conditioning: Conditioning, features: Features
    ) -> None:
        found = adapted.features(state, conditioning)
        assert furthest(found, features) > 1e-3
        assert torch.equal(found.temb, features.temb)

    def test_without_its_adapter_it_is_the_bare_base(
        self, adapted: Backbone, state: NoisedState, conditioning: Conditioning, features: Features
    ) -> None:
        trainable = {name for name, p in adapted.named_parameters() if p.requires_grad}
        on = adapted.features(state, conditioning)
        with adapted.without_adapter():
            assert same(adapted.features(state, conditioning), features)
        assert same(adapted.features(state, conditioning), on)
        assert {name for name, p in adapted.named_parameters() if p.requires_grad} == trainable

    def test_merged_it_agrees(
        self, case: Case, callers: Any, state: NoisedState, conditioning: Conditioning, features: Features
    ) -> None:
        """Weights that are the caller's too are not written to: another backbone on the same pipeline stays as it was."""
        backbone, bystander = teach(case.load(callers, adapter=ADAPTER)), case.load(callers)
        unmerged, before = backbone.features(state, conditioning), backbone.adapter_state()
        before = {name: value.clone() for name, value in before.items()}
        backbone.merge_adapter()
        assert not [name for name, _ in backbone.network.named_parameters() if "lora_" in name]
        assert furthest(backbone.features(state, conditioning), unmerged) < 1e-4
        after = backbone.adapter_state()
        assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
        assert same(bystander.features(state, conditioning), features)
        with pytest.raises(ConfigError, match="merged"), backbone.without_adapter():
            pass

    def test_half_precision_spares_the_adapter(
        self, case: Case, pipeline: Any, adapted: Backbone, state: NoisedState, conditioning: Conditioning
    ) -> None:
        backbone = teach(case.load(pipeline, torch.bfloat16, adapter=ADAPTER))
        assert backbone.dtype == torch.bfloat16
        assert {p.dtype for n, p in backbone.named_parameters() if "lora_" in n} == {torch.float32}
        assert furthest(backbone.features(state, conditioning), adapted.features(state, conditioning)) < NEAR
        gradient(backbone, state, conditioning)
        grads = learned(backbone)
        assert {value.dtype for value in grads.values()} == {torch.float32}
        assert not [name for name, value in grads.items() if not value.any() and not is_idle(case, name)]

    def test_saved_loaded_and_saved_again_it_has_the_same_bytes(
        self,
        case: Case,
        adapted: Backbone,
        state: NoisedState,
        conditioning: Conditioning,
        tmp_path: Path,
    ) -> None:
        network = build_network(adapted, HEAD).eval()
        save_model(tmp_path / "once", network, model_config(case, adapter=ADAPTER))
        verify_model(tmp_path / "once")
        loaded = load_model(tmp_path / "once")
        save_model(tmp_path / "again", loaded.network, loaded.config)
        assert files(tmp_path / "once") == files(tmp_path / "again")
        with torch.no_grad():  # loading may merge the adapter
            found, expected = (one.features(state, conditioning) for one in (loaded.network, network))
            assert furthest(found, expected) < 1e-4
            utilities = [one(state, conditioning) for one in (loaded.network, network)]
        torch.testing.assert_close(*utilities, rtol=1e-3, atol=1e-4)

    def test_weights_of_its_own_are_saved_too(
        self,
        case: Case,
        callers: Any,
        state: NoisedState,
        conditioning: Conditioning,
        features: Features,
        tmp_path: Path,
    ) -> None:
        """A model that learned all weights brings them; the base gives its sizes, text encoders and VAE."""
        backbone = case.load(callers, weights="own")
        with torch.no_grad():
            for parameter in backbone.network.parameters():
                parameter.mul_(1.01)
        network = build_network(backbone, HEAD).eval()
        save_model(tmp_path / "once", network, model_config(case, weights="own"))
        verify_model(tmp_path / "once")
        bystander = case.load(callers)
        nameless = type(callers)(**callers.components)  # put together in Python, it comes from no folder
        loaded = load_model(tmp_path / "once", base=nameless)
        save_model(tmp_path / "again", loaded.network, loaded.config)
        assert files(tmp_path / "once") == files(tmp_path / "again")
        # The weights are the same bits (the files are); what MKL makes of them may depend on where they lie in memory.
        found = loaded.network.backbone.features(state, conditioning)
        assert furthest(found, backbone.features(state, conditioning)) < 1e-5
        assert not same(backbone.features(state, conditioning), features)
        assert same(bystander.features(state, conditioning), features)

    def test_a_head_reads_it_and_all_learn(
        self, adapted: Backbone, state: NoisedState, conditioning: Conditioning
    ) -> None:
        network = build_network(adapted, HEAD)
        network.zero_grad()
        latents = state.noised_latents.clone().requires_grad_()
        utility = network(NoisedState(latents, state.sigma), conditioning)
        assert utility.shape == state.sigma.shape and utility.isfinite().all()
        utility.sum().backward()
        assert latents.grad is not None and all(one.any() for one in latents.grad)
        assert any(value.any() for name, value in learned(adapted).items() if "lora_A" in name)

    def test_an_adapter_that_fits_no_layer_is_refused(self, case: Case, pipeline: Any) -> None:
        with pytest.raises(ConfigError, match="fit no layer"):
            case.load(pipeline, adapter=ADAPTER.model_copy(update={"target_modules": ("nothing",)}))
