# Ray reads the annotation of `fleet` as it stands, so annotations are not put off here.
"""A fleet of reward servers under Ray Serve: the same routes, as many replicas as there are machines for.

    serve run dina_lrm.launch.fleet:fleet model=MODEL base=BASE replicas=4 num_gpus=1

Ray places replicas, sends each request to one of them, restarts what dies and drains what leaves. Within a replica stands
the whole server, so batches, queues, limits and keys are those of `dina-lrm serve`.
"""

import os
from collections.abc import Callable

from fastapi import FastAPI
from pydantic import Field
from ray import serve
from ray.serve import Application

from dina_lrm.config import Config
from dina_lrm.errors import WorkError
from dina_lrm.serve.app import create_app
from dina_lrm.serve.models import ModelPool, ModelSource
from dina_lrm.serve.observer import Observer
from dina_lrm.serve.settings import KEYS_VARIABLE, ServeSettings, read_keys

__all__ = ["FleetSettings", "fleet"]


class FleetSettings(Config):
    """What `serve run` may be told, as `name=value`.

    API keys come from the environment variable of `dina-lrm serve`, where the fleet is started.

    Attributes:
        model: model folder or hub id, to be had on every machine of the cluster.
        base: of the base pipeline; None takes the one that the model names.
        revision: of the model's hub repository.
        name: to serve the model by.
        dtype: of the base weights.
        device: in torch's words; None takes cuda where a replica has a GPU, else cpu.
        replicas: how many.
        num_gpus: of each replica; a fraction shares one.
        num_cpus: of each replica.
        max_batch_size: noised states in one forward pass.
        max_wait_ms: how long a state waits for others to join it.
        max_queue: states that may wait in a replica; beyond it requests are refused with 429.
        no_auth: serve without API keys although other machines can reach the fleet.
    """

    model: str
    base: str | None = None
    revision: str | None = None
    name: str = "default"
    dtype: str = "float32"
    device: str | None = None
    replicas: int = Field(1, ge=1)
    num_gpus: float = Field(0.0, ge=0)
    num_cpus: float = Field(1.0, gt=0)
    max_batch_size: int = Field(8, ge=1)
    max_wait_ms: float = Field(10.0, ge=0)
    max_queue: int = Field(512, ge=1)
    no_auth: bool = False

    def source(self) -> ModelSource:
        """Where the model is and goes."""
        device = self.device or ("cuda" if self.num_gpus else "cpu")
        return ModelSource(self.model, self.base, self.revision, self.dtype, device)

    def server(self) -> ServeSettings:
        """Settings of each replica's server.

        Raises:
            ConfigError: no API keys, and nobody said that none are wanted.
        """
        return ServeSettings(
            host="0.0.0.0",  # Ray's proxy listens, on every machine of the cluster
            max_batch_size=self.max_batch_size,
            max_wait_ms=self.max_wait_ms,
            max_queue=self.max_queue,
            api_keys=read_keys(os.environ.get(KEYS_VARIABLE, ""), ","),
            no_auth=self.no_auth,
        ).guarded()


def fleet(settings: FleetSettings) -> Application:
    """A Ray Serve application; `serve.run(fleet(FleetSettings(model=...)))` starts it from Python.

    Args:
        settings: what each replica serves, and how many there are.

    Returns:
        The application.

    Raises:
        ConfigError: no API keys, and nobody said that none are wanted.
    """
    server = settings.server()
    replica = serve.deployment(
        num_replicas=settings.replicas,
        # More than the queue holds, so that the replica itself says 429 and for how long.
        max_ongoing_requests=2 * settings.max_queue,
        graceful_shutdown_timeout_s=server.drain_timeout,
        ray_actor_options={"num_gpus": settings.num_gpus, "num_cpus": settings.num_cpus},
    )(_replica(settings, server))
    return replica.bind()


def _replica(settings: FleetSettings, server: ServeSettings) -> type:
    """The class that Ray starts: a server that has loaded its model before it is called ready."""
    pools: list[ModelPool] = []

    def build() -> FastAPI:
        pool = ModelPool(
            Observer(),
            max_batch_size=server.max_batch_size,
            max_wait_ms=server.max_wait_ms,
            max_queue=server.max_queue,
        )
        pool.add(settings.name, settings.source().load())
        pools.append(pool)
        return create_app(pool, server)

    ingress: Callable[[type], type] = serve.ingress(build)

    class RewardReplica:
        """One server of the fleet."""

        def check_health(self) -> None:
            """Ray asks now and then, and replaces a replica whose worker is beyond help.

            Raises:
                WorkError: it is.
            """
            if any(pool.status == "failed" for pool in pools):
                raise WorkError("the model's worker cannot go on; the replica is to be replaced")

    return ingress(RewardReplica)
