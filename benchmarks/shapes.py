"""Public models at their real sizes, laid out on the meta device: shapes without storage, so nothing is downloaded.

Every config is a published `config.json`; `source` says whose. Where the model itself is gated, the file was read in a public
copy of it (a fine-tune that names its origin, or a loader that spells it out).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dina_lrm.backbones import AdapterConfig, BackboneConfig
from dina_lrm.backbones.loading import cast
from dina_lrm.backbones.pipeline import PipelineBackbone
from dina_lrm.backbones.registry import backbone_class
from dina_lrm.backbones.unet import UnetBackbone
from dina_lrm.cli.recipes import find_recipe
from dina_lrm.heads import QueryHeadConfig
from dina_lrm.heads.query import QueryHead
from dina_lrm.model import RewardNetwork
from dina_lrm.training import TrainConfig

DTYPE = torch.bfloat16
VAE_FACTOR = 8


@dataclass(frozen=True, eq=False)  # each is itself: what is laid out is remembered
class Base:
    """A public generator, and how a reward is read from it.

    Attributes:
        name: for people.
        kind: of our backbone.
        network: config of the whole network.
        vae: name in `VAES`.
        recipe: whose taps, adapter and head are taken; None takes those below.
        taps: of the image stream, and of the text where it is a stream; None takes the backbone's own.
        head: where there is no recipe.
        prompt_length: tokens of `prompt_embeds` that the reward reads.
        sampling_prompt_length: the same for the generator: what its pipeline pads to by default.
        evaluations: of the network in a sampling step, 2 with classifier-free guidance.
        source: whose config it is.
    """

    name: str
    kind: str
    network: dict[str, Any]
    vae: str
    prompt_length: int
    sampling_prompt_length: int
    evaluations: int
    source: str
    recipe: str | None = None
    taps: tuple[int, ...] | None = None
    head: QueryHeadConfig = QueryHeadConfig()

    def settings(self) -> tuple[BackboneConfig, QueryHeadConfig]:
        """What a recipe, or the defaults, make of it; with the adapter that is trained."""
        if self.recipe is not None:
            made = find_recipe(self.recipe, TrainConfig)
            assert isinstance(made.head, QueryHeadConfig)
            return made.backbone, made.head
        cls = backbone_class(self.kind)
        image = self.taps or cls.default_image_taps
        text = cls.default_text_taps if cls.default_text_taps == (0,) else image
        return BackboneConfig(kind=self.kind, image_taps=image, text_taps=text, adapter=AdapterConfig()), self.head

    def latents(self, height: int, width: int, frames: int | None = None) -> tuple[int, ...]:
        """Shape of one sample's latents: of a picture, or of a clip of 4 k + 1 frames."""
        channels = {"sd15": 4, "sdxl": 4}.get(self.kind, 16)
        time = () if frames is None else ((frames - 1) // 4 + 1,)
        return (channels, *time, height // VAE_FACTOR, width // VAE_FACTOR)


def _sd3(layers: int, heads: int, longest: int, dual: tuple[int, ...]) -> dict[str, Any]:
    return dict(
        num_layers=layers,
        num_attention_heads=heads,
        attention_head_dim=64,
        caption_projection_dim=64 * heads,
        joint_attention_dim=4096,
        pooled_projection_dim=2048,
        pos_embed_max_size=longest,
        dual_attention_layers=dual,
        qk_norm="rms_norm",
        sample_size=128,
        patch_size=2,
        in_channels=16,
        out_channels=16,
    )


def _wan(layers: int, heads: int, feed_forward: int) -> dict[str, Any]:
    return dict(
        num_layers=layers,
        num_attention_heads=heads,
        attention_head_dim=128,
        ffn_dim=feed_forward,
        patch_size=(1, 2, 2),
        in_channels=16,
        out_channels=16,
        text_dim=4096,
        freq_dim=256,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        eps=1e-6,
        rope_max_seq_len=1024,
    )


# Text: SD3 pads CLIP to 77 and T5 to 256 (to 128 for the reward); FLUX and Wan pad to 512. Z-Image and Qwen-Image read the
# prompt's own tokens, whatever their number: 128 stand for a long one.
BASES: dict[str, Base] = {
    base.name: base
    for base in (
        Base(
            name="SD3.5 Medium",
            kind="sd3",
            network=_sd3(24, 24, 384, tuple(range(13))),
            vae="16 channels",
            prompt_length=77 + 128,
            sampling_prompt_length=77 + 256,
            evaluations=2,
            recipe="sd35m_thurstone",
            source="stabilityai/stable-diffusion-3.5-medium, spelt out in tenstorrent/tt-forge-models",
        ),
        Base(
            name="SD3.5 Large",
            kind="sd3",
            network=_sd3(38, 38, 192, ()),
            vae="16 channels",
            prompt_length=77 + 128,
            sampling_prompt_length=77 + 256,
            evaluations=2,
            taps=(6, 13, 19),  # thirds of the first half, as (4, 8, 12) of 24
            source="stabilityai/stable-diffusion-3.5-large, spelt out in tenstorrent/tt-forge-models",
        ),
        Base(
            name="FLUX.1 dev",
            kind="flux",
            network=dict(
                num_layers=19,
                num_single_layers=38,
                num_attention_heads=24,
                attention_head_dim=128,
                patch_size=1,
                in_channels=64,
                joint_attention_dim=4096,
                pooled_projection_dim=768,
                guidance_embeds=True,
                axes_dims_rope=(16, 56, 56),
            ),
            vae="16 channels",
            prompt_length=128,
            sampling_prompt_length=512,
            evaluations=1,  # guidance is an input of the network
            recipe="flux_thurstone",
            source="black-forest-labs/FLUX.1-dev, spelt out in tenstorrent/tt-forge-models",
        ),
        Base(
            name="Z-Image Turbo",
            kind="zimage",
            network=dict(
                all_f_patch_size=(1,),
                all_patch_size=(2,),
                axes_dims=[32, 48, 48],
                axes_lens=[1536, 512, 512],
                cap_feat_dim=2560,
                dim=3840,
                in_channels=16,
                n_heads=30,
                n_kv_heads=30,
                n_layers=30,
                n_refiner_layers=2,
                norm_eps=1e-5,
                qk_norm=True,
                rope_theta=256.0,
                t_scale=1000.0,
            ),
            vae="16 channels",
            prompt_length=128,
            sampling_prompt_length=128,
            evaluations=1,  # distilled
            recipe="zimage_thurstone",
            source="Tongyi-MAI/Z-Image-Turbo",
        ),
        Base(
            name="Qwen-Image",
            kind="qwen_image",
            network=dict(
                num_layers=60,
                num_attention_heads=24,
                attention_head_dim=128,
                patch_size=2,
                in_channels=64,
                out_channels=16,
                joint_attention_dim=3584,
                guidance_embeds=False,
                axes_dims_rope=(16, 56, 56),
            ),
            vae="Qwen-Image",
            prompt_length=128,
            sampling_prompt_length=128,
            evaluations=2,
            recipe="qwen_image_thurstone",
            source="Qwen/Qwen-Image",
        ),
        Base(
            name="SDXL",
            kind="sdxl",
            network=dict(
                sample_size=128,
                in_channels=4,
                out_channels=4,
                cross_attention_dim=2048,
                attention_head_dim=[5, 10, 20],
                block_out_channels=[320, 640, 1280],
                down_block_types=["DownBlock2D", *["CrossAttnDownBlock2D"] * 2],
                up_block_types=[*["CrossAttnUpBlock2D"] * 2, "UpBlock2D"],
                layers_per_block=2,
                transformer_layers_per_block=[1, 2, 10],
                addition_embed_type="text_time",
                addition_time_embed_dim=256,
                projection_class_embeddings_input_dim=2816,
                use_linear_projection=True,
            ),
            vae="4 channels",
            prompt_length=77,
            sampling_prompt_length=77,
            evaluations=2,
            recipe="sdxl_thurstone",
            source="stabilityai/stable-diffusion-xl-base-1.0",
        ),
        Base(
            name="SD1.5",
            kind="sd15",
            network=dict(
                sample_size=64,
                in_channels=4,
                out_channels=4,
                cross_attention_dim=768,
                attention_head_dim=8,
                block_out_channels=[320, 640, 1280, 1280],
                down_block_types=[*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
                up_block_types=["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
                layers_per_block=2,
            ),
            vae="4 channels",
            prompt_length=77,
            sampling_prompt_length=77,
            evaluations=2,
            head=QueryHeadConfig(width=1280),  # as SDXL's recipe
            source="stable-diffusion-v1-5/stable-diffusion-v1-5",
        ),
        Base(
            name="Wan 2.1 1.3B",
            kind="wan",
            network=_wan(30, 12, 8960),
            vae="Wan",
            prompt_length=512,
            sampling_prompt_length=512,
            evaluations=2,
            source="Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        ),
        Base(
            name="Wan 2.1 14B",
            kind="wan",
            network=_wan(40, 40, 13824),
            vae="Wan",
            prompt_length=512,
            sampling_prompt_length=512,
            evaluations=2,
            taps=(7, 13, 20),  # thirds of the first half
            head=QueryHeadConfig(width=1536, project_in=True),  # as the recipes of other wide bases
            source="Wan-AI/Wan2.1-T2V-14B-Diffusers",
        ),
    )
}


def lay_out(build: Callable[[], nn.Module], dtype: torch.dtype = DTYPE) -> Any:
    """A frozen network without storage, in the dtype in which it would be loaded."""
    with torch.device("meta"):
        network = build()
    return cast(network, dtype).requires_grad_(False).eval()


@cache
def lay_out_backbone(base: Base, whole: bool = False) -> PipelineBackbone:
    """The kept part, adapter merged; or the whole network in the same clothes, so that it is called in the same way."""
    cls = backbone_class(base.kind)
    config = base.settings()[0].model_copy(update={"adapter": None})

    def build() -> nn.Module:
        network: nn.Module = cls.network_class.from_config(base.network)
        if not whole:
            cls.cut(network, config)
        return network

    backbone: PipelineBackbone = cls(config, lay_out(build), base=base.name, name=base.name)
    backbone = backbone.meta_twin()
    if isinstance(backbone, UnetBackbone):
        backbone._trained_sigmas = torch.empty(1000, device="meta")  # its scheduler's table: no base is there to ask
    return backbone


def lay_out_reward(base: Base) -> RewardNetwork:
    """Backbone and head: the head is float32, as always."""
    backbone, head = lay_out_backbone(base), base.settings()[1]
    made: QueryHead = lay_out(lambda: head.build(backbone.feature_shape), torch.float32)
    return RewardNetwork(backbone, made)


def adapter_size(base: Base) -> int:
    """Parameters of the adapter that is trained."""
    config, cls = base.settings()[0], backbone_class(base.kind)

    def build() -> nn.Module:
        network: nn.Module = cls.network_class.from_config(base.network)
        cls.cut(network, config)
        return network

    with torch.device("meta"):
        backbone = cls(config, build(), base=base.name, name=base.name)
    return sum(value.numel() for value in backbone.adapter_state().values())


_BLOCKS = dict(
    in_channels=3,
    out_channels=3,
    block_out_channels=(128, 256, 512, 512),
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    layers_per_block=2,
)
VAES: dict[str, tuple[str, dict[str, Any]]] = {
    "4 channels": ("AutoencoderKL", {**_BLOCKS, "latent_channels": 4}),  # SD1.5's and SDXL's
    # SD3.5's, FLUX's and Z-Image's
    "16 channels": (
        "AutoencoderKL",
        {**_BLOCKS, "latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False},
    ),
    "Qwen-Image": ("AutoencoderKLQwenImage", {}),  # the library's defaults are the published sizes
    "Wan": ("AutoencoderKLWan", {}),
}


@cache
def lay_out_vae(name: str) -> Any:
    """An autoencoder."""
    import diffusers

    class_name, config = VAES[name]
    return lay_out(lambda: getattr(diffusers, class_name)(**config))


# HPSv3 (MizzenAI/HPSv3, `hpsv3/inference.py` and `config/HPSv3_7B.yaml`): Qwen2-VL-7B, every picture, tensors too, resized
# to 256 * 28 * 28 pixels, which is 448 squared. Its instruction in the chat template, without picture and prompt, is 530
# tokens of Qwen2's tokenizer; the prompt of its own example adds 18.
HPSV3_SIDE = 448
HPSV3_TEXT = 530 + 18
QWEN2_VL_TEXT = dict(
    hidden_size=3584,
    intermediate_size=18944,
    num_hidden_layers=28,
    num_attention_heads=28,
    num_key_value_heads=4,
    vocab_size=151658,  # resized to the tokenizer's, with the reward's own token
    rms_norm_eps=1e-6,
    rope_parameters=dict(rope_type="default", rope_theta=1e6, mrope_section=[16, 24, 24]),
)
PATCH, MERGED = 14, 2


class Hpsv3(nn.Module):
    """Pixels to a score as HPSv3 does it: vision tower, language model, three linear layers at every token.

    Args:
        side: of the square that pictures are resized to.
        text_tokens: around the picture.
    """

    def __init__(self, side: int = HPSV3_SIDE, text_tokens: int = HPSV3_TEXT) -> None:
        super().__init__()
        from transformers import Qwen2VLConfig, Qwen2VLModel

        if side % (PATCH * MERGED):
            raise ValueError(f"side must be a multiple of {PATCH * MERGED}, got {side}")
        self.side, self.text_tokens = side, text_tokens
        config = Qwen2VLConfig(text_config=QWEN2_VL_TEXT, vision_config=dict(hidden_size=3584))
        self.model = Qwen2VLModel(config)
        self.head = nn.Sequential(nn.Linear(3584, 1024), nn.ReLU(), nn.Linear(1024, 16), nn.ReLU(), nn.Linear(16, 2))

    def forward(self, pixels: Tensor) -> Tensor:
        grid, device = self.side // PATCH, pixels.device
        picture = F.interpolate(pixels, (self.side, self.side), mode="bicubic")
        # A picture is a clip of two equal frames. The order of the patches costs nothing, so it is not kept.
        patches = picture.repeat(2, 1, 1, 1).reshape(grid**2, -1)
        places = torch.empty(grid**2, 2, dtype=torch.long, device=device)
        # How many patches a picture has is read as numbers: this one tensor is real.
        seen = self.model.visual(patches, grid_thw=torch.tensor([[1, grid, grid]], device="cpu"), position_ids=places)
        read = self.model.language_model.embed_tokens(torch.empty(self.text_tokens, dtype=torch.long, device=device))
        tokens = torch.cat([seen.pooler_output, read])[None]
        positions = torch.empty(3, 1, tokens.shape[1], dtype=torch.long, device=device)
        hidden = self.model.language_model(inputs_embeds=tokens, position_ids=positions, use_cache=False)
        score: Tensor = self.head(hidden.last_hidden_state)[:, -1, 0]
        return score


class ClipH(nn.Module):
    """Pixels to a similarity as CLIP-ViT-H/14 gives it (laion/CLIP-ViT-H-14-laion2B-s32B-b79K): PickScore, HPSv2."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import CLIPConfig, CLIPModel

        both = dict(hidden_act="gelu", projection_dim=1024, num_attention_heads=16)
        text = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, **both)
        vision = dict(hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, patch_size=14, **both)
        self.model = CLIPModel(CLIPConfig(projection_dim=1024, text_config=text, vision_config=vision))

    def forward(self, pixels: Tensor) -> Tensor:
        picture = F.interpolate(pixels, (224, 224), mode="bicubic")
        words = torch.empty(1, 77, dtype=torch.long, device=pixels.device)
        seen = self.model.get_image_features(picture).pooler_output
        read = self.model.get_text_features(words).pooler_output
        similarity: Tensor = (F.normalize(seen) * F.normalize(read)).sum(dim=-1)
        return similarity


class Sd3Text(nn.Module):
    """The text encoders of SD3.5: CLIP-L and CLIP-G at 77 tokens, T5-XXL at its own length."""

    def __init__(self, t5_tokens: int) -> None:
        super().__init__()
        from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

        small = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
        large = dict(hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20)
        self.clips = nn.ModuleList(CLIPTextModelWithProjection(CLIPTextConfig(**one)) for one in (small, large))
        sizes = dict(d_model=4096, d_ff=10240, d_kv=64, num_heads=64, num_layers=24)
        self.t5 = T5EncoderModel(T5Config(**sizes, feed_forward_proj="gated-gelu"))
        self.t5_tokens = t5_tokens

    def forward(self, device: torch.device) -> Tensor:
        words = torch.empty(1, 77, dtype=torch.long, device=device)
        for clip in self.clips:
            clip(words)
        states: Tensor = self.t5(torch.empty(1, self.t5_tokens, dtype=torch.long, device=device)).last_hidden_state
        return states
