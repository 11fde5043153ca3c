"""Domain banks and the hybrid: identity, directions, the literal formula, unknown domains."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from trimtab.balance import AffinityLaw, DomainAdaptiveBias, HybridBias, hybrid_correction_bias, law
from trimtab.errors import TrimtabError

BIASES = arrays.arrays(np.float64, (2, 4), elements=st.floats(-5, 5))
CODE, PROSE = np.array([70, 20, 5, 5]), np.array([5, 5, 20, 70])
SKETCH = {
    "code": [0.5, 0.3, -0.2, -0.3, -0.1, -0.1, -0.05, -0.05],
    "math": [-0.1, 0.4, 0.2, -0.2, -0.1, -0.1, -0.05, -0.05],
    "text": [0.1, -0.1, -0.1, 0.3, 0.2, 0.1, -0.05, -0.05],
}


@settings(deadline=None)
@given(bias=BIASES, weights=st.tuples(st.floats(0.01, 10), st.floats(0, 10), st.floats(0, 10)))
def test_equal_biases_give_that_bias_to_the_bit(
    bias: np.ndarray, weights: tuple[float, float, float]
) -> None:
    np.testing.assert_array_equal(hybrid_correction_bias(bias, bias, bias, *weights), bias)


@settings(deadline=None)
@given(base=BIASES, dynamic=BIASES, domain=BIASES)
def test_the_literal_formula(base: np.ndarray, dynamic: np.ndarray, domain: np.ndarray) -> None:
    literal = hybrid_correction_bias(base, dynamic, domain, literal=True)
    np.testing.assert_array_equal(literal, 0.5 * base + 0.3 * dynamic + 0.2 * domain)
    np.testing.assert_allclose(hybrid_correction_bias(base, dynamic, domain), literal, atol=1e-12)


def test_literally_used_it_halves_the_trained_bias() -> None:
    """No load has shifted, and yet the sketch's bias is not the trained one; ours is."""
    base = np.array([0.4, -0.4])
    assert hybrid_correction_bias(base, [0, 0], [0, 0], literal=True).tolist() == [0.2, -0.2]
    even = np.array([5, 5])
    assert HybridBias(base, ["code"]).update(even, domain="code").tolist() == [0.4, -0.4]
    assert HybridBias(base, ["code"], literal=True).update(even, domain="code").tolist() == [0.2, -0.2]


def test_objectives_pull_in_opposite_directions() -> None:
    balance, affinity = (DomainAdaptiveBias(["code", "prose"], way) for way in ("balance", "affinity"))
    for _ in range(20):
        for bank in (balance, affinity):
            bank.update(CODE, domain="code")
            bank.update(PROSE, domain="prose")
    assert np.argmin(balance.get_bias("code")) == 0 and np.argmin(balance.get_bias("prose")) == 3
    assert np.argmax(affinity.get_bias("code")) == 0 and np.argmax(affinity.get_bias("prose")) == 3
    assert balance.table().shape == (2, 4)
    np.testing.assert_allclose(balance.table().sum(axis=-1), 0, atol=1e-12)
    np.testing.assert_allclose(affinity.table().sum(axis=-1), 0, atol=1e-12)


def test_a_domain_learns_from_its_own_batches_only() -> None:
    bank = DomainAdaptiveBias(["code", "prose"], "balance")
    alone = law("ewma", 0.01)
    for _ in range(5):
        bank.update(CODE, domain="code")
        bank.update(PROSE, domain="prose")
        alone.update(CODE)
    np.testing.assert_array_equal(bank.get_bias("code"), alone.bias)


def test_affinity_is_a_map_of_the_share() -> None:
    affine = AffinityLaw(scale=0.1)
    for _ in range(50):
        bias = affine.update(CODE)
    logs = 0.1 * np.log(CODE / CODE.mean())
    np.testing.assert_allclose(bias, logs - logs.mean(), atol=1e-12)


def test_the_sketchs_table() -> None:
    """Its rows start a bank as they stand; its code row raises the code experts: affinity, not balance."""
    bank = DomainAdaptiveBias(SKETCH, "affinity")
    np.testing.assert_array_equal(bank.get_bias("text"), SKETCH["text"])
    assert bank.get_bias("text").sum() == pytest.approx(0.4)  # not centred
    assert np.argmax(bank.get_bias("code")) == 0


def test_unknown_domains_change_nothing() -> None:
    bank = DomainAdaptiveBias(["code", "prose"], "balance", start=np.zeros(4))
    hybrid = HybridBias(np.zeros(4), ["code", "prose"])
    for thing in (bank, hybrid):
        with pytest.raises(TrimtabError, match=r"unknown domain 'cod'; allowed: code, prose\. Did you mean"):
            thing.update(CODE, domain="cod")
    assert hybrid.dynamic.num_updates == 0
    with pytest.raises(TrimtabError, match="unknown domain"):
        bank.get_bias("math")
    for bad in ([1, 2], [0, 0, 0, 0], [1, -1, 1, 1]):
        with pytest.raises(TrimtabError, match="load"):
            hybrid.update(bad, domain="code")
    assert hybrid.dynamic.num_updates == hybrid.domains.laws["code"].num_updates == 0
    with pytest.raises(TrimtabError, match="no load and was given no starting bias"):
        DomainAdaptiveBias(["code"], "balance").get_bias("code")
    with pytest.raises(TrimtabError, match="unknown objective 'quality'"):
        DomainAdaptiveBias(["code"], "quality")
    with pytest.raises(TrimtabError, match="at least one domain"):
        DomainAdaptiveBias([], "balance")
    with pytest.raises(TrimtabError, match="alpha"):
        hybrid_correction_bias([1.0], [1.0], [1.0], alpha=-1)
    with pytest.raises(TrimtabError, match="dynamic_bias has shape"):
        hybrid_correction_bias([1.0], [1.0, 2.0], [1.0])
