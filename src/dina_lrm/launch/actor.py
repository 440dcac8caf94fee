"""A reward as a Ray actor: the model in a process and on a device of its own, asked as if it stood here.

    reward = reward_actor("runs/demo/model", num_gpus=1)        # a RewardFunction
    {"kind": "factory", "make": "dina_lrm.launch.actor:reward_actor", "reads": "latents", "options": {"model": "..."}}

Wrong input is the `InputError` that the model raises. An actor that died, restarts or is too slow is a `NoAnswerError`: whoever
asks may wait and ask again. Ray starts it anew, `max_restarts` times; it then loads its model at the first question.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import update_wrapper
from inspect import signature
from typing import Any, Concatenate, Literal, ParamSpec, TypeAlias, TypeVar

import torch
from torch import Tensor

from dina_lrm.errors import ConfigError, DinaError, NoAnswerError, WorkError
from dina_lrm.scoring.protocol import RewardFunction
from dina_lrm.scoring.reward_model import RewardModel
from dina_lrm.types import TensorRecord

__all__ = ["Answered", "Asked", "RewardActor", "reward_actor"]

T = TypeVar("T")
P = ParamSpec("P")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
NAMESPACE = "dina-lrm"


@dataclass(frozen=True)
class Answered:
    """What comes back from an actor: also errors and warnings are values, for Ray would dress them up.

    Attributes:
        value: the model's answer, on the CPU; or what it raised.
        told: warnings of the model, such as of prompts that were cut.
    """

    value: Any
    told: tuple[Warning, ...] = ()


Call: TypeAlias = Callable[[str, tuple[Any, ...], Mapping[str, Any]], Answered]


class Asked:
    """What stands in the actor: a model that is loaded when it is first needed."""

    def __init__(self, load: Callable[[], RewardModel]) -> None:
        self._load = load
        self._model: RewardModel | None = None

    def ask(self, verb: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Answered:
        """Ask the model, whatever comes of it.

        Args:
            verb: a method of `RewardModel`; "ready" only loads.
            args: of it.
            kwargs: of it.
        """
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                value = self._answer(verb, args, kwargs)
            except DinaError as error:
                value = error
            except Exception as error:
                # Of its class there may be nothing where it goes.
                value = WorkError(f"the reward actor failed: {type(error).__name__}: {error}")
        return Answered(value, tuple(one.message for one in caught if isinstance(one.message, Warning)))

    @torch.no_grad()
    def _answer(self, verb: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if self._model is None:
            self._model = self._load()
        if verb == "ready":
            return True
        return _mapped(getattr(self._model, verb)(*args, **_encoded_once(self._model, kwargs)), _on_cpu)


def _encoded_once(model: RewardModel, kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    """A group of samples names its prompt once a sample: it is encoded once."""
    prompts = kwargs.get("prompts")
    if not isinstance(prompts, list | tuple) or not all(isinstance(prompt, str) for prompt in prompts):
        return kwargs
    places = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
    if len(places) == len(prompts) or kwargs.get("conditioning") is not None:
        return kwargs
    encoded = model.encode_prompts(list(places))
    rows = torch.tensor([places[prompt] for prompt in prompts], device=encoded.prompt_embeds.device)
    return {**kwargs, "prompts": None, "conditioning": encoded[rows]}


def _mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Its tensors changed, wherever they stand in a record."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, TensorRecord):
        return value.map(function)
    held = vars(value) if type(value).__module__ == "dina_lrm.types" else {}
    changed = {name: _mapped(part, function) for name, part in held.items()}
    return replace(value, **changed) if changed else value


def _on_cpu(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu()


def _sent(tensor: Tensor) -> Tensor:
    if tensor.requires_grad and torch.is_grad_enabled():
        raise ConfigError(
            "what is scored needs a gradient, and none comes back from an actor; give it detached, or score with a "
            "RewardModel in this process"
        )
    return _on_cpu(tensor)


def _asked(method: Callable[Concatenate[RewardModel, P], T]) -> Callable[Concatenate[RewardActor, P], T]:
    """The model's method, asked of the actor."""

    def ask(self: RewardActor, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._ask(method.__name__, args, kwargs)

    named: Any = update_wrapper(ask, method, ("__name__", "__doc__", "__annotations__"))
    named.__qualname__ = f"RewardActor.{method.__name__}"
    named.__signature__ = signature(method)
    return ask


class RewardActor:
    """A `RewardFunction` whose model is in an actor. Results are on the CPU, and no gradient comes back."""

    score = _asked(RewardModel.score)
    score_state = _asked(RewardModel.score_state)
    compare = _asked(RewardModel.compare)
    rank = _asked(RewardModel.rank)
    best_of = _asked(RewardModel.best_of)

    def __init__(self, call: Call) -> None:
        """Args:
        call: brings a question to an `Asked` and its answer back.
        """
        self._call = call

    def ready(self) -> None:
        """Wait until the model is loaded.

        Raises:
            InputError: it cannot be.
            NoAnswerError: the actor is not there.
        """
        self._ask("ready", (), {})

    def _ask(self, verb: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        sent = {name: _mapped(value, _sent) for name, value in kwargs.items()}
        answered = self._call(verb, tuple(_mapped(value, _sent) for value in args), sent)
        for warning in answered.told:
            warnings.warn(warning, stacklevel=3)
        if isinstance(answered.value, Exception):
            raise answered.value
        return answered.value


def reward_actor(
    model: str,
    base: str | None = None,
    *,
    num_gpus: float = 0,
    num_cpus: float = 1,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    revision: str | None = None,
    name: str | None = None,
    max_restarts: int = -1,
    timeout: float = 300.0,
    address: str | None = None,
) -> RewardFunction:
    """Start a reward model as a Ray actor, and wait until it has loaded.

    Args:
        model: folder or hub id, to be had where the actor runs.
        base: folder or hub id of its base; None takes the one that the model names.
        num_gpus: of the actor, which is on the GPU where this is above 0; a fraction shares one.
        num_cpus: of the actor.
        dtype: of the base's weights.
        revision: of the model's hub repository.
        name: under which several processes share one actor; None makes one for this process.
        max_restarts: how often Ray starts it anew when it dies; -1 always.
        timeout: seconds for one question, or for loading; beyond them there is no answer.
        address: of the Ray cluster; None takes the one that this process or its environment is in, or starts one here.

    Returns:
        The actor as a reward function.

    Raises:
        ConfigError: Ray is not installed, or a value that is none.
        InputError: the model cannot be loaded.
        NoAnswerError: the actor did not come up in time.
    """
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ConfigError("a reward actor needs Ray: pip install 'dina-lrm[ray]'") from error
    if dtype not in DTYPES:
        raise ConfigError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    if not ray.is_initialized():
        ray.init(address=address, namespace=NAMESPACE, include_dashboard=False, log_to_driver=False)
    device = "cuda" if num_gpus else "cpu"

    def load() -> RewardModel:
        return RewardModel.from_pretrained(model, base=base, device=device, dtype=DTYPES[dtype], revision=revision)

    options: dict[str, Any] = dict(num_gpus=num_gpus, num_cpus=num_cpus, max_restarts=max_restarts, max_task_retries=0)
    if name is not None:
        options.update(name=name, namespace=NAMESPACE, get_if_exists=True)
    actor = ray.remote(Asked).options(**options).remote(load)

    def call(verb: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Answered:
        try:
            answered: Answered = ray.get(actor.ask.remote(verb, args, kwargs), timeout=timeout)
        except ray.exceptions.RayTaskError as error:
            raise WorkError(f"the reward actor of {model!r} could not take the question: {error}") from error
        except ray.exceptions.RayError as error:
            told = str(error).strip().splitlines() or [""]
            raise NoAnswerError(
                f"the reward actor of {model!r} gave no answer in {timeout:g} s or is not there ({type(error).__name__}: {told[0]})"
            ) from error
        return answered

    found = RewardActor(call)
    found.ready()
    return found
