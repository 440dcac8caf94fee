"""Every error this package raises on purpose.

    DinaError
    ├── InputError              the caller's input is wrong: the command line exits 2
    │   ├── ShapeError          a tensor has the wrong shape, dtype or count
    │   ├── ValueRangeError     a number lies outside what is accepted, or is not finite
    │   ├── ConfigError         a configuration has an unknown key or a value of the wrong kind
    │   ├── ImageError          a picture cannot be read
    │   ├── BaseUnavailableError    the base pipeline, or a part of it, cannot be had
    │   ├── DataError           a data folder, shard or table is missing, corrupt or of another schema
    │   └── CheckpointError     a model folder is missing, corrupt, incomplete or not a model
    │       └── BaseMismatchError   the base pipeline is not the one the checkpoint was trained on
    └── WorkError               the work itself failed (diverged training, say): the command line exits 1
        └── NoAnswerError           a server gave no answer within the time and the tries that were allowed

    PromptCutWarning            a UserWarning: a prompt is longer than the model reads, and what was cut

Each message names the value, what was expected and the fix, in one sentence or two.
"""

from __future__ import annotations


class DinaError(Exception):
    """Base of all errors of this package."""


class InputError(DinaError, ValueError):
    """The input is wrong; nothing was lost."""


class ShapeError(InputError):
    """A tensor has the wrong shape, dtype or count."""


class ValueRangeError(InputError):
    """A number lies outside what is accepted, or is not finite."""


class ConfigError(InputError):
    """A configuration has an unknown key or a value of the wrong kind."""


class ImageError(InputError):
    """A picture cannot be read."""


class BaseUnavailableError(InputError):
    """The base pipeline, or a part of it, cannot be had: it is out of reach or incomplete."""


class DataError(InputError):
    """A data folder, shard or table is missing, corrupt or of another schema."""


class CheckpointError(InputError):
    """A model folder is missing, corrupt, incomplete or not a model."""


class BaseMismatchError(CheckpointError):
    """The base pipeline is not the one that the checkpoint was trained on."""


class WorkError(DinaError, RuntimeError):
    """The work failed although its input was accepted."""


class NoAnswerError(WorkError):
    """A server gave no answer; asking it for less would not help."""


class PromptCutWarning(UserWarning):
    """A prompt is longer than the model reads; the message says what was cut."""
