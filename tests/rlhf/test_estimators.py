"""The pieces of PPO: equal to OpenRLHF's own code, to NumPy and torch alike, and to what theory says."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.errors import TrimtabError
from trimtab.rlhf import estimators as ours

torch = pytest.importorskip("torch", reason="the extra `learn` is not installed")

from openrlhf_wheel import pieces  # noqa: E402

SEEDS = range(5)


def close(mine: Any, theirs: Any) -> None:
    torch.testing.assert_close(torch.as_tensor(mine), torch.as_tensor(theirs), rtol=0.0, atol=1e-6)


class Batch:
    """Random rollouts of ragged length; ``scale`` spreads ratios far beyond the clip."""

    def __init__(self, seed: int, sequences: int = 12, tokens: int = 9, scale: float = 0.3) -> None:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Any:
            return torch.randn(*shape, generator=generator)

        self.old = -normal(sequences, tokens).abs()
        self.log_prob = self.old + scale * normal(sequences, tokens)
        self.reference = self.old + scale * normal(sequences, tokens)
        self.values, self.old_values = normal(sequences, tokens), normal(sequences, tokens)
        self.advantages, self.returns = normal(sequences, tokens), normal(sequences, tokens)
        self.rewards = 6.0 * normal(sequences)
        lengths = torch.randint(1, tokens + 1, (sequences, 1), generator=generator)
        self.mask = (torch.arange(tokens) < lengths).long()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", ours.KL_KINDS)
def test_kl_estimators(kind: str, seed: int) -> None:
    batch = Batch(seed, scale=4.0)  # far enough for the bound to hold some
    close(
        ours.approx_kl(batch.log_prob, batch.reference, kind),
        pieces()["utils"].compute_approx_kl(batch.log_prob, batch.reference, kind),
    )


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("low", "high"), [(0.2, 0.2), (0.2, 0.28), (0.1, 0.5)])
@pytest.mark.parametrize("dual", [None, 1.5, 4.0])
def test_policy_loss(low: float, high: float, dual: float | None, seed: int) -> None:
    batch = Batch(seed, scale=1.0)
    theirs = pieces()["loss"].PolicyLoss(low, high, dual)(
        batch.log_prob.requires_grad_(), batch.old, batch.advantages, batch.mask
    )
    (wanted,) = torch.autograd.grad(theirs[0], batch.log_prob)
    mine = ours.policy_loss(batch.log_prob, batch.old, batch.advantages, batch.mask, low, high, dual or 0.0)
    (gradient,) = torch.autograd.grad(mine[0], batch.log_prob)
    close(gradient, wanted)
    for one, other in zip(mine, theirs, strict=False):
        close(one.detach(), other.detach())


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("clip", [None, 0.2, 0.5])
def test_value_loss(clip: float | None, seed: int) -> None:
    batch = Batch(seed)
    theirs = pieces()["loss"].ValueLoss(clip)(batch.values, batch.old_values, batch.returns, batch.mask)
    close(ours.value_loss(batch.values, batch.old_values, batch.returns, batch.mask, clip), theirs)


@pytest.mark.parametrize("seed", SEEDS)
def test_kl_controllers(seed: int) -> None:
    theirs = pieces()["kl_controller"].AdaptiveKLController(0.01, 0.05, 10_000)
    mine = ours.AdaptiveKL(0.01, 0.05, 10_000)
    for kl in np.random.default_rng(seed).exponential(0.05, 50):
        theirs.update(kl, 1024)
        assert mine.update(float(kl), 1024) == pytest.approx(theirs.value, rel=1e-12)
    fixed = ours.FixedKL(0.01)
    assert fixed.update(5.0, 1024) == fixed.coefficient == 0.01


def whole(batch: Batch, estimator: str, samples: int, gamma: float, lam: float) -> Any:
    """OpenRLHF's advantages and returns for a batch, through its experience maker."""
    named = {"grpo": "group_norm"}.get(estimator, estimator)
    experience = SimpleNamespace(
        index=list(range(len(batch.rewards))), rewards=batch.rewards.clone(), info={}, values=batch.values,
        kl=batch.log_prob - batch.reference, action_mask=batch.mask,
    )  # fmt: skip
    args = SimpleNamespace(
        rollout=SimpleNamespace(n_samples_per_prompt=samples),
        reward=SimpleNamespace(clip_range=(-10.0, 10.0)),
        algo=SimpleNamespace(
            advantage=SimpleNamespace(estimator=named, gamma=gamma, lambd=lam, no_std_norm=False)
        ),
    )
    maker_module = pieces()["experience_maker"]
    maker_module.apply_length_penalties = lambda *_: None
    maker = object.__new__(maker_module.RemoteExperienceMaker)
    maker.strategy, maker.args = SimpleNamespace(args=args), args
    maker.advantage_estimator, maker.kl_ctl = named, SimpleNamespace(value=0.05)
    (done,) = maker.compute_advantages_and_returns([experience])
    return done.advantages, done.returns


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("estimator", ours.ESTIMATORS)
def test_advantages_from_scores_to_normalisation(estimator: str, seed: int) -> None:
    batch = Batch(seed)
    gamma, lam = (0.97, 0.9) if estimator in ("gae", "reinforce") else (1.0, 1.0)
    found = ours.advantages_of(
        estimator, batch.rewards, batch.log_prob - batch.reference, batch.mask, values=batch.values,
        samples=4, coefficient=0.05, gamma=gamma, lam=lam,
    )  # fmt: skip
    for mine, theirs in zip(found, whole(batch, estimator, 4, gamma, lam), strict=True):
        inside = batch.mask > 0  # beyond a sequence's end OpenRLHF leaves what is never read
        close(mine[inside], theirs[inside])


@pytest.mark.parametrize("estimator", ours.ESTIMATORS)
def test_numpy_and_torch_agree(estimator: str) -> None:
    batch = Batch(7)
    arrays = [
        each.double() for each in (batch.rewards, batch.log_prob - batch.reference, batch.mask, batch.values)
    ]
    both = []
    for rewards, kl, mask, values in (arrays, [each.numpy() for each in arrays]):
        both.append(ours.advantages_of(estimator, rewards, kl, mask, values=values, samples=4, lam=0.9))
    for one, other in zip(*both, strict=True):
        assert isinstance(other, np.ndarray)
        np.testing.assert_allclose(one.numpy(), other, atol=1e-12)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), min_size=1, max_size=12),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_gae_is_the_sum_of_the_paper(rows: list[tuple[float, float]], gamma: float, lam: float) -> None:
    rewards, values = np.array(rows).T
    following = np.append(values[1:], 0.0)
    deltas = rewards + gamma * following - values
    wanted = [sum((gamma * lam) ** k * deltas[t + k] for k in range(len(rows) - t)) for t in range(len(rows))]
    np.testing.assert_allclose(ours.gae(rewards, values, gamma, lam), wanted, atol=1e-9)
    with_one = ours.gae(rewards, values, gamma, 1.0) + values
    np.testing.assert_allclose(with_one, ours.rewards_to_go(rewards, gamma), atol=1e-9)


def test_k1_and_k3_estimate_the_divergence_and_k3_varies_less() -> None:
    generator = np.random.default_rng(0)
    policy, reference = np.log([0.5, 0.3, 0.2]), np.log([0.4, 0.3, 0.3])
    exact = float(np.sum(np.exp(policy) * (policy - reference)))
    drawn = generator.choice(3, 200_000, p=np.exp(policy))
    k1, k3 = (ours.approx_kl(policy[drawn], reference[drawn], kind) for kind in ("k1", "k3"))
    assert k1.mean() == pytest.approx(exact, abs=2e-3)
    assert k3.mean() == pytest.approx(exact, abs=2e-3)
    assert k3.min() >= 0.0 > k1.min()
    assert k3.std() < 0.5 * k1.std()


def test_reward_normalisation_and_clip() -> None:
    kl = np.zeros((2, 3))
    mask = np.array([[1, 1, 0], [1, 1, 1]])
    scores = ours.normalized_rewards(np.array([30.0, -1.0]), 1.0, 2.0)
    found = ours.token_rewards(scores, kl, 0.1, mask, clip=(-5.0, 5.0))
    assert found.tolist() == [[0.0, 5.0, 0.0], [0.0, 0.0, -1.0]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: ours.approx_kl(np.zeros(1), np.zeros(1), "k4"),
            "unknown KL estimator 'k4'; allowed: k1, k2, k3",
        ),
        (lambda: ours.AdaptiveKL(0.1, 0.0), "KL target must be above 0"),
        (lambda: ours.AdaptiveKL(0.1, 6.0).update(0.02, 50_000), "could turn the coefficient negative"),
        (lambda: ours.group_rewards(np.zeros((3, 1)), "rloo"), "at least 2, given 1"),
        (lambda: ours.group_rewards(np.zeros((3, 2)), "grop"), "Did you mean 'grpo'"),
        (
            lambda: ours.advantages_of("gae", np.zeros(2), np.zeros((2, 2)), np.ones((2, 2))),
            "critic's values",
        ),
        (
            lambda: ours.advantages_of("grpo", np.zeros(3), np.zeros((3, 2)), np.ones((3, 2)), samples=2),
            "3 sequences are no groups of 2",
        ),
    ],
)
def test_bad_input_is_one_line(call: Any, message: str) -> None:
    with pytest.raises(TrimtabError) as error:
        call()
    assert message in str(error.value)
