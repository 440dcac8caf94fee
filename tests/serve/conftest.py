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
    monkeypatch.setattr(logger, "disabled", False)
    return caplog
