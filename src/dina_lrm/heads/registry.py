"""Heads by name. A third party adds one by the entry point group `dina_lrm.heads`, which names its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Annotated, Any

from pydantic import Field, SerializeAsAny, ValidatorFunctionWrapHandler, WrapValidator

from dina_lrm.heads.base import HeadConfigBase
from dina_lrm.heads.mean_pool import MeanPoolHeadConfig
from dina_lrm.heads.query import QueryHeadConfig

_OWN: dict[str, type[HeadConfigBase]] = {"mean_pool": MeanPoolHeadConfig, "query": QueryHeadConfig}


def available_heads() -> dict[str, str]:
    """Name to `module:class` of the configuration, ours and those of installed packages."""
    theirs = {point.name: point.value for point in entry_points(group="dina_lrm.heads")}
    ours = {name: f"{config.__module__}:{config.__name__}" for name, config in _OWN.items()}
    return dict(sorted({**theirs, **ours}.items()))


def _third_party(value: Any, ours: ValidatorFunctionWrapHandler) -> Any:
    """Our kinds are the union's to judge; the configuration of another comes from the package that brings it."""
    kind = value.get("kind") if isinstance(value, Mapping) else None
    if kind is not None and kind not in _OWN:
        for point in entry_points(group="dina_lrm.heads", name=str(kind)):
            config: type[HeadConfigBase] = point.load()
            return config.model_validate(value)
        raise ValueError(f"kind must be one of {', '.join(available_heads())}, got {kind!r}")
    if isinstance(value, HeadConfigBase) and type(value) not in _OWN.values():
        return value
    return ours(value)


_Ours = Annotated[QueryHeadConfig | MeanPoolHeadConfig, Field(discriminator="kind")]
HeadConfig = Annotated[SerializeAsAny[_Ours], WrapValidator(_third_party)]
