"""What the tests of the server share."""

from __future__ import annotations

import logging

import pytest


@pytest.fixture
def heard(caplog, monkeypatch):
    """The server's log, whoever configured it before in this process, heard at its source."""
    logger = logging.getLogger("dina_lrm.serve")
    monkeypatch.setattr(logger, "handlers", [caplog.handler])
    monkeypatch.setattr(logger, "propagate", False)
    for name, one in logging.Logger.manager.loggerDict.items():
        if name.startswith(logger.name) and isinstance(one, logging.Logger):
            monkeypatch.setattr(one, "disabled", False)
    return caplog
