"""Only what is kept is loaded, from wherever it comes, and what is no base of this backbone is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from diffusers import DiffusionPipeline
from torch import nn

from dina_lrm.backbones import Backbone
from dina_lrm.backbones.registry import backbone_class
from dina_lrm.errors import BaseMismatchError, ConfigError, InputError
from dina_lrm.types import Conditioning, Features, NoisedState
from tests.conformance.case import PROMPTS, Case, furthest, loss, same
from tests.conformance.features import NEAR

COMMIT = "0" * 40


def part_of(case: Case) -> str:
    """The network's name in its pipeline."""
    return backbone_class(case.config.kind).part


def dtypes(network: nn.Module) -> dict[str, torch.dtype]:
    return {name: parameter.dtype for name, parameter in network.named_parameters()}


def is_idle(case: Case, name: str) -> bool:
    return bool(case.idle) and name.removeprefix("network.").startswith(case.idle)


class LoadingTests:
    """A folder, a hub id, a loaded pipeline."""

    def test_a_folder_and_a_pipeline_give_the_same_bits(
        self,
        case: Case,
        pipeline: Any,
        backbone: Backbone,
        state: NoisedState,
        conditioning: Conditioning,
        features: Features,
    ) -> None:
        loaded = case.load(pipeline)
        encoded = loaded.encode_prompts(PROMPTS, case.lengths[0])
        assert torch.equal(encoded.prompt_embeds, conditioning.prompt_embeds)
        assert same(loaded.features(state, encoded), features)
        assert loaded.signature() == backbone.signature()

    def test_a_pipeline_put_together_in_python_is_read(
        self, case: Case, pipeline: Any, state: NoisedState, conditioning: Conditioning, features: Features
    ) -> None:
        """It has no folder, so no name."""
        together = type(pipeline)(**pipeline.components)
        backbone = case.load(together)
        assert same(backbone.features(state, conditioning), features)
        assert isinstance(backbone.base, str)

    def test_a_hub_id_gives_the_same_bits(
        self,
        case: Case,
        state: NoisedState,
        conditioning: Conditioning,
        features: Features,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Out of the hub's cache, as without a network. A file that the hub said it lacks is remembered there as lacking."""
        cached = tmp_path / "models--someone--something"
        (cached / "refs").mkdir(parents=True)
        (cached / "refs" / "main").write_text(COMMIT)
        (cached / "snapshots").mkdir()
        (cached / "snapshots" / COMMIT).symlink_to(case.folder)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
        backbone = case.load("someone/something")
        assert same(backbone.features(state, conditioning), features)
        encoded = backbone.encode_prompts(PROMPTS, case.lengths[0])
        assert torch.equal(encoded.prompt_embeds, conditioning.prompt_embeds)

    def test_text_encoders_and_vae_are_not_opened(
        self, case: Case, state: NoisedState, conditioning: Conditioning, features: Features, tmp_path: Path
    ) -> None:
        base = tmp_path / "base"
        shutil.copytree(case.folder, base, ignore=shutil.ignore_patterns("text_encoder*", "tokenizer*", "vae"))
        backbone = case.load(str(base))
        assert same(backbone.features(state, conditioning), features)
        for ask in (
            lambda: backbone.encode_prompts(["a red fox"]),
            lambda: backbone.decode_latents(state.noised_latents),
        ):
            with pytest.raises(InputError, match="could not be loaded|lacks tokenizer"):
                ask()

    def test_nothing_behind_the_last_tap_is_kept(self, case: Case, pipeline: Any, backbone: Backbone) -> None:
        whole = dict(getattr(pipeline, part_of(case)).named_parameters())
        kept = dict(backbone.network.named_parameters())
        assert kept.keys() < whole.keys()
        assert all(torch.equal(parameter, whole[name]) for name, parameter in kept.items())
        assert not [name for name in kept if name.startswith(case.output_layers)]
        first = {name for name, _ in case.load(pipeline, image_taps=(1,), text_taps=(0,)).network.named_parameters()}
        assert first < kept.keys()

    def test_every_kept_weight_is_used(
        self, case: Case, pipeline: Any, state: NoisedState, conditioning: Conditioning, features: Features
    ) -> None:
        backbone = case.load(pipeline, weights="own")
        found = backbone.features(state, conditioning)
        assert furthest(found, features) < 1e-6
        loss(found).backward()
        unused = [n for n, p in backbone.network.named_parameters() if p.grad is None or not p.grad.any()]
        assert not [name for name in unused if not is_idle(case, name)]

    def test_a_bare_base_has_nothing_to_learn(self, backbone: Backbone) -> None:
        assert not [name for name, parameter in backbone.named_parameters() if parameter.requires_grad]
        assert not any(module.training for module in backbone.network.modules())

    def test_half_precision_is_the_library_s(self, case: Case, pipeline: Any, halved: Backbone) -> None:
        """Some weights stay float32 in their own library: then also here, from wherever they come."""
        network_class = type(getattr(pipeline, part_of(case)))
        theirs = dtypes(network_class.from_pretrained(case.folder, subfolder=part_of(case), torch_dtype=torch.bfloat16))
        for backbone in (halved, case.load(pipeline, torch.bfloat16)):
            ours = dtypes(backbone.network)
            assert ours == {name: theirs[name] for name in ours}, "folder" if backbone is halved else "pipeline"

    def test_half_precision_is_near(
        self, halved: Backbone, state: NoisedState, conditioning: Conditioning, features: Features
    ) -> None:
        assert halved.dtype == torch.bfloat16
        assert 0 < furthest(halved.features(state, conditioning), features) < NEAR

    def test_dropped_encoders_come_again(self, case: Case, backbone: Backbone, conditioning: Conditioning) -> None:
        backbone.drop_encoders()
        again = backbone.encode_prompts(PROMPTS, case.lengths[0])
        assert torch.equal(again.prompt_embeds, conditioning.prompt_embeds)

    def test_only_the_network_is_a_part_of_it(
        self, case: Case, callers: Any, conditioning: Conditioning, state: NoisedState
    ) -> None:
        """Encoders are neither trained, nor moved, nor saved with it, also once they were used."""
        backbone = case.load(callers)
        backbone.encode_prompts(["a red fox"])
        backbone.decode_latents(state.noised_latents)
        assert {name.split(".")[0] for name in backbone.state_dict()} == {"network"}
        assert [name for name, _ in backbone.named_children()] == ["network"]

    def test_a_random_twin_has_the_sizes_but_not_the_weights(
        self, case: Case, backbone: Backbone, state: NoisedState, conditioning: Conditioning
    ) -> None:
        from dina_lrm.backbones import load_backbone

        random = torch.get_rng_state()
        twin, again = (load_backbone(case.config, str(case.folder), random_seed=3) for _ in range(2))
        assert torch.equal(torch.get_rng_state(), random)
        assert twin.signature() == again.signature() != backbone.signature()
        assert twin.feature_shape == backbone.feature_shape
        assert same(twin.features(state, conditioning), again.features(state, conditioning))
        shapes = {name: parameter.shape for name, parameter in backbone.network.named_parameters()}
        assert shapes == {name: parameter.shape for name, parameter in twin.network.named_parameters()}

    def test_taps_beyond_the_last_are_refused(self, case: Case, pipeline: Any) -> None:
        for base in (str(case.folder), pipeline):
            for stream, last in zip(("image_taps", "text_taps"), case.last_taps, strict=True):
                with pytest.raises(ConfigError, match="tap"):
                    case.load(base, **{stream: (0, last + 1)})

    @pytest.mark.slow  # over the families together
    def test_compiled_blocks_give_the_same_features(
        self, case: Case, pipeline: Any, state: NoisedState, conditioning: Conditioning
    ) -> None:
        """Traced, not optimised: what could go wrong here is the tracing, and compilers take their time."""
        plain, compiled = (case.load(pipeline, image_taps=(0, 1), text_taps=(0,)) for _ in range(2))
        compiled.compile_blocks(backend="eager")
        with torch.no_grad():
            expected = plain.features(state, conditioning)
            for _ in range(2):
                assert furthest(compiled.features(state, conditioning), expected) < 1e-5
        torch.compiler.reset()

    def test_another_pipeline_is_refused(self, case: Case, pipeline: Any, tmp_path: Path) -> None:
        part = part_of(case)
        other = DiffusionPipeline.from_pretrained(
            case.folder, **{k: v for k, v in pipeline.components.items() if v is not None}
        )
        other.register_modules(**{part: pipeline.vae})
        with pytest.raises(BaseMismatchError, match=backbone_class(case.config.kind).pipeline_class.__name__):
            case.load(other)
        (tmp_path / part).mkdir()
        (tmp_path / "model_index.json").write_text(
            json.dumps({"_class_name": "OtherPipeline", part: ["diffusers", "Other"]})
        )
        (tmp_path / part / "config.json").write_text(json.dumps({"_class_name": "OtherModel"}))
        with pytest.raises(BaseMismatchError, match="OtherModel|OtherPipeline"):
            case.load(str(tmp_path))

    def test_no_pipeline_is_refused(self, case: Case, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="model_index.json"):
            case.load(str(tmp_path))
        (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "OtherPipeline"}))
        with pytest.raises(BaseMismatchError, match="OtherPipeline"):
            case.load(str(tmp_path))
