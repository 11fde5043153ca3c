"""What prompts share: a forest of nodes, each a run of tokens, and one path through it per request.

A node's tokens follow those of its parent. A prompt begins with the tokens along its path, of the
k-th node the first ``path_tokens[k]``; what is left of the prompt is its own. Everybody who goes on past a
node leaves it at the same token, so a cache needs to know only nodes and how much of them it holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.engine.dtypes import NONE
from trimtab.errors import TrimtabError
from trimtab.workload.prefixes import Prefixed
from trimtab.workload.trace import Trace

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Traffic:
    """Requests and what their prompts share.

    ``requests`` (N,) REQUEST; the path of row r is entries ``path_at[r]`` to ``path_at[r] + path_len[r]``
    of ``path_node`` (K,), nodes from the root on, and ``path_tokens`` (K,), how many tokens of each node
    the prompt has. Nodes are numbered 0 to ``num_nodes`` - 1.
    """

    requests: NDArray[Any]
    path_node: Integers
    path_tokens: Integers
    num_nodes: int


def private(requests: NDArray[Any]) -> Traffic:
    """Traffic in which nobody shares anything."""
    nothing = np.zeros(0, np.int64)
    return Traffic(requests, nothing, nothing, 0)


def begun(requests: NDArray[Any], prefix: Prefixed) -> Traffic:
    """Requests of which some begin with the prefix of a group, one node per group."""
    having = prefix.group != NONE
    requests["path_len"] = having
    requests["path_at"] = np.cumsum(having) - having
    return Traffic(requests, prefix.group[having], prefix.tokens[having], prefix.groups)


def hashed(requests: NDArray[Any], trace: Trace, rows: Integers, hash_tokens: int) -> Traffic:
    """Requests that replay ``rows`` (N,) of a trace with prefix hashes, one node per hash.

    Where a prompt was capped or scaled it keeps as many of its first tokens as it can.

    Raises
    ------
    TrimtabError
        for the first row whose hashes do not cover its prompt.
    """
    assert trace.hash_offsets is not None
    assert trace.hash_values is not None
    start, lengths = trace.hash_offsets[rows], np.diff(trace.hash_offsets)[rows]
    recorded = trace.prefill[rows].astype(np.int64)
    _check_cover(trace.name, rows, lengths, recorded, hash_tokens)
    shared = np.minimum(recorded, requests["prefill_tokens"])
    lengths = np.minimum(lengths, -(-shared // hash_tokens))
    at = np.cumsum(lengths) - lengths
    depth = np.arange(int(lengths.sum())) - np.repeat(at, lengths)
    values = trace.hash_values[np.repeat(start, lengths) + depth]
    tokens = np.minimum(np.repeat(shared, lengths) - depth * hash_tokens, hash_tokens)
    requests["path_at"], requests["path_len"] = at, lengths
    node, num_nodes = _numbered(values)
    if not _one_parent(node, num_nodes, depth):
        node, num_nodes = _trie(node, num_nodes, depth, at, lengths)
    return Traffic(requests, node, tokens, num_nodes)


def _check_cover(name: str, rows: Integers, lengths: Integers, prompt: Integers, hash_tokens: int) -> None:
    wanted = -(-prompt // hash_tokens)
    wrong = lengths != wanted
    if wrong.any():
        first = int(np.argmax(wrong))
        raise TrimtabError(
            f"{name}: row {rows[first] + 1}: {lengths[first]} hash_ids for a prompt of {prompt[first]} "
            f"tokens; wanted {wanted[first]}, one for each {hash_tokens} tokens (workload.trace.hash_tokens)"
        )


def _numbered(values: Integers) -> tuple[Integers, int]:
    """The distinct values as numbers from 0, in their order."""
    if len(values) == 0:
        return values, 0
    low, high = int(values.min()), int(values.max())
    if high - low > 8 * len(values):
        distinct, number = np.unique(values, return_inverse=True)
        return number.astype(np.int64), len(distinct)
    present = np.zeros(high - low + 1, np.int64)
    present[values - low] = 1
    number = np.cumsum(present) - 1
    return number[values - low], int(number[-1]) + 1


def _one_parent(node: Integers, num_nodes: int, depth: Integers) -> bool:
    """Whether a node always follows the same one: then its number says all that is before it."""
    before = np.where(depth == 0, NONE, np.roll(node, 1))
    parent = np.full(num_nodes, NONE)
    parent[node] = before
    return bool(np.array_equal(parent[node], before))


def _trie(
    label: Integers, num_labels: int, depth: Integers, at: Integers, lengths: Integers
) -> tuple[Integers, int]:
    """Nodes of hashes that say nothing of what is before them: equal only where all before is equal."""
    node = np.empty(len(label), np.int64)
    num_nodes = 0
    for level in range(int(lengths.max())):
        entries = at[lengths > level] + level
        parent = node[entries - 1] if level else np.zeros(len(entries), np.int64)
        distinct, number = np.unique(parent * num_labels + label[entries], return_inverse=True)
        node[entries] = number + num_nodes
        num_nodes += len(distinct)
    return node, num_nodes
