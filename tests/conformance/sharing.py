"""A backbone on the caller's pipeline uses its weights and changes nothing of it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from dina_lrm.errors import BaseMismatchError
from dina_lrm.types import Conditioning, Features, NoisedState
from tests.conformance.case import ADAPTER, PROMPTS, Case, loss, same, teach
from tests.conformance.loading import is_idle, part_of

POLICY = LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False)


class Portrait:
    """All that a pipeline is: what each of its modules holds, and each tensor to the bit."""

    def __init__(self, pipeline: Any) -> None:
        self.components = dict(pipeline.components)
        self.scheduler = dict(pipeline.scheduler.config)
        self.modules: dict[str, dict[str, Any]] = {}
        self.tensors: dict[str, tuple[Any, ...]] = {}
        for part, component in self.components.items():
            if isinstance(component, nn.Module):
                for name, module in component.named_modules():
                    self.modules[f"{part}.{name}"] = {k: _shallow(v) for k, v in vars(module).items()}
                for name, value in [*component.named_parameters(), *component.named_buffers()]:
                    self.tensors[f"{part}.{name}"] = (value.detach().clone(), *_facts(value))

    def check(self, pipeline: Any) -> None:
        now = Portrait(pipeline)
        assert now.components.keys() == self.components.keys()
        assert all(now.components[name] is self.components[name] for name in self.components)
        assert now.scheduler == self.scheduler
        assert now.tensors.keys() == self.tensors.keys()
        for name, (value, *facts) in self.tensors.items():
            assert now.tensors[name][1:] == tuple(facts), name
            assert torch.equal(now.tensors[name][0], value), name
        assert now.modules.keys() == self.modules.keys()
        for name, held in self.modules.items():
            changed = [key for key in held.keys() | now.modules[name].keys() if not _is(held, now.modules[name], key)]
            assert not changed, f"{name}: {changed}"


def _shallow(value: Any) -> Any:
    """Containers are compared by what is in them."""
    if isinstance(value, dict):
        return dict(value)
    return list(value) if isinstance(value, list | set) else value


def _is(before: dict[str, Any], after: dict[str, Any], key: str) -> bool:
    if key not in before or key not in after:
        return False
    a, b = before[key], after[key]
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(a[k] is b[k] or a[k] == b[k] for k in a)
    return a is b or (isinstance(a, list | bool | int | float | str) and a == b)


def _facts(value: Tensor) -> tuple[Any, ...]:
    """Beside the bits: place, kind, count of writes, and what autograd thinks of it."""
    return value.data_ptr(), value.dtype, value.device, value._version, value.requires_grad, value.grad is None


class SharingTests:
    """The caller's pipeline before and after."""

    def test_weights_are_shared_in_place(self, case: Case, pipeline: Any) -> None:
        whole = dict(getattr(pipeline, part_of(case)).named_parameters())
        for name, parameter in case.load(pipeline).network.named_parameters():
            assert parameter.data_ptr() == whole[name].data_ptr() and parameter is not whole[name], name

    def test_of_another_dtype_they_are_copies(self, case: Case, callers: Any) -> None:
        portrait = Portrait(callers)
        backbone = case.load(callers, torch.bfloat16)
        backbone.to(torch.float64)
        portrait.check(callers)

    def test_reading_and_encoding_leave_it_alone(
        self, case: Case, callers: Any, state: NoisedState, conditioning: Conditioning
    ) -> None:
        self.warm_up(case, callers, state)
        portrait = Portrait(callers)
        backbone = case.load(callers)
        backbone.features(state, conditioning)
        backbone.encode_prompts(PROMPTS, case.lengths[0])
        latents = backbone.encode_images(self.pixels(case, backbone))  # type: ignore[attr-defined]
        backbone.decode_latents(latents)
        backbone.schedule_sigmas()
        backbone.drop_encoders()
        backbone.encode_prompts(PROMPTS, case.lengths[0])
        portrait.check(callers)

    def test_training_leaves_it_alone(
        self, case: Case, callers: Any, state: NoisedState, conditioning: Conditioning
    ) -> None:
        portrait = Portrait(callers)
        backbone = teach(case.load(callers, adapter=ADAPTER))
        backbone.train()
        backbone.enable_gradient_checkpointing()
        optimiser = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], lr=0.1)
        before = {name: value.clone() for name, value in backbone.adapter_state().items()}
        loss(backbone.features(state, conditioning)).backward()
        optimiser.step()
        after = backbone.adapter_state()
        assert not [name for name in before if torch.equal(after[name], before[name]) and not is_idle(case, name)]
        backbone.merge_adapter()
        portrait.check(callers)

    def test_learning_all_weights_leaves_it_alone(
        self, case: Case, callers: Any, state: NoisedState, conditioning: Conditioning
    ) -> None:
        """With weights of its own the backbone trains them, so they cannot be the caller's."""
        portrait = Portrait(callers)
        backbone = case.load(callers, weights="own")
        loss(backbone.features(state, conditioning)).backward()
        torch.optim.SGD(backbone.parameters(), lr=0.1).step()
        portrait.check(callers)

    def test_a_policy_in_training_stays_one(
        self, case: Case, callers: Any, state: NoisedState, conditioning: Conditioning, features: Features
    ) -> None:
        """Its adapter, train mode, frozen base, hooks and checkpointing are its own; ours reads the bare base beside it."""
        part = part_of(case)
        policy, network = callers, getattr(callers, part)
        network.requires_grad_(False)
        network.add_adapter(copy.deepcopy(POLICY), "policy")
        network.train()
        network.enable_gradient_checkpointing()
        calls: list[nn.Module] = []
        inner = [module for module in network.modules() if isinstance(module, nn.Linear)]
        for module in inner:
            module.register_forward_hook(lambda module, args, output: calls.append(module))
        self.warm_up(case, policy, state)
        portrait = Portrait(policy)
        before = self.step(case, policy, state)
        calls.clear()

        bare, adapted = case.load(policy), teach(case.load(policy, adapter=ADAPTER))
        assert same(bare.features(state, conditioning), features)
        with adapted.without_adapter():
            assert same(adapted.features(state, conditioning), features)
        loss(adapted.features(state, conditioning)).backward()
        adapted.merge_adapter()
        assert not calls and not any(module.training for module in bare.network.modules())

        portrait.check(policy)
        after = self.step(case, policy, state)
        assert same(after, before) and calls
        assert not same(case.tapped(after), features[:1]) or case.config.image_taps == (0,)

    def test_a_wrapped_network_is_seen_through(
        self, case: Case, callers: Any, state: NoisedState, conditioning: Conditioning, features: Features
    ) -> None:
        part = part_of(case)
        network = getattr(callers, part)
        setattr(callers, part, torch.compile(network, backend="eager"))
        portrait = Portrait(callers)
        assert same(case.load(callers).features(state, conditioning), features)
        portrait.check(callers)
        setattr(callers, part, get_peft_model(network, copy.deepcopy(POLICY), "policy"))
        portrait = Portrait(callers)
        assert same(case.load(callers, adapter=ADAPTER).features(state, conditioning), features)
        portrait.check(callers)

    def test_a_fused_adapter_is_refused(self, case: Case, callers: Any) -> None:
        """Its base weights are gone: features of them would be another base's."""
        part = part_of(case)
        policy, network = callers, getattr(callers, part)
        network.add_adapter(copy.deepcopy(POLICY), "policy")
        network.fuse_lora(adapter_names=["policy"])
        with pytest.raises(BaseMismatchError, match=r"policy.*(merged|fused).*unfuse"):
            case.load(policy)
        network.unfuse_lora()
        case.load(policy)

    @classmethod
    def warm_up(cls, case: Case, pipeline: Any, state: NoisedState) -> None:
        """Some text encoders and VAEs set themselves up when they first run, whoever runs them."""
        cls.step(case, pipeline, state)
        vae = pipeline.vae
        latents = state.noised_latents.unsqueeze(2) if case.framed else state.noised_latents
        with torch.no_grad():
            vae.encode(vae.decode(latents).sample)

    @staticmethod
    def step(case: Case, pipeline: Any, state: NoisedState) -> Features:
        """What the pipeline's network shows in a step of its own."""
        network = getattr(pipeline, part_of(case))
        training = network.training
        every = case.whole(pipeline, list(PROMPTS), state.noised_latents, case.sigmas[0], case.lengths[0])
        assert network.training == training
        return every[:1]
