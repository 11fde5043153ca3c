"""A GPT of 100,000 parameters over characters, the text that it learns, and how it draws continuations."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

CHARACTERS = "\n abcdefghijklmnopqrstuvwxyz_().,:="
MODULES = ("argparse", "ast", "dataclasses", "datetime", "doctest", "inspect", "pathlib", "statistics",
           "subprocess", "tarfile", "textwrap", "threading", "typing", "zipfile")  # fmt: skip
WIDTH, LAYERS, HEADS, CONTEXT = 64, 2, 4, 48
Cache = list[tuple[Tensor, Tensor]]


def corpus() -> Tensor:
    """(characters,) the source of some modules of Python's standard library, folded to ``CHARACTERS``."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    files = [path for name in MODULES for path in (folder / f"{name}.py", folder / name / "__init__.py")]
    text = "".join(path.read_text(encoding="utf-8") for path in files if path.is_file()).lower()
    return torch.tensor([CHARACTERS.index(each) for each in text if each in CHARACTERS])


def text_of(tokens: Tensor) -> str:
    return "".join(CHARACTERS[token] for token in tokens.tolist())


class Block(nn.Module):
    """Attention, then a perceptron, each after its norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)])
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.wide = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor, past: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        batch, length, _ = x.shape
        heads = self.qkv(self.norms[0](x)).view(batch, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        query, key, value = heads
        if past is not None:
            key, value = torch.cat([past[0], key], 2), torch.cat([past[1], value], 2)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=past is None)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, WIDTH))
        return x + self.wide(self.norms[1](x)), (key, value)


class Gpt(nn.Module):
    """``outputs`` is the number of characters for a language model, 1 for a reward model or a critic."""

    def __init__(self, outputs: int = len(CHARACTERS)) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(len(CHARACTERS), WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.ModuleList([Block() for _ in range(LAYERS)])
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, outputs)

    def forward(self, tokens: Tensor, cache: Cache | None = None) -> tuple[Tensor, Cache]:
        """(batch, length, outputs) for tokens (batch, length); with a cache, tokens that go on from it."""
        start = cache[0][0].shape[2] if cache else 0
        x = self.token(tokens) + self.position.weight[start : start + tokens.shape[1]]
        kept = []
        for index, block in enumerate(self.blocks):
            x, past = block(x, cache[index] if cache else None)
            kept.append(past)
        return self.head(self.norm(x)), kept


def supervised(text: Tensor, steps: int, generator: torch.Generator) -> tuple[Gpt, float]:
    """A model that has seen ``steps`` batches of the text, and its loss in nats per character."""
    model = Gpt()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    recent = 0.0
    for step in range(steps):
        starts = torch.randint(len(text) - CONTEXT - 1, (32, 1), generator=generator)
        rows = text[starts + torch.arange(CONTEXT + 1)]
        loss = functional.cross_entropy(model(rows[:, :-1])[0].flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        recent = loss.item() if step == 0 else 0.95 * recent + 0.05 * loss.item()
    return model, recent


@torch.no_grad()
def continued(
    model: Gpt, prompts: Tensor, length: int, generator: torch.Generator, top_p: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Prompts with ``length`` drawn characters, and the log-probability (batch, length) of each draw.

    With ``top_p`` below 1 only the likeliest characters that make up so much are drawn from, and the
    log-probabilities are those of that narrower distribution, as an inference engine reports them.
    """
    tokens, found = prompts, []
    output, cache = model(prompts)
    for step in range(length):
        probs = output[:, -1].softmax(1)
        if top_p < 1.0:
            ranked, order = probs.sort(1, descending=True)
            ranked[ranked.cumsum(1) - ranked >= top_p] = 0.0
            probs = torch.zeros_like(probs).scatter(1, order, ranked)
            probs /= probs.sum(1, keepdim=True)
        drawn = torch.multinomial(probs, 1, generator=generator)
        tokens = torch.cat([tokens, drawn], 1)
        found.append(probs.gather(1, drawn).log())
        if step + 1 < length:
            output, cache = model(drawn, cache)
    return tokens, torch.cat(found, 1)
