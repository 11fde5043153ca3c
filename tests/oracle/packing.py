"""Largest differencing the slow and obvious way: every part of every solution is kept, sorted and copied."""

from __future__ import annotations


def karmarkar_karp(costs: list[int], parts: int) -> list[int]:
    """Sums of the parts, largest first; of equal spreads the solution that came first is merged first."""
    solutions = [[cost] + [0] * (parts - 1) for cost in sorted(costs, reverse=True)]
    born = list(range(len(solutions)))
    count = len(solutions)
    while len(solutions) > 1:
        order = sorted(range(len(solutions)), key=lambda i: (solutions[i][-1] - solutions[i][0], born[i]))
        one, other = order[0], order[1]
        merged = sorted(
            (a + b for a, b in zip(solutions[one], solutions[other][::-1], strict=True)), reverse=True
        )
        kept = [i for i in range(len(solutions)) if i not in (one, other)]
        solutions, born = [solutions[i] for i in kept] + [merged], [born[i] for i in kept] + [count]
        count += 1
    return solutions[0]


def first_fit_decreasing(sizes: list[int], cap: int) -> list[int]:
    """Tokens of each bin, in the order in which the bins were opened."""
    bins: list[int] = []
    for size in sorted(sizes, reverse=True):
        for number, filled in enumerate(bins):
            if filled + size <= cap:
                bins[number] += size
                break
        else:
            bins.append(size)
    return bins


def fixed_waste(lengths: list[int], size: int) -> float:
    """Share of padding in micro-batches of ``size`` sequences as they come, padded to their longest."""
    batches = [lengths[start : start + size] for start in range(0, len(lengths), size)]
    return 1.0 - sum(lengths) / sum(len(batch) * max(batch) for batch in batches)
