"""The model in this process, and the two clients of one that a real server holds, pass one suite."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import torch

from dina_lrm.checkpoint import CalibrationConfig, LevelCalibrationConfig
from dina_lrm.errors import ConfigError, InputError, NoAnswerError, WorkError
from dina_lrm.noise import Adaptive
from dina_lrm.scoring import RewardModel, samples
from dina_lrm.scoring.client import AsyncRewardClient, RewardClient
from dina_lrm.types import NoisedState
from tests.conformance.reward_functions import AnswerSuite, RewardFunctionSuite, agree
from tests.conformance.served import KEY, PATIENCE, served


class Blocking:
    """An asynchronous client, asked from any thread: its loop runs in one of its own."""

    def __init__(self, url: str, **settings: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.client = AsyncRewardClient(url, **settings)

    def _wait(self, asked: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(asked, self._loop).result(PATIENCE)

    def score(self, **ask: Any) -> Any:
        return self._wait(self.client.score(**ask))

    def score_state(self, state: Any, conditioning: Any) -> Any:
        return self._wait(self.client.score_state(state, conditioning))

    def compare(self, **ask: Any) -> Any:
        return self._wait(self.client.compare(**ask))

    def rank(self, **ask: Any) -> Any:
        return self._wait(self.client.rank(**ask))

    def best_of(self, k: int = 1, **ask: Any) -> Any:
        return self._wait(self.client.best_of(k, **ask))

    def close(self) -> None:
        self._wait(self.client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE)
        self._loop.close()


@contextmanager
def dripping(seconds: float) -> Iterator[str]:
    """The url of a server that begins an answer, goes on with a byte now and then, and hangs up after so long."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection, suppress(OSError):
                connection.sendall(b"HTTP/1.1 200 OK\r\nx-slow: ")
                until = time.monotonic() + seconds
                while time.monotonic() < until:
                    connection.sendall(b".")
                    time.sleep(0.02)

        thread = threading.Thread(target=answer)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join(PATIENCE)


@pytest.fixture(scope="module")
def server(golden_model) -> Iterator[str]:
    """The url of a real server with the golden model, which wants a key."""
    with served(golden_model) as url:
        yield url


@pytest.fixture(scope="module")
def calibrated(golden_model) -> RewardModel:
    """The golden model under a calibration whose every number matters, the spread of margins among them."""
    levels = [
        LevelCalibrationConfig(
            sigma=sigma,
            centre=sigma - 0.3,
            spread=0.2 + sigma,
            deviation=0.9 - 0.5 * sigma,
            settled_deviation=0.4 - 0.2 * sigma,
            margin_variance=0.002 + 0.01 * sigma,
            margin_dof=6.0,
        )
        for sigma in (0.1, 0.4, 0.8)
    ]
    return golden_model.with_calibration(
        CalibrationConfig(fitted_on="nothing", kind="logistic", levels=tuple(levels), disagreement=0.5)
    )


@pytest.fixture(scope="module")
def calibrated_server(calibrated) -> Iterator[str]:
    """The url of a real server with it."""
    with served(calibrated) as url:
        yield url


class TestModel(RewardFunctionSuite):
    """In this process."""

    @pytest.fixture
    def function(self, golden_model):
        return golden_model


class RemoteSuite(RewardFunctionSuite):
    """And what only a client must show."""

    def test_a_gradient_is_refused(self, function, latents, text):
        learned = latents.clone().requires_grad_()
        with pytest.raises(ConfigError, match="none comes back over HTTP"):
            function.score(conditioning=text, latents=learned)
        with pytest.raises(ConfigError, match="none comes back over HTTP"):
            function.score_state(NoisedState(learned, torch.full((3,), 0.5)), text)

    @pytest.mark.parametrize("most", [1, 2])
    def test_many_samples_travel_in_parts(self, function, model, latents, text, most, monkeypatch):
        monkeypatch.setattr(samples, "MOST_STATES", most)
        for ask in (
            dict(conditioning=text, latents=latents, draws=2),
            dict(conditioning=text[:1], latents=latents, seed=[4, 5, 6]),
            dict(prompts=["a", "b", "c"], images=torch.rand(3, 3, 64, 64)),
        ):
            agree(function.score(**ask), model.score(**ask))
        for sigma in (torch.full((3,), 0.5), torch.tensor([0.1, 0.5, 1.0])):
            state = NoisedState(latents, sigma)
            agree(function.score_state(state, text), model.score_state(state, text))

    def test_parts_that_are_drawn_unequally_are_padded(self, function, model, latents, text, monkeypatch):
        monkeypatch.setattr(samples, "MOST_BYTES", 1)
        ask = dict(conditioning=text, latents=latents, draws=Adaptive(max_draws=12, standard_error=0.01))
        agree(function.score(**ask), model.score(**ask))

    def test_given_noise_travels_too(self, function, model, cases, latents, text):
        ask = dict(conditioning=text, latents=latents, noise=cases["0.noise"])
        ours = function.score(**ask)
        agree(ours, model.score(**ask))
        assert ours.seed is None


class TestClient(RemoteSuite):
    """Behind HTTP."""

    @pytest.fixture
    def function(self, server):
        with RewardClient(server, api_key=KEY) as client:
            yield client


class TestAsyncClient(RemoteSuite):
    """Behind HTTP, in an event loop."""

    @pytest.fixture
    def function(self, server):
        client = Blocking(server, api_key=KEY)
        yield client
        client.close()

    def test_it_takes_what_the_protocol_names(self, function):
        super().test_it_takes_what_the_protocol_names(function.client)


class TestCalibratedModel(AnswerSuite):
    """Its calibration is in every number that the suite compares."""

    @pytest.fixture
    def model(self, calibrated):
        return calibrated

    @pytest.fixture
    def function(self, calibrated):
        return calibrated

    def test_its_calibration_matters(self, model, golden_model, latents, text):
        ours, theirs = (one.score(conditioning=text, latents=latents) for one in (model, golden_model))
        assert torch.equal(ours.utility, theirs.utility) and not torch.allclose(ours.reward, theirs.reward, atol=0.01)
        ask = dict(conditioning=text[:1], a=latents[0], b=latents[1], draws=Adaptive(9))
        ours, theirs = (one.compare(**ask) for one in (model, golden_model))
        assert abs(ours.probability - theirs.probability) > 0.01 and ours.spent < theirs.spent


class TestClientOfCalibrated(AnswerSuite):
    """Behind HTTP."""

    @pytest.fixture
    def model(self, calibrated):
        return calibrated

    @pytest.fixture(params=[RewardClient, Blocking])
    def function(self, request, calibrated_server):
        client = request.param(calibrated_server, api_key=KEY)
        yield client
        client.close()


def test_a_wrong_key_and_an_unknown_model_are_input_errors(server, cases, golden_conditioning):
    ask = dict(conditioning=golden_conditioning, latents=cases["0.latents"])
    with RewardClient(server, api_key="another") as client, pytest.raises(InputError, match="(?i)key"):
        client.score(**ask)
    with RewardClient(server, api_key=KEY, model="silver") as client, pytest.raises(InputError, match="silver"):
        client.score(**ask)


def test_a_server_that_is_not_there_is_a_work_error(cases, golden_conditioning):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with RewardClient(f"http://127.0.0.1:{port}", retries=1, backoff=0.001) as client:
        with pytest.raises(WorkError, match="no answer in 2 tries: ConnectError"):
            client.score(conditioning=golden_conditioning, latents=cases["0.latents"])
        assert not client.ready()


def test_a_server_that_never_answers_costs_one_deadline(cases, golden_conditioning):
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"http://127.0.0.1:{mute.getsockname()[1]}"
        ask = dict(conditioning=golden_conditioning, latents=cases["0.latents"])
        for kind in (RewardClient, Blocking):
            client = kind(url, timeout=0.3)
            began = time.monotonic()
            with pytest.raises(WorkError, match=r"in 0.3 s"):
                client.score(**ask)
            assert time.monotonic() - began < 0.3 + 5  # of grace for a busy machine
            client.close()


@pytest.mark.parametrize("kind", [RewardClient, Blocking])
def test_a_server_that_drips_its_answer_is_not_waited_for(kind, cases, golden_conditioning):
    ask = dict(conditioning=golden_conditioning, latents=cases["0.latents"])
    with dripping(1.0) as url:
        client = kind(url, timeout=0.2, retries=0)
        with pytest.raises(NoAnswerError, match=r"in 1 try: TimeoutError"):
            client.score(**ask)
        client.close()
