"""PPO in one file: play scenarios, work out what each decision was worth, move the policy a little.

After Schulman et al. 2017 as CleanRL implements it, with asymmetric clipping (DAPO 2025), dual clip (Ye et
al. 2020), a KL term to the cloned policy, and a baseline that depends on the arrivals (Mao et al. 2019):
every scenario is played several times with the same requests. All that an update draws is a function of
(seed, update), so that a resumed run goes on bit for bit.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trimtab.learn.facts import watch
from trimtab.learn.policy import Critic, Decisions, Scorer, parts_of, unpack
from trimtab.learn.presets import PpoConfig, TrainConfig
from trimtab.learn.rewards import lateness, rewards
from trimtab.learn.rollout import Acting, Episode, Place, play_groups
from trimtab.learn.scenarios import EASY, FIRST_SEED, HARD, Draw, Level, between, draw_scenario
from trimtab.rlhf.estimators import adapted, approx_kl, gae, rewards_to_go, surrogate, value_error

Floats = NDArray[np.float64]
NUM_LOGGED_SHARES = 16


@dataclass
class Batch:
    """One update's decisions, padded to a common width; one entry per decision."""

    decisions: Decisions
    log_prob: Tensor
    advantage: Tensor
    ret: Tensor
    value: Tensor
    reference: Tensor  # (B, R) log-probabilities of the cloned policy


@dataclass
class Learner:
    """All that training changes. ``state_dict`` and ``load`` are for checkpoints."""

    config: TrainConfig
    scorer: Scorer
    critic: Critic
    reference: Scorer
    optimizer: torch.optim.Optimizer
    update: int = 0
    temperature: float = 1.0
    kl_coef: float = 0.0
    reward_scale: float = 1.0
    decisions_seen: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    draw: Draw = draw_scenario

    def acting(self) -> Acting:
        return Acting(self.scorer.flat(), self.scorer.hidden, self.temperature, self.config.ppo.bias_rate)


def new_learner(config: TrainConfig, cloned: Scorer, draw: Draw = draw_scenario) -> Learner:
    """Starts from the cloned policy, which also stays as the reference."""
    torch.manual_seed(config.seed)
    scorer, reference = Scorer(config.hidden), Scorer(config.hidden)
    scorer.load_state_dict(cloned.state_dict())
    reference.load_state_dict(cloned.state_dict())
    reference.requires_grad_(False)
    critic = Critic()
    optimizer = torch.optim.Adam(
        [*scorer.parameters(), *critic.parameters()], lr=config.ppo.learning_rate, eps=1e-5
    )
    return Learner(
        config, scorer, critic, reference, optimizer,
        temperature=config.ppo.temperature, kl_coef=config.ppo.kl_ref_coef_initial, draw=draw,
    )  # fmt: skip


def train_update(learner: Learner) -> dict[str, float]:
    """One update. Returns its measurements, by CleanRL's names where it has them."""
    config, started = learner.config.ppo, time.perf_counter()
    groups = play_groups(places(learner), level(learner), learner.acting(), config.plays, learner.draw)
    played = time.perf_counter()
    batch, facts = make_batch(learner, groups)
    learner.decisions_seen += len(batch.decisions)
    facts |= improve(learner, batch) | watch(groups, learner.config.reward)
    ended = time.perf_counter()
    facts["time/sps"] = len(batch.decisions) / (ended - started)
    facts["time/sps_simulated"] = len(batch.decisions) / (played - started)
    facts["charts/decisions"] = float(learner.decisions_seen)
    learner.update += 1
    learner.history.append(facts)
    return facts


def level(learner: Learner) -> Level:
    """How hard this update's scenarios are."""
    length = learner.config.ppo.curriculum_updates
    return between(EASY, HARD, min(1.0, learner.update / length) if length else 1.0)


def places(learner: Learner) -> list[Place]:
    """Where this update's groups stand: no other update, of this or another seed, plays the same."""
    config = learner.config
    return [(config.seed, learner.update, number) for number in range(config.ppo.groups)]


# --- what a decision was worth ------------------------------------------------------------------


def make_batch(learner: Learner, groups: list[list[Episode]]) -> tuple[Batch, dict[str, float]]:
    """Decisions, advantages and old log-probabilities of all episodes."""
    config = learner.config.ppo
    width = max(episode.rows.shape[1] for group in groups for episode in group)
    parts: list[tuple[NDArray[np.float32], Floats, Floats]] = []
    earned: list[Floats] = []
    for group in groups:
        scale = max(float(np.mean([lateness(episode).mean() for episode in group])), 1e-3)
        gained = [rewards(episode, learner.config.reward, scale) for episode in group]
        earned += gained
        gained = [_clipped(one, learner, config) for one in gained]
        returns = [_returns(episode, one, config.gamma) for episode, one in zip(group, gained, strict=True)]
        decided = np.logical_and.reduce([episode.decided for episode in group])
        shared = np.mean(returns, axis=0) if len(group) > 1 else np.zeros(len(returns[0]))
        for episode, gain, ret in zip(group, gained, returns, strict=True):
            kept = np.flatnonzero(decided)
            rows = np.zeros((len(kept), width), np.float32)
            rows[:, : episode.rows.shape[1]] = episode.rows[kept]
            order = np.argsort(episode.state.requests["arrival"][kept], kind="stable")
            parts.append((rows[order], np.stack([gain, shared], 1)[kept][order], ret[kept][order]))
    decisions = unpack(np.concatenate([rows for rows, _, _ in parts]))
    value, log_prob, reference = _assess(learner, decisions)
    chosen = log_prob.gather(1, decisions.chosen[:, None])[:, 0]
    advantage, target = _advantages(parts, value.numpy(), config, paired=config.plays > 1)
    facts = _facts(decisions, log_prob, earned)
    batch = Batch(decisions, chosen, _tensor(advantage), _tensor(target), value, reference)
    return batch, facts


@torch.no_grad()
def _assess(learner: Learner, decisions: Decisions) -> tuple[Tensor, Tensor, Tensor]:
    """Value (B,), and the log-probabilities (B, R) of the policy and of its reference."""
    found = []
    for part in parts_of(len(decisions)):
        piece = decisions.select(part)
        scores, reference = learner.scorer(piece), learner.reference(piece)
        log_probs = (_log_probs(each, learner.temperature) for each in (scores, reference))
        found.append((learner.critic(piece), *log_probs))
    value, log_prob, reference = (torch.cat(each) for each in zip(*found, strict=True))
    return value, log_prob, reference


def _clipped(gain: Floats, learner: Learner, config: PpoConfig) -> Floats:
    """Rewards over their running spread; the mean is left to the baselines."""
    if config.normalize_rewards:
        spread = float(gain.std()) + 1e-8
        first = learner.update == 0 and learner.reward_scale == 1.0
        learner.reward_scale = spread if first else 0.99 * learner.reward_scale + 0.01 * spread
        gain = (gain - gain.mean()) / learner.reward_scale
    return np.clip(gain, -config.reward_clip, config.reward_clip)


def _returns(episode: Episode, gain: Floats, gamma: float) -> Floats:
    """(N,) discounted sums over the decisions that follow, in order of arrival."""
    if gamma == 0.0:
        return gain
    order = np.argsort(episode.state.requests["arrival"], kind="stable")
    result = np.empty(len(gain))
    result[order] = rewards_to_go(gain[order], gamma)
    return result


def _advantages(
    parts: list[tuple[Any, Floats, Floats]], value: Floats, config: PpoConfig, paired: bool
) -> tuple[Floats, Floats]:
    """GAE per episode; with several plays, against their mean at the same request instead of the critic's
    word alone."""
    found, targets, at = [], [], 0
    for _, gained, ret in parts:
        mine = value[at : at + len(ret)]
        at += len(ret)
        if paired:
            found.append(ret - gained[:, 1])
        else:
            found.append(gae(gained[:, 0], mine, config.gamma, config.gae_lambda))
        targets.append(ret)
    return np.concatenate(found), np.concatenate(targets)


def _tensor(values: Floats) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))


# --- moving the policy --------------------------------------------------------------------------


def improve(learner: Learner, batch: Batch) -> dict[str, float]:
    """Epochs of minibatches; stops early where the policy has moved ``target_kl`` away."""
    config, learning = learner.config.ppo, learner.update >= learner.config.ppo.stabilization_updates
    for group in learner.optimizer.param_groups:
        group["lr"] = _learning_rate(learner)
    generator = torch.Generator().manual_seed(FIRST_SEED * (1 + learner.config.seed) + learner.update)
    sums: dict[str, float] = {}
    steps = 0
    for _ in range(config.epochs):
        order = torch.randperm(len(batch.decisions), generator=generator)
        moved = 0.0
        for start in range(0, len(order), config.minibatch):
            rows = order[start : start + config.minibatch]
            loss, facts = _loss(learner, batch, rows, learning)
            learner.optimizer.zero_grad()
            loss.backward()
            parameters = [*learner.scorer.parameters(), *learner.critic.parameters()]
            norm = torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
            learner.optimizer.step()
            steps += 1
            moved = facts["losses/approx_kl"]
            for name, value in {**facts, "losses/grad_norm": float(norm)}.items():
                sums[name] = sums.get(name, 0.0) + value
        if config.target_kl and moved > config.target_kl:
            break
    facts = {name: value / steps for name, value in sums.items()}
    _adapt(learner, facts)
    spread = float(batch.ret.var())
    unexplained = float((batch.ret - batch.value).var())
    facts["losses/explained_variance"] = 1.0 - unexplained / spread if spread > 0 else math.nan
    facts["charts/learning_rate"] = _learning_rate(learner)
    return facts


def _loss(learner: Learner, batch: Batch, rows: Tensor, learning: bool) -> tuple[Tensor, dict[str, float]]:
    config, decisions = learner.config.ppo, batch.decisions.select(rows)
    log_probs = _log_probs(learner.scorer(decisions), learner.temperature)
    probs = log_probs.exp()
    chosen = log_probs.gather(1, decisions.chosen[:, None])[:, 0]
    log_ratio = chosen - batch.log_prob[rows]
    ratio = log_ratio.exp()
    advantage = batch.advantage[rows]
    if config.normalize_advantages:
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    gain = surrogate(ratio, advantage, config.clip_low, config.clip_high, config.dual_clip)
    finite = torch.where(decisions.accepting, log_probs, torch.zeros(()))
    entropy = -(probs * finite).sum(dim=1)
    most = decisions.accepting.sum(dim=1).clamp(min=2).float().log()
    share = entropy / most
    reference = torch.where(decisions.accepting, batch.reference[rows], torch.zeros(()))
    kl_ref = (probs * (finite - reference)).sum(dim=1).mean()
    value = learner.critic(decisions)
    missed = value_error(value, batch.value[rows], batch.ret[rows], config.value_clip).mean()
    loss = config.value_coef * 0.5 * missed
    if learning:
        floor = torch.relu(config.entropy_min - share).mean()
        loss = loss - gain.mean() - _entropy_coef(learner) * share.mean()
        loss = loss + floor + learner.kl_coef * kl_ref
    with torch.no_grad():
        clipped = ratio.clamp(1 - config.clip_low, 1 + config.clip_high)
        moved = approx_kl(batch.log_prob[rows], chosen, "k3", bound=None)
        facts = {
            "losses/policy_loss": -float(gain.mean()),
            "losses/value_loss": float(missed) / 2,
            "losses/entropy": float(entropy.mean()),
            "losses/approx_kl": float(moved.mean()),
            "losses/clipfrac": float((clipped != ratio).float().mean()),
            "kl_ref": float(kl_ref),
            "route/entropy": float(share.mean()),
        }
    return loss, facts


def _log_probs(scores: Tensor, temperature: float) -> Tensor:
    return torch.log_softmax(scores / temperature, dim=1)


def _learning_rate(learner: Learner) -> float:
    config = learner.config.ppo
    done = min(1.0, learner.update / max(1, config.updates))
    return config.learning_rate + done * (config.final_learning_rate - config.learning_rate)


def _entropy_coef(learner: Learner) -> float:
    """``entropy_warmup_coef`` during warm-up, then ``entropy_coef``, fading to zero at the end."""
    config = learner.config.ppo
    if learner.update < config.warmup_updates:
        return config.entropy_warmup_coef
    return config.entropy_coef * (1.0 - min(1.0, learner.update / max(1, config.updates)))


def _adapt(learner: Learner, facts: dict[str, float]) -> None:
    """The two controllers: KL coefficient and temperature."""
    config = learner.config.ppo
    if config.kl_target is not None:
        learner.kl_coef = adapted(learner.kl_coef, facts["kl_ref"], config.kl_target, config.kl_horizon)
    else:
        done = min(1.0, (learner.update + 1) / max(1, config.kl_ref_decay_steps))
        first, last = config.kl_ref_coef_initial, config.kl_ref_coef_final
        learner.kl_coef = first + done * (last - first)
    if config.entropy_target is not None:
        moved = math.exp(config.temperature_rate * (config.entropy_target - facts["route/entropy"]))
        learner.temperature *= moved
    learner.temperature = min(max(learner.temperature, config.min_temperature), config.max_temperature)
    facts["charts/kl_ref_coef"] = learner.kl_coef
    facts["charts/temperature"] = learner.temperature


# --- what to watch ------------------------------------------------------------------------------


def _facts(decisions: Decisions, log_prob: Tensor, earned: list[Floats]) -> dict[str, float]:
    """Shares of replicas within their pools, over pools of the commonest size; rewards."""
    sizes = decisions.present.sum(dim=1)
    common = int(torch.mode(sizes).values)
    mine = sizes == common
    counts = torch.bincount(decisions.chosen[mine], minlength=common).float()
    shares = counts / counts.sum()
    most = torch.where(decisions.accepting, log_prob, torch.full((), -math.inf)).amax(dim=1).exp()
    facts = {
        "charts/reward": float(np.mean([one.mean() for one in earned])),
        "charts/reward_std": float(np.mean([one.std() for one in earned])),
        "route/share_max": float(shares.max()),
        "route/share_max_times_replicas": float(shares.max() * common),
        "route/certainty": float(most.mean()),
    }
    for replica in range(min(common, NUM_LOGGED_SHARES)):
        facts[f"route/share_{replica}"] = float(shares[replica])
    return facts
