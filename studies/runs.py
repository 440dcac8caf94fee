"""What the studies share: runs that are made once."""

from __future__ import annotations

import json

from dina_lrm.alignment import AlignConfig, Aligner
from dina_lrm.errors import ConfigError

__all__ = ["align_once"]


def align_once(config: AlignConfig) -> None:
    """Make a run, or go on with it, unless it is finished.

    Args:
        config: of the run.

    Raises:
        ConfigError: a finished run of other settings lies where this one would.
    """
    if not (config.out / "adapter").is_dir():
        print(config.out.name, flush=True)
        Aligner(config).run(resume="auto")
    elif json.loads((config.out / "config.json").read_text(encoding="utf-8")) != config.model_dump(mode="json"):
        raise ConfigError(f"{config.out} was run with other settings than the study has now; remove that folder")
