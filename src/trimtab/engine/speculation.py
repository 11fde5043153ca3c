"""Speculative decoding: how many tokens a decode step yields.

With ``draft_tokens`` drafts of which each is accepted with probability ``acceptance`` given that the
ones before it were, a step yields 1 + (accepted drafts) tokens: a geometric law cut off at one more
than the drafts (Leviathan et al. 2023, section 3.1). One number is drawn per batch, for all of its
decodes, so that a lane can go on by it in O(1) steps; docs/background/speculation.md says what that
leaves out. The number depends on seed, replica and the batch's count on its replica and on nothing
else, so that there is no random state to keep.
"""

from __future__ import annotations

from trimtab.engine.jit import jit
from trimtab.engine.state import State

MASK = 0x7FFFFFFF  # words of 31 bits: a product of two constants below never overflows 64, signed
WEYL = 0x9E3779B1
FIRST_FACTOR, SECOND_FACTOR = 0x7FEB352D, 0x846CA68B


@jit
def scramble(word: int) -> int:
    """A bijection of 31-bit words whose output looks random (the lowbias32 mixer)."""
    word ^= word >> 16
    word = (word * FIRST_FACTOR) & MASK
    word ^= word >> 15
    word = (word * SECOND_FACTOR) & MASK
    return word ^ (word >> 16)


@jit
def uniform_of(seed: int, replica: int, number: int) -> float:
    """A uniform in [0, 1) for the ``number``-th batch of a replica; ``seed`` is below 2**62."""
    word = scramble((seed & MASK) ^ scramble(seed >> 31))
    word = scramble((word + (replica + 1) * WEYL) & MASK)
    return scramble((word + (number + 1) * WEYL) & MASK) / (MASK + 1.0)


@jit
def tokens_of_step(state: State, replica: int) -> int:
    """Tokens that each decode of the replica's next batch gets, the end of its answer aside."""
    groups = state.groups
    group = state.replicas["group"][replica]
    tossed = uniform_of(state.control["seed"][0], replica, state.replicas["iterations"][replica])
    tokens = 1
    reach = groups["acceptance"][group]  # probability that at least ``tokens`` drafts are accepted
    while tokens <= groups["draft_tokens"][group] and tossed < reach:
        tokens += 1
        reach *= groups["acceptance"][group]
    return tokens
