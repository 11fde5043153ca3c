"""The operators in torch against slow, obvious forms of them."""

from __future__ import annotations

import cmath
import math

import pytest

torch = pytest.importorskip("torch", reason="profiling is optional: pip install 'trimtab[profile]'")

from trimtab.exectime.profile import operators as op  # noqa: E402

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    torch.manual_seed(0)
    return str(request.param)


def random(*shape: int, device: str) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.bfloat16, device=device)


def close(ours: torch.Tensor, expected: torch.Tensor, tolerance: float = 0.03) -> None:
    torch.testing.assert_close(ours.double().cpu(), expected.double().cpu(), rtol=tolerance, atol=tolerance)


def attention_by_hand(query, keys, values) -> torch.Tensor:
    """One query (heads, width) over all keys (tokens, kv_heads, width)."""
    group = query.shape[0] // keys.shape[1]
    rows = []
    for head in range(query.shape[0]):
        key, value = keys[:, head // group].double(), values[:, head // group].double()
        scores = key @ query[head].double() / math.sqrt(query.shape[1])
        rows.append(scores.softmax(0) @ value)
    return torch.stack(rows)


@pytest.mark.parametrize("queries", [[1, 1, 1], [5, 1, 3], [4]])
def test_attention_over_slots(queries: list[int], device: str) -> None:
    """Sequences of different lengths, in slots in no order, some cells never used."""
    starts, pasts = [40, 0, 20][: len(queries)], [7, 11, 3][: len(queries)]
    used = [past + count for past, count in zip(pasts, queries, strict=True)]
    keys, values = (random(64, 2, 32, device=device) for _ in range(2))
    rows = random(sum(queries), 4, 32, device=device)
    ours = op.attend(rows, keys, values, op.make_spans(queries, starts, used, rows))
    expected, row = [], 0
    for start, past, count in zip(starts, pasts, queries, strict=True):
        for i in range(count):
            seen = slice(start, start + past + i + 1)
            expected.append(attention_by_hand(rows[row], keys[seen], values[seen]))
            row += 1
    close(ours, torch.stack(expected))


def test_rotation_is_a_complex_product(device: str) -> None:
    heads = random(5, 3, 8, device=device)
    table = op.rope_tables(32, 8, heads)
    positions = torch.tensor([0, 1, 2, 17, 31], device=device)
    ours = op.rotate(heads, table[positions], torch.empty_like(heads)).double().cpu()
    for token, position in enumerate(positions.tolist()):
        for pair in range(4):
            turn = cmath.exp(1j * position * op.ROPE_BASE ** (-2 * pair / 8))
            for head in range(3):
                left, right = heads[token, head, pair].item(), heads[token, head, pair + 4].item()
                turned = complex(left, right) * turn
                assert ours[token, head, pair].item() == pytest.approx(turned.real, abs=0.05)
                assert ours[token, head, pair + 4].item() == pytest.approx(turned.imag, abs=0.05)


def test_norm_and_activation(device: str) -> None:
    x, weight = random(6, 16, device=device), random(16, device=device)
    scale = (x.double().pow(2).mean(1, keepdim=True) + op.NORM_EPSILON).rsqrt()
    close(op.rms_norm(x, weight), x.double() * scale * weight.double())
    gate, up = x[:, :8].double(), x[:, 8:].double()
    close(op.activate(x, 8, gated=True), gate * gate.sigmoid() * up)
    assert op.activate(x, 16, gated=False).shape == (6, 16)


def test_saved_keys_are_where_they_belong(device: str) -> None:
    cache = torch.zeros(2, 10, 2, 4, dtype=torch.bfloat16, device=device)
    keys, values = random(3, 2, 4, device=device), random(3, 2, 4, device=device)
    cells = torch.tensor([7, 0, 4], device=device)
    op.save_kv(keys, values, cache[0], cache[1], cells)
    assert torch.equal(cache[0, cells], keys)
    assert torch.equal(cache[1, cells], values)
    assert (cache[:, [1, 2, 3, 5, 6, 8, 9]] == 0).all()


@pytest.mark.parametrize("gated", [True, False])
def test_experts_token_by_token(gated: bool, device: str) -> None:
    tokens, hidden, width, experts, per_token = 9, 32, 16, 4, 2
    x, gate = random(tokens, hidden, device=device), random(experts, hidden, device=device)
    up = 0.1 * random(experts, (2 if gated else 1) * width, hidden, device=device)
    down = 0.1 * random(experts, hidden, width, device=device)
    routing = op.route(x, gate, per_token)
    rows = op.experts(op.dispatch(x, routing), up, down, routing.ends)
    ours = op.combine(rows, routing)
    scores = (x @ gate.T).float().softmax(1)
    expected = torch.zeros(tokens, hidden, dtype=torch.float64)
    for token in range(tokens):
        weights, chosen = scores[token].topk(per_token)
        for weight, expert in zip((weights / weights.sum()).tolist(), chosen.tolist(), strict=True):
            raised = op.activate((up[expert] @ x[token])[None], width, gated)[0]
            expected[token] += weight * (down[expert] @ raised).double().cpu()
    close(ours, expected)
    assert int(routing.ends[-1]) == tokens * per_token


def test_samples_follow_the_logits(device: str) -> None:
    chances = torch.tensor([0.7, 0.2, 0.1, 0.0], device=device)
    logits = chances.log().clamp(min=-50).expand(20_000, 4)
    drawn = op.sample(logits, torch.ones(20_000, 1, device=device))
    shares = torch.bincount(drawn, minlength=4).double().cpu() / 20_000
    assert (shares - chances.double().cpu()).abs().max() < 0.02  # six standard deviations
