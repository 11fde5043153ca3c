"""RLHF from beginning to end on one CPU core: supervised start, reward model, PPO.

A GPT of 100,000 parameters learns Python's standard library; a reward model learns from pairs of its
continuations which of two a judge prefers; PPO then raises that reward and stays near the start. The
judge prefers the continuation with the larger share of vowels, and errs in one pair of ten.

    python examples/rlhf_cpu                        # a healthy run
    python examples/rlhf_cpu --fault kl_target      # or beta0, lr30, top_p: for `trimtab rlhf doctor`

Each step prints one line in OpenRLHF's form, with its names of the measures; log.txt holds the same.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from gpt import CHARACTERS, Gpt, continued, corpus, supervised, text_of
from torch import Tensor
from torch.nn import functional

from trimtab.rlhf.estimators import (
    AdaptiveKL,
    FixedKL,
    advantages_of,
    approx_kl,
    masked_mean,
    normalized_rewards,
    policy_loss,
    value_loss,
)

PROMPT, RESPONSE, ROLLOUT, MINIBATCH = 16, 24, 64, 32
VOWELS = torch.tensor([each in "aeiou" for each in CHARACTERS]).float()


@dataclass(frozen=True)
class Settings:
    """What a fault changes; the rest of the run is the same."""

    kl_coefficient: float = 0.3
    kl_target: float | None = None  # nats per token
    learning_rate: float = 1e-4
    top_p: float = 1.0


FAULTS = {
    "none": Settings(),
    "kl_target": Settings(kl_target=6.0),  # a sum over a sequence where a mean per token is due
    "beta0": Settings(kl_coefficient=0.0),
    "lr30": Settings(learning_rate=30 * 1e-4),
    "top_p": Settings(top_p=0.9),
}


@dataclass
class Start:
    """What every run with the same seed begins with."""

    text: Tensor
    policy: Gpt
    reward: Gpt
    mean: float  # of the reward model's scores, as reported by OpenRLHF's --normalize_reward
    std: float


def judged(responses: Tensor) -> Tensor:
    """(batch,) the share of vowels: what the judge looks at."""
    return VOWELS[responses].mean(1)


def prompts_of(text: Tensor, count: int, generator: torch.Generator) -> Tensor:
    starts = torch.randint(len(text) - PROMPT, (count, 1), generator=generator)
    return text[starts + torch.arange(PROMPT)]


def score(reward: Gpt, tokens: Tensor) -> Tensor:
    return reward(tokens)[0][:, -1, 0]


def reward_model(
    policy: Gpt, text: Tensor, steps: int, generator: torch.Generator
) -> tuple[Gpt, float, float, float]:
    """(model, share of held-out pairs in the judge's order, mean and deviation of its scores)."""
    model = Gpt(outputs=1)
    kept = {name: value for name, value in policy.state_dict().items() if not name.startswith("head")}
    model.load_state_dict(kept, strict=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(steps):
        prompts = prompts_of(text, 32, generator)
        one, other = (continued(policy, prompts, RESPONSE, generator)[0] for _ in range(2))
        sign = (judged(one[:, PROMPT:]) - judged(other[:, PROMPT:])).sign()
        sign *= 1.0 - 2.0 * (torch.rand(len(sign), generator=generator) < 0.1)
        loss = -functional.logsigmoid(sign * (score(model, one) - score(model, other)))[sign != 0].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        prompts = prompts_of(text, 256, generator)
        one, other = (continued(policy, prompts, RESPONSE, generator)[0] for _ in range(2))
        scores = torch.stack([score(model, one), score(model, other)])
        order = (judged(one[:, PROMPT:]) - judged(other[:, PROMPT:])).sign()
        right = ((scores[0] - scores[1]).sign() == order)[order != 0].float().mean()
    return model, float(right), float(scores.mean()), float(scores.std())


def begin(seed: int, quick: bool = False) -> Start:
    """Supervised start and reward model."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    text = corpus()
    started = time.perf_counter()
    policy, loss = supervised(text, 30 if quick else 400, generator)
    print(f"supervised: {loss:.2f} nats per character, {time.perf_counter() - started:.0f} s", flush=True)
    started = time.perf_counter()
    reward, right, mean, std = reward_model(policy, text, 10 if quick else 150, generator)
    print(f"reward model: {right:.2f} of pairs right, {time.perf_counter() - started:.0f} s", flush=True)
    return Start(text, policy, reward, mean, std)


def log_probs(model: Gpt, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability (batch, RESPONSE) of each drawn character, and entropy in nats there."""
    found = model(tokens[:, :-1])[0][:, PROMPT - 1 :].log_softmax(2)
    chosen = found.gather(2, tokens[:, PROMPT:, None])[..., 0]
    return chosen, -(found.exp() * found).sum(2)


def values_of(critic: Gpt, tokens: Tensor) -> Tensor:
    return critic(tokens[:, :-1])[0][:, PROMPT - 1 :, 0]


def ppo(start: Start, settings: Settings, steps: int, seed: int) -> Iterator[dict[str, float]]:
    """PPO as OpenRLHF does it; one dictionary of measures per step."""
    generator = torch.Generator().manual_seed(1000 + seed)
    actor, critic = copy.deepcopy(start.policy), copy.deepcopy(start.reward)
    optimizers = (
        torch.optim.AdamW(actor.parameters(), lr=settings.learning_rate, weight_decay=0.0),
        torch.optim.AdamW(critic.parameters(), lr=1e-3, weight_decay=0.0),
    )
    horizon = 10_000 * ROLLOUT / (1024 * 8)  # as long in steps as OpenRLHF's default is for 1024 x 8 samples
    control: FixedKL | AdaptiveKL = FixedKL(settings.kl_coefficient)
    if settings.kl_target:
        control = AdaptiveKL(settings.kl_coefficient, settings.kl_target, horizon)
    mask = torch.ones(ROLLOUT, RESPONSE)
    for _ in range(steps):
        clock = [time.perf_counter()]
        prompts = prompts_of(start.text, ROLLOUT, generator)
        tokens, drawn = continued(actor, prompts, RESPONSE, generator, settings.top_p)
        clock.append(time.perf_counter())
        with torch.no_grad():
            old, entropy = log_probs(actor, tokens)
            value = values_of(critic, tokens)
            rewards = normalized_rewards(score(start.reward, tokens), start.mean, start.std)
            # Without a coefficient OpenRLHF keeps no reference model, and reports a divergence of 0.
            reference = log_probs(start.policy, tokens)[0] if settings.kl_coefficient > 0 else old
            kl = approx_kl(old, reference)
            advantage, target = advantages_of(
                "gae", rewards, kl, mask, values=value, coefficient=control.coefficient, lam=0.95
            )
        clock.append(time.perf_counter())
        facts = improve(actor, critic, optimizers, (tokens, old, value, advantage, target), generator)
        clock.append(time.perf_counter())
        generation, experience, training = (b - a for a, b in pairwise(clock))
        yield facts | {
            "kl": float(masked_mean(kl, mask)),
            "vllm_kl": float(masked_mean(drawn - old, mask)),
            "entropy_loss": float(entropy.mean()),
            "reward": float(rewards.mean()),
            "return": float(rewards.clip(-10, 10).mean() - control.coefficient * kl.sum(1).mean()),
            "judged": float(judged(tokens[:, PROMPT:]).mean()),
            "response_length": float(RESPONSE),
            "actor_lr": settings.learning_rate,
            "timing/generation": generation,
            "timing/make_experience": experience,
            "timing/ppo_train": training,
        }
        control.update(float(masked_mean(kl, mask)), ROLLOUT)


def improve(
    actor: Gpt,
    critic: Gpt,
    optimizers: tuple[torch.optim.Optimizer, torch.optim.Optimizer],
    batch: tuple[Tensor, ...],
    generator: torch.Generator,
) -> dict[str, float]:
    """Two epochs of minibatches; the means of their measures."""
    tokens, old, value, advantage, target = batch
    found: list[dict[str, float]] = []
    for order in (torch.randperm(ROLLOUT, generator=generator) for _ in range(2)):
        for rows in order.split(MINIBATCH):
            mask = torch.ones(len(rows), RESPONSE)
            loss, clipped, moved = policy_loss(
                log_probs(actor, tokens[rows])[0], old[rows], advantage[rows], mask, dual_clip=4.0
            )
            missed = value_loss(values_of(critic, tokens[rows]), value[rows], target[rows], mask)
            norms = []
            for model, optimizer, each in zip((actor, critic), optimizers, (loss, missed), strict=True):
                optimizer.zero_grad()
                each.backward()
                norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)))
                optimizer.step()
            found.append(
                {"policy_loss": loss.item(), "critic_loss": missed.item(), "ppo_clip_ratio": clipped.item(),
                 "ppo_kl": moved.item(), "actor_grad_norm": norms[0], "critic_grad_norm": norms[1],
                 "values": float(value[rows].mean())}
            )  # fmt: skip
    return {name: sum(each[name] for each in found) / len(found) for name in found[0]}


def line_of(step: int, facts: dict[str, float]) -> str:
    """One step as OpenRLHF logs it."""
    return f"Global step {step}: { {name: float(f'{value:.4g}') for name, value in facts.items()} }"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fault", choices=FAULTS, default="none")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a few steps of everything, seconds")
    parser.add_argument("--out", type=Path, default=Path("runs/rlhf_cpu"), help="folder for log.txt")
    options = parser.parse_args()
    torch.set_num_threads(1)
    start = begin(options.seed, options.quick)
    options.out.mkdir(parents=True, exist_ok=True)
    facts: dict[str, float] = {}
    with (options.out / "log.txt").open("w", encoding="utf-8") as log:
        run = ppo(start, FAULTS[options.fault], 3 if options.quick else options.steps, options.seed)
        for step, facts in enumerate(run, 1):
            print(line_of(step, facts), flush=True)
            print(line_of(step, facts), file=log, flush=True)
    prompts = prompts_of(start.text, 1, torch.Generator().manual_seed(options.seed))
    print(f"reward {facts['reward']:.2f}, vowels {facts['judged']:.2f}, KL {facts['kl']:.3f} per token")
    print(f"a prompt: {text_of(prompts[0])!r}; the log is {options.out / 'log.txt'}")


if __name__ == "__main__":
    main()
