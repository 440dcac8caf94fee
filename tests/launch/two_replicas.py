"""Run by test_fleet.py in a process of its own: two replicas answer, and what they said is printed as JSON."""

from __future__ import annotations

import json
import socket

import ray
import torch
from ray import serve

from dina_lrm.launch.fleet import FleetSettings, fleet
from dina_lrm.scoring.client import RewardClient
from tests.golden_fixtures import PIPELINE, PUBLISHED


def main() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ray.init(num_cpus=4, include_dashboard=False, configure_logging=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    asked = FleetSettings(model=str(PUBLISHED), base=str(PIPELINE), replicas=2, num_cpus=1, no_auth=True)
    serve.run(fleet(asked))
    latents = torch.randn(4, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    with RewardClient(f"http://127.0.0.1:{port}") as client:
        rewards = [
            client.score(prompts=["a cat"], latents=latents[i : i + 1], sigmas=(0.2, 0.5), seed=i).reward.item()
            for i in range(len(latents))
        ]
    replicas = serve.status().applications["default"].deployments["RewardReplica"].replica_states
    serve.shutdown()
    ray.shutdown()
    print(json.dumps({"rewards": rewards, "running": replicas["RUNNING"]}))


if __name__ == "__main__":
    main()
