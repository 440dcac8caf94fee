"""A backbone that stands on a diffusers pipeline: what all of them share, whatever their network.

The forward pass is never rewritten. A subclass says how its network is cut and called, where it is read, and how its
pipeline encodes prompts; loading, sharing, VAE, checks and signature stand here.
"""

from __future__ import annotations

import copy
import inspect
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from diffusers import AutoModel, DiffusionPipeline
from torch import Tensor

from dina_lrm.backbones.base import Backbone, BackboneConfig
from dina_lrm.backbones.cut import tell_of_cut, tokens_of
from dina_lrm.backbones.encoders import Encoders, quiet, reasons, require_tokenizers, untouched
from dina_lrm.backbones.loading import cast, load_network, load_scheduler, read_network_config, variant_of
from dina_lrm.backbones.network import NetworkFacts, sampler_levels
from dina_lrm.backbones.sharing import adapters_off, give_own_storage, shared, unwrapped, without_storage
from dina_lrm.backbones.tape import Reading, Tape, record
from dina_lrm.errors import BaseMismatchError, ConfigError, InputError, ShapeError, ValueRangeError
from dina_lrm.noise import ForwardProcess, RectifiedFlow
from dina_lrm.runtime.hub import read_json
from dina_lrm.runtime.memory import peak_bytes
from dina_lrm.types import Conditioning, Features, NoisedState


def name_of(pipeline: Any) -> str:
    """Where a loaded pipeline came from; one that was put together in Python came from nowhere."""
    return getattr(pipeline.config, "_name_or_path", None) or f"a loaded {type(pipeline).__name__}"


class PipelineBackbone(Backbone):
    """The first blocks of a pipeline's network, with the pipeline's VAE and text encoders.

    Text encoders and VAE are loaded when first asked for; with embeddings and latents at hand they never are.
    """

    pipeline_class: ClassVar[Any]
    network_class: ClassVar[Any]
    part: ClassVar[str] = "transformer"
    process: ForwardProcess = RectifiedFlow()
    latent_axes: ClassVar[int] = 4
    vae_factor: ClassVar[int] = 8
    unused_parts: ClassVar[dict[str, None]] = {}  # of the pipeline; what encodes text works without them
    optional_encoders: ClassVar[tuple[str, ...]] = ()
    long_tokenizer: ClassVar[str] = "tokenizer"  # of the text encoder that max_sequence_length is about

    def __init__(
        self,
        config: BackboneConfig,
        network: Any,
        base: str | DiffusionPipeline,
        name: str,
        revision: str | None = None,
    ) -> None:
        super().__init__()
        self.config, self.base, self.revision = config, name, revision
        self._source = base
        self._sizes: Any = network.config
        self.facts = self.read_facts(network.config)
        self._footprints: dict[tuple[Any, ...], int] = {}
        # Not submodules: what is done to this module (moving, train mode) is not done to encoders, least of all a caller's.
        self._encoders = Encoders(vae=None if isinstance(base, str) else base.vae)
        self.network = network.requires_grad_(config.weights == "own")
        self.width, self.temb_width = self.facts.width, self.facts.temb_width
        self.latent_channels = self.facts.latent_channels
        if config.adapter is not None:
            self.add_adapter(config.adapter)

    @classmethod
    @abstractmethod
    def read_facts(cls, sizes: Any) -> NetworkFacts:
        """The network's config in our words."""

    @classmethod
    def check_pipeline(cls, settings: Mapping[str, Any]) -> None:
        """Refuse what `model_index.json` says, where it says something that this backbone cannot read.

        Raises:
            BaseMismatchError: with the reason.
        """

    @classmethod
    @abstractmethod
    def cut(cls, network: Any, config: BackboneConfig) -> None:
        """Drop, in place, the blocks after the last tap and the output layers."""

    @abstractmethod
    def readings(self) -> list[Reading]:
        """Where to read `image.TAP`, `text.TAP` and `temb` while the network runs."""

    @abstractmethod
    def run(self, state: NoisedState, conditioning: Conditioning) -> Any:
        """Call the network as its own pipeline does; sigma becomes the timestep here and only here.

        Returns:
            The output of the network's last layer, which means something only where nothing was cut.
        """

    @abstractmethod
    def encode(self, pipeline: Any, prompts: list[str], length: int) -> Conditioning:
        """Ask the pipeline's own text encoders, at most `length` tokens of the long one."""

    def flow(self, output: Any, state: NoisedState) -> Tensor:
        """The network's output as a velocity `[b c h w]`; a `ConfigError` where it was trained to predict something else."""
        raise ConfigError(f"{type(self).__name__} predicts no velocity; a generator must be a flow-matching model")

    @classmethod
    def check_taps(cls, config: BackboneConfig, sizes: Any) -> None:
        """Refuse taps that the network does not have.

        Raises:
            ConfigError: naming the first.
        """
        depth, num_blocks = config.depth, cls.read_facts(sizes).num_blocks
        if depth > num_blocks:
            raise ConfigError(f"taps reach block {depth}, but the base has {num_blocks}; use taps up to {num_blocks}")

    @classmethod
    def load(
        cls,
        config: BackboneConfig,
        base: str | DiffusionPipeline,
        dtype: torch.dtype = torch.float32,
        revision: str | None = None,
        random_seed: int | None = None,
        whole: bool = False,
    ) -> Self:
        """From a pipeline folder, a hub id or a loaded pipeline, which is left as it was.

        Of a folder or hub id only the kept weights are read. A loaded pipeline of the same dtype is shared: its weights
        are used in place, its adapters stay its own. Of another dtype, or with `weights="own"`, the kept part is copied.

        Args:
            config: what to keep and to read.
            base: where the pretrained network comes from.
            dtype: of the base weights.
            revision: of the hub repository; text encoders, VAE and scheduler are of the same.
            random_seed: a seed gives the same network with random weights instead: the control of an experiment.
            whole: keep every block and the output layers, for `velocity`.

        Raises:
            InputError: nothing that diffusers can load is there.
            BaseMismatchError: a pipeline of another kind.
            ConfigError: taps that the network does not have.
        """

        def cut(network: Any) -> None:
            cls.check_taps(config, network.config)
            if not whole:
                cls.cut(network, config)

        if isinstance(base, str):
            name, sizes = base, cls.read_sizes(base, revision)
            network = None
        elif not isinstance(base, DiffusionPipeline):
            raise InputError(
                f"base must be a folder, a hub id or a loaded diffusers pipeline, got {type(base).__name__}"
            )
        else:
            cls.check_pipeline(dict(base.config))
            name = name_of(base)
            network = cls.network_of(base)
            sizes = dict(network.config)
        if random_seed is not None:
            with torch.random.fork_rng():
                torch.manual_seed(random_seed)
                network = cls.network_class.from_config(sizes)
            cut(network)
            cast(network, dtype)
        elif network is None:
            network = load_network(cls.network_class, sizes, cut, name, cls.part, dtype, revision)
        else:
            network = shared(network)
            cut(network)
            cast(network, dtype)
            if config.weights == "own":
                give_own_storage(network)
        return cls(config, network.eval(), base, name, revision)

    @classmethod
    def network_of(cls, pipeline: Any) -> Any:
        """The network of a loaded pipeline, out of whatever wraps it.

        Raises:
            BaseMismatchError: a pipeline of another kind.
        """
        network = getattr(pipeline, cls.part, None)
        if network is not None:
            network = unwrapped(network)
        if not isinstance(network, cls.network_class):
            raise BaseMismatchError(
                f"this backbone needs a {cls.pipeline_class.__name__} with a {cls.network_class.__name__}, got a "
                f"{type(pipeline).__name__} whose {cls.part} is {type(network).__name__}; give the pipeline that the model "
                "was made for"
            )
        return network

    @classmethod
    def read_sizes(cls, base: str, revision: str | None) -> dict[str, Any]:
        """The network's config in a pipeline folder or hub id.

        Raises:
            InputError: out of reach, or no diffusers pipeline.
            BaseMismatchError: a pipeline of another kind.
        """
        index = read_json(base, "model_index.json", revision)
        if index is None:
            raise InputError(
                f"base {base!r} has no model_index.json: it is no diffusers pipeline; "
                f"name the folder or hub id of a {cls.pipeline_class.__name__}"
            )
        if cls.part not in index:
            raise BaseMismatchError(
                f"base {base!r} is a {index.get('_class_name')}, this backbone needs a {cls.pipeline_class.__name__}"
            )
        cls.check_pipeline(index)
        return read_network_config(base, cls.part, cls.network_class, revision)

    def features(self, state: NoisedState, conditioning: Conditioning) -> Features:
        return self.read(*self._taken(state, conditioning))

    def velocity(self, state: NoisedState, conditioning: Conditioning) -> Tensor:
        """What the whole network predicts, `d x / d sigma = noise - latents`; differentiable in all it depends on.

        Args:
            state: noised latents.
            conditioning: of each.

        Returns:
            `[b c h w]`, float32, or float64 if the network is.

        Raises:
            ConfigError: the network was trained to predict something else.
        """
        velocity = self.flow(self.run(*self._taken(state, conditioning)), state)
        return velocity.float() if velocity.itemsize < 4 else velocity  # steps add up differences that half loses

    def _taken(self, state: NoisedState, conditioning: Conditioning) -> tuple[NoisedState, Conditioning]:
        """Checked, in the network's dtype; sigma and the mask stay as they are."""
        self.check(state, conditioning)
        dtype = self.dtype
        return NoisedState(state.noised_latents.to(dtype), state.sigma), conditioning.to(dtype=dtype)

    def read(self, state: NoisedState, conditioning: Conditioning) -> Features:
        """Run the network and read the taps; `features` without its checks and casts."""
        with record(self.readings()) as tape:
            self.run(state, conditioning)
        return self.read_tape(tape, state, conditioning)

    def read_tape(self, tape: Tape, state: NoisedState, conditioning: Conditioning) -> Features:
        """What was written while the network ran, as features."""
        return Features(
            tuple(tape[f"image.{tap}"] for tap in self.config.image_taps),
            tuple(tape[f"text.{tap}"] for tap in self.config.text_taps),
            tape["temb"],
            conditioning.prompt_mask,
        )

    def check(self, state: NoisedState, conditioning: Conditioning) -> None:
        self.facts.check(state, conditioning, self.latent_axes)

    def encode_prompts(self, prompts: Sequence[str], max_sequence_length: int | None = None) -> Conditioning:
        if isinstance(prompts, str) or not prompts or not all(isinstance(p, str) for p in prompts):
            raise ValueRangeError(f"prompts must be a list of one or more strings, got {prompts!r}")
        length = self.config.max_sequence_length if max_sequence_length is None else max_sequence_length
        pipeline = self._text_pipeline()
        tokenizer, room = self.reader(pipeline, length)
        # CLIP's positions are all that there are, whatever length is asked for.
        more_helps = self.reader(pipeline, length + 1 + max(room, 1))[1] > room
        for prompt in prompts:
            tell_of_cut(tokenizer, room, prompt, length, more_helps)
        encoders = [part for name, part in pipeline.components.items() if name.startswith("text_encoder")]
        with torch.no_grad(), quiet(self.pipeline_class.__module__), adapters_off(encoders):
            # A list of its own: some pipelines write into the one they are given.
            encoded = self.encode(pipeline, list(prompts), length)
        return encoded.to(self.device)

    def cut_prompts(self, prompts: Sequence[str]) -> list[bool]:
        tokenizer, room = self.reader(self._text_pipeline(), self.config.max_sequence_length)
        return [len(tokens_of(tokenizer, prompt)) > room for prompt in prompts]

    def meta_twin(self) -> Self:
        """The same backbone with the shapes of its weights and none of their storage: what costs are counted on."""
        twin = copy.copy(self)
        twin._modules = {"network": without_storage(self.network)}
        return twin

    def example(
        self, latents_shape: Sequence[int], prompt_length: int, batch: int = 1
    ) -> tuple[NoisedState, Conditioning]:
        """A state and a prompt of the given sizes, without storage, in the network's dtype."""
        facts, dtype = self.facts, self.dtype
        latents = torch.empty(batch, *latents_shape, device="meta", dtype=dtype)
        embeds = torch.empty(batch, prompt_length, facts.prompt_width, device="meta", dtype=dtype)
        pooled = None
        if facts.pooled_width is not None:
            pooled = torch.empty(batch, facts.pooled_width, device="meta", dtype=dtype)
        return NoisedState(latents, torch.empty(batch, device="meta")), Conditioning(embeds, pooled)

    def activation_bytes(self, latents_shape: Sequence[int], prompt_length: int, with_gradient: bool = False) -> int:
        """Peak bytes of activations of one state's features, counted, not measured; parameters are not in it.

        Args:
            latents_shape: of one sample, without the batch axis.
            prompt_length: tokens of `prompt_embeds`.
            with_gradient: keep what a gradient to the latents needs.
        """
        merged = self._merged_adapter is not None
        key = (tuple(latents_shape), prompt_length, with_gradient, merged)
        if key not in self._footprints:
            twin = self.meta_twin()
            state, conditioning = self.example(latents_shape, prompt_length)
            state.noised_latents.requires_grad_(with_gradient)
            with torch.set_grad_enabled(with_gradient):
                self._footprints[key] = peak_bytes(lambda: twin.read(state, conditioning))
        return self._footprints[key]

    def reader(self, pipeline: Any, length: int) -> tuple[Any, int]:
        """The tokenizer of the text encoder that reads furthest, and how many tokens of a prompt it reads."""
        tokenizer = getattr(pipeline, self.long_tokenizer)
        return tokenizer, length - int(tokenizer.num_special_tokens_to_add())

    def encode_images(self, pixels: Tensor) -> Tensor:
        multiple = self.image_multiple
        axes = "y x" if self.latent_axes == 4 else "f y x"
        if pixels.ndim != self.latent_axes or pixels.shape[1] != 3 or any(s % multiple for s in pixels.shape[-2:]):
            raise ShapeError(
                f"pixels must be [b 3 {axes}] with sides that are multiples of {multiple}, got {list(pixels.shape)}"
            )
        if not (pixels.min() >= 0 and pixels.max() <= 1):
            raise ValueRangeError(
                f"pixels must lie in 0..1, got {pixels.min().item():g} to {pixels.max().item():g}; divide bytes by 255"
            )
        vae = self._autoencoder()
        with torch.no_grad():
            encoded = vae.encode(self.to_vae(pixels * 2 - 1).to(vae.device, vae.dtype))
        latents: Tensor = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
        shift, scale = self.shift_and_scale(latents.float())
        # Float32, whatever the VAE's: noise is added to it.
        return self.from_vae((latents.float() - shift) * scale).to(self.device)

    def decode_latents(self, latents: Tensor) -> Tensor:
        vae = self._autoencoder()
        standard = self.to_vae(latents)
        shift, scale = self.shift_and_scale(standard)
        raw = (standard / scale + shift).to(vae.device, vae.dtype)
        # A caller's VAE may have weights that ask for gradients; only latents that do make a graph.
        with torch.set_grad_enabled(torch.is_grad_enabled() and latents.requires_grad):
            pixels: Tensor = self.from_vae(vae.decode(raw, return_dict=False)[0])
        return (pixels / 2 + 0.5).clamp(0, 1).to(self.device)

    def to_vae(self, tensor: Tensor) -> Tensor:
        """Pixels or latents in the rank that the VAE takes."""
        return tensor

    def from_vae(self, tensor: Tensor) -> Tensor:
        """And back."""
        return tensor

    def shift_and_scale(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """`latents = (raw - shift) * scale`, one pair of numbers or one a channel."""
        config = self._autoencoder().config
        mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
        if mean is not None and std is not None:
            axes = [1, -1, *[1] * (like.ndim - 2)]
            return torch.tensor(mean).view(axes).to(like), 1 / torch.tensor(std).view(axes).to(like)
        shift = getattr(config, "shift_factor", None) or 0.0
        return torch.tensor(shift).to(like), torch.tensor(config.scaling_factor).to(like)

    def schedule_sigmas(self) -> Tensor:
        sigmas: Tensor = self.scheduler().sigmas
        return sigmas

    def sampler_sigmas(self, num_steps: int, latents_shape: Sequence[int]) -> Tensor:
        """The noise levels that the pipeline samples at.

        Args:
            num_steps: network evaluations.
            latents_shape: of one sample `(c, h, w)`; where levels are shifted by the picture's size.

        Returns:
            `[num_steps + 1]`, falling, the last 0.

        Raises:
            ConfigError: the scheduler is not one of flow matching.
            ValueRangeError: no steps.
        """
        return sampler_levels(self.scheduler(), self.set_levels, num_steps, latents_shape, self.facts.latent_multiple)

    def set_levels(self, scheduler: Any, num_steps: int, settings: dict[str, Any]) -> None:
        """Set a scheduler as the pipeline does before it samples."""
        scheduler.set_timesteps(num_steps, **settings)

    def scheduler(self) -> Any:
        """The base's scheduler as it stands before any sampling."""
        if not isinstance(self._source, str):
            return type(self._source.scheduler).from_config(self._source.scheduler.config)
        return load_scheduler(self._source, self.revision)

    def drop_encoders(self) -> None:
        if isinstance(self._source, str):
            self._encoders = Encoders()

    def drop_text_encoders(self) -> None:
        """Let go of the text encoders; a caller's own stay theirs, and both come back when prompts are asked for."""
        self._encoders.pipeline = None

    def signature(self) -> dict[str, Any]:
        facts = self.facts
        probe = self.network.get_parameter(facts.probe).detach().float().flatten()[:8]
        told = {
            "class": self.network_class.__name__,
            "width": facts.width,
            "num_layers": facts.num_blocks,
            "latent_channels": facts.latent_channels,
            "prompt_embeds_width": facts.prompt_width,
            "pooled_prompt_embeds_width": facts.pooled_width,
            "probe": [round(v, 6) for v in probe.tolist()],
        }
        return {name: value for name, value in told.items() if value is not None} | self._vae_signature()

    def _vae_signature(self) -> dict[str, Any]:
        """How the base's VAE scales latents: weights of one model under another's scale score nonsense."""
        if isinstance(self._source, str):
            config: Any = read_json(self._source, "vae/config.json", self.revision) or {}
        else:
            config = {} if self._encoders.vae is None else dict(self._encoders.vae.config)
        names = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")
        return {f"vae_{name}": config[name] for name in names if config.get(name) is not None}

    @property
    def image_multiple(self) -> int:
        return self.vae_factor * self.facts.latent_multiple

    @property
    def native_size(self) -> int:
        return self.vae_factor * self.facts.native_latent_side

    def _text_pipeline(self) -> Any:
        if self._encoders.pipeline is None:
            if isinstance(self._source, str):
                require_tokenizers(self._source, self.revision)
                parts = {self.part: self.network, "vae": None, **self.unused_parts}
                with reasons(f"text encoders of base {self.base!r}"):
                    pipeline = self.pipeline_class.from_pretrained(
                        self._source,
                        **parts,
                        dtype=self.dtype,
                        revision=self.revision,
                        use_safetensors=True,
                        variant=variant_of(self._source, "text_encoder", self.revision, "model"),
                    )
                for name, component in pipeline.components.items():
                    if name.startswith("text_encoder") and component is not None:
                        component.to(self.device)
            else:
                # A wrapper of our own around the caller's encoders: nothing of the caller's is written to.
                # A sibling class (image-to-image, say) may have parts that this one does not take.
                taken = inspect.signature(self.pipeline_class.__init__).parameters
                parts = {name: untouched(part) for name, part in self._source.components.items() if name in taken}
                pipeline = self.pipeline_class(**{**parts, self.part: self.network})
            for name, component in pipeline.components.items():
                if component is None and name.startswith("text_encoder") and name not in self.optional_encoders:
                    raise InputError(f"base {self.base!r} has no {name}; give conditioning instead of prompts")
            self.prepare(pipeline)
            self._encoders.pipeline = pipeline
        return self._encoders.pipeline

    def prepare(self, pipeline: Any) -> None:
        """Put right what a pipeline's own loading leaves unset."""

    def _autoencoder(self) -> Any:
        held = self._encoders
        if held.vae is None:
            if not isinstance(self._source, str):
                raise InputError(
                    f"the pipeline given as base ({self.base}) has no VAE; give latents instead of pictures"
                )
            with reasons(f"VAE of base {self.base!r}"):
                held.vae = AutoModel.from_pretrained(
                    self._source,
                    subfolder="vae",
                    dtype=torch.float32,
                    revision=self.revision,
                    use_safetensors=True,
                    variant=variant_of(self._source, "vae", self.revision),
                )
            held.vae = held.vae.to(self.device).requires_grad_(False).eval()
        elif getattr(held.vae.config, "force_upcast", False) and held.vae.dtype == torch.float16:
            held.vae = cast(shared(held.vae), torch.float32)  # it overflows in half; the caller's stays as it is
        return held.vae
