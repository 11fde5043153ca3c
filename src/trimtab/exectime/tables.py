"""What the engine needs to know of time: dense tables from batch aggregates to seconds."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

Seconds = NDArray[np.float64]


@dataclass(frozen=True)
class ExecTables:
    """Seconds of one pipeline stage of one replica, by batch aggregates. All arrays are float64.

    The time of an iteration on one stage is ::

        token_s[T'] + kv_write_s[T] + decode_s[n, K] + prefill_s[P, C] * many + cpu_s[B]

    with T the tokens of the batch (prefill chunks plus one per decode), T' = T rounded up to
    ``token_round``, n the decodes and K their mean KV tokens (zero decodes cost zero), P the KV
    tokens that the prefill chunks attend to beyond themselves, C one chunk length that stands for
    all chunks, ``many`` = ``many_prefills_factor`` if more than one prefill, B the sequences.
    ``send_s[T']`` is added on every stage but the last.

    ``vidur`` decides how K, P and C enter: True reads Vidur's grid (each KV length rounded up to
    ``kv_step``; C the root of the sum of squared chunks, rounded); False takes the exact sums, the
    chunk whose attention work equals that of all chunks, and interpolates linearly on the grid.
    Beyond the last entry a table goes on in proportion.

    Shapes: token_s, kv_write_s, send_s (tokens+1,); decode_s (batch+1, kv/kv_step+1);
    prefill_s (kv/kv_step+1, chunk/chunk_step+1); cpu_s (batch+1,).
    """

    token_s: Seconds
    kv_write_s: Seconds
    decode_s: Seconds
    prefill_s: Seconds
    send_s: Seconds
    cpu_s: Seconds
    kv_step: int = 64
    chunk_step: int = 1
    token_round: int = 8
    many_prefills_factor: float = 1.0
    vidur: bool = False
    source: str = ""
    operators: dict[str, float] = field(default_factory=dict)

    def stage_seconds(
        self,
        decode_kv: list[int],
        prefills: list[tuple[int, int]],
        last_stage: bool = True,
        drafts: int = 0,
    ) -> float:
        """One stage's seconds for a batch: KV tokens of each decode, (kv, chunk) of each prefill.

        Each decode has ``drafts`` to verify along with it: tokens for T and, because of their logits,
        sequences for B, but its KV is read once.

        The readable form of what the compiled engine does; tests hold the two equal.
        """
        decoded = len(decode_kv) * (1 + drafts)
        tokens = decoded + sum(chunk for _, chunk in prefills)
        rounded = -(-tokens // self.token_round) * self.token_round
        seconds = _line(self.token_s, rounded) + _line(self.kv_write_s, tokens)
        seconds += _line(self.cpu_s, decoded + len(prefills))
        if decode_kv:
            mean = sum(decode_kv) / len(decode_kv)
            seconds += self._decode(len(decode_kv), int(mean) if self.vidur else mean)
        if prefills:
            many = self.many_prefills_factor if len(prefills) > 1 else 1.0
            seconds += self._prefill(prefills) * many
        return seconds if last_stage else seconds + _line(self.send_s, rounded)

    def with_drafting(self, share: float) -> ExecTables:
        """The same, but each batch spends on drafting ``share`` times what its decodes alone would take.

        The decode table takes it all in: what does not depend on the KV is added to each of its rows.
        """
        alone = [self.stage_seconds([0] * count, []) for count in range(len(self.decode_s))]
        apart = np.array(alone)[:, None] - self.decode_s[:, :1]
        drafting = share * (self.decode_s + apart)
        drafting[0] = 0.0
        return replace(self, decode_s=self.decode_s + drafting)

    def _decode(self, count: int, mean_kv: float) -> float:
        rows = self.decode_s.shape[0] - 1
        scale = count / rows if count > rows else 1.0
        row = self.decode_s[min(count, rows)]
        at = -(-int(mean_kv) // self.kv_step) if self.vidur else mean_kv / self.kv_step
        return scale * _line(row, at)

    def _prefill(self, prefills: list[tuple[int, int]]) -> float:
        kv: float
        if self.vidur:
            kv = sum(-(-past // self.kv_step) for past, _ in prefills)
            chunk = float(round(sum(c * c for _, c in prefills) ** 0.5))
        else:
            kv = sum(past for past, _ in prefills) / self.kv_step
            work = sum(c * past + c * c / 2 for past, c in prefills)
            past = sum(past for past, _ in prefills)
            chunk = (past * past + 2 * work) ** 0.5 - past
        chunk /= self.chunk_step
        rows = self.prefill_s.shape[0] - 1
        low = min(int(kv), rows)
        value = _line(self.prefill_s[low], chunk)
        if kv > rows:
            return value * (kv / rows if rows else 1.0)
        if kv > low:
            value += (kv - low) * (_line(self.prefill_s[low + 1], chunk) - value)
        return value


def _line(row: Seconds, at: float) -> float:
    """Linear between entries, in proportion beyond the last."""
    last = len(row) - 1
    if at >= last:
        return float(row[last] * (at / last if last else 1.0))
    low = int(at)
    return float(row[low] + (at - low) * (row[low + 1] - row[low]))
