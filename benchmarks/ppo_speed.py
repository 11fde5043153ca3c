"""Routing decisions per second of PPO, end to end: scenarios drawn and played, rewards, the update.

``simulated_steps_per_s`` counts drawing and playing alone, with the policy in the loop; both use two
threads. Reference: Stable-Baselines3 on environments in Python does 1,000 to 10,000 steps per second,
the ancestor of this project 0.75 to 12.

    python benchmarks/ppo_speed.py [--quick]
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import replace

import torch

from trimtab.learn.policy import Scorer
from trimtab.learn.ppo import new_learner, train_update
from trimtab.learn.presets import TrainConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    updates = 3 if parser.parse_args().quick else 12
    torch.set_num_threads(1)  # the engine plays in two threads; small products gain nothing from more
    config = TrainConfig()
    config = replace(config, ppo=replace(config.ppo, curriculum_updates=0))
    scorer = Scorer(config.hidden)
    scorer.lean_on_heuristic(config.residual)
    learner = new_learner(config, scorer)
    found = [train_update(learner) for _ in range(updates + 1)][1:]  # the first compiles
    trained = statistics.median(facts["time/sps"] for facts in found)
    simulated = statistics.median(facts["time/sps_simulated"] for facts in found)
    print(f"{updates} updates of {config.ppo.groups} scenarios, each played {config.ppo.plays} times")
    print(f"trained {trained:,.0f}, simulated {simulated:,.0f} routing decisions per second")
    print(
        json.dumps({"name": "ppo_speed", "trained_steps_per_s": trained, "simulated_steps_per_s": simulated})
    )


if __name__ == "__main__":
    main()
