"""What a server says when it cannot answer, each with the time after which asking again makes sense.

WorkError
├── UnavailableError        not now: try again after `retry_after` seconds
│   ├── QueueFullError      as many states are accepted as the queue holds
│   ├── LoadingError        the model is still being loaded
│   ├── DrainingError       the model accepts nothing more: the server or the model is being stopped
│   └── WorkerError         whoever reads states for the model has died
└── DeadlineError           the request's own time is up
InputError
├── UnknownModelError       no model of that name is served
└── NameTakenError          a model of that name is there already
"""

from __future__ import annotations

from dina_lrm.errors import InputError, WorkError


class UnavailableError(WorkError):
    """It cannot be answered now.

    Attributes:
        retry_after: seconds after which it may be.
    """

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class QueueFullError(UnavailableError):
    """The queue holds no more states."""


class LoadingError(UnavailableError):
    """The model is being loaded."""


class DrainingError(UnavailableError):
    """Accepted work is finished, and no other is accepted."""


class WorkerError(UnavailableError):
    """The thread that reads states for a model has died."""


class DeadlineError(WorkError):
    """The request's time is up, and its work was dropped."""


class UnknownModelError(InputError):
    """No model of that name is served."""


class NameTakenError(InputError):
    """A model of that name is served, or being loaded."""
