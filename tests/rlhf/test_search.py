"""The search against the one-plan formulas, against sampled plans, and the commands it emits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.rlhf.conftest import Wheels, make_job
from trimtab.errors import TrimtabError
from trimtab.hardware import get_device, get_model
from trimtab.rlhf.columns import training_settings
from trimtab.rlhf.commands import arguments, environment, plan_settings, script
from trimtab.rlhf.flags import parse
from trimtab.rlhf.job import Cluster, Job, Lengths, read_lengths
from trimtab.rlhf.memory import forecast
from trimtab.rlhf.placement import Plan, Serving
from trimtab.rlhf.rules import FATAL, Command, demand, findings
from trimtab.rlhf.search import UTILIZATIONS, equal_split, search
from trimtab.rlhf.timeline import schedule

VERSIONS = ("0.8.6", "0.9.7", "0.10.2", "0.11.2")


def jobs() -> list[Job]:
    return [
        make_job(),
        make_job(algorithm="grpo", samples=8, prompts=256, version="0.9.7"),
        make_job(algorithm="rloo", samples=4, remote_reward="http://r", version="0.8.6", goal="safest"),
        make_job(algorithm="reinforce++", kl=0.0, goal="fewest", lora_rank=16, version="0.10.2"),
        make_job(cluster=Cluster(get_device("h100"), 4), response=Lengths(3000, 8192), goal="fewest"),
    ]


@pytest.mark.parametrize("job", jobs(), ids=lambda job: f"{job.algorithm}-{job.goal}-{job.cluster.gpus}")
def test_kept_plans_are_as_the_formulas_say(job: Job) -> None:
    found = search(job)
    assert 0 < found.fitting <= found.legal <= found.considered
    for each in found.plans:
        expected = forecast(job, each.plan)
        assert schedule(job, each.plan).seconds == pytest.approx(each.seconds, rel=1e-9)
        assert expected.fits
        assert each.plan.placement.gpus <= job.cluster.gpus
        if job.goal == "safest":
            assert each.plan.placement.mode != "async"


@pytest.mark.parametrize("job", jobs()[:3], ids=lambda job: job.algorithm)
def test_no_sampled_plan_is_better(job: Job) -> None:
    """Legal plans with other settings, drawn at random, that fit: none beats the kept one by more than
    what its switches are charged."""
    found = search(job)
    best = found.plans[0]
    rows = training_settings(job)
    generator = np.random.default_rng(1)
    limit = 0.8 if job.goal == "safest" else 1.0
    fitting = 0
    for row in generator.permutation(len(rows))[:400].tolist():
        place = found.plans[int(generator.integers(len(found.plans)))].plan.placement
        hybrid = place.mode == "hybrid"
        serving = Serving(
            float(generator.choice(UTILIZATIONS[:6])), hybrid and bool(generator.integers(2)),
            place.sharing == "all" and bool(generator.integers(2)), False, job.samples > 1,
        )  # fmt: skip
        plan = Plan(place, rows.training(row), serving)
        settings = plan_settings(job, plan)
        command = Command(settings, job.version, job.cluster.gpus, job.actor)
        if any(each.kind in FATAL for each in findings(command)):
            continue
        expected = forecast(job, plan)
        if not expected.fits or expected.fullest[2] > limit * expected.usable_bytes:
            continue
        fitting += 1
        assert schedule(job, plan).seconds >= 0.95 * best.seconds, plan.describe()
    assert fitting > 10


@pytest.mark.parametrize("version", VERSIONS)
def test_openrlhf_takes_the_commands(version: str, openrlhf: Wheels) -> None:
    """Its own parser and checks, and its demand of GPUs; benchmarks/rlhf_commands.py draws many jobs."""
    for job in jobs()[:4]:
        job = replace(job, version=version)
        for each in search(job).plans[:6]:
            words = arguments(plan_settings(job, each.plan), version)
            asked = openrlhf.ask(version, words)
            assert asked.error is None, (words, asked)
            assert asked.gpus == each.plan.placement.gpus
            command = Command(parse(words, version), version, job.cluster.gpus, job.actor)
            assert sum(demand(command).values()) == asked.gpus
            assert not [finding for finding in findings(command) if finding.kind in FATAL]


@pytest.mark.parametrize("version", VERSIONS)
def test_the_flags_are_the_wheels(version: str, openrlhf: Wheels) -> None:
    from trimtab.rlhf.flags import spellings

    actions = openrlhf.module.flags(openrlhf.wheel(version))
    assert set(actions) == set(spellings(version))
    for name, flag in spellings(version).items():
        theirs = actions[name].default
        theirs = list(theirs) if isinstance(theirs, tuple) else theirs
        ours = flag.default_in(version)
        if name.endswith("run_name") or ours == "inf":
            continue
        assert ours == theirs or (ours is False and theirs in (None, False)), name


def test_goals_differ() -> None:
    job = make_job(cluster=Cluster(get_device("h100"), 4))
    fastest, fewest = search(job).plans[0], search(replace(job, goal="fewest")).plans[0]
    assert fewest.plan.placement.gpus < fastest.plan.placement.gpus
    assert fastest.seconds < fewest.seconds
    safest = search(replace(job, goal="safest")).plans[0]
    assert forecast(job, safest.plan).fullest[2] <= 0.8 * forecast(job, safest.plan).usable_bytes


def test_the_rule_of_thumb_is_a_candidate() -> None:
    job = make_job(cluster=Cluster(get_device("a100-80"), 3))
    thumb = equal_split(job)
    assert thumb is not None
    assert [size for size, _ in thumb.plan.placement.pools.values()] == [8, 8, 8]
    assert search(job).plans[0].seconds <= thumb.seconds
    assert equal_split(make_job(algorithm="grpo", samples=8)) is None


def test_nothing_fits() -> None:
    with pytest.raises(
        TrimtabError, match=r"llama-3-70b .* 8 x a100-80: plans that fit on the GPUs need more"
    ):
        search(make_job(actor=get_model("llama-3-70b")))
    with pytest.raises(TrimtabError, match=r"no engine can hold llama-3.1-405b .* may be 1, 2, 4, 8 on a100"):
        search(make_job(actor=get_model("llama-3.1-405b"), remote_reward="url"))
    with pytest.raises(TrimtabError, match=r"the nearest plan needs .* GiB of the 76.8 usable on a GPU"):
        search(make_job(cluster=Cluster(get_device("a100-80"), 1, 2), response=Lengths(500, 400_000)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algorithm": "pp"}, "unknown algorithm 'pp'; allowed: grpo, ppo, reinforce"),
        ({"algorithm": "grpo"}, "grpo needs several samples of a prompt, got 1"),
        ({"prompts": 10}, "are less than one training batch of 128"),
        ({"goal": "cheap"}, "unknown goal 'cheap'"),
        ({"prompts": 0}, "prompts must be at least 1, got 0"),
    ],
)
def test_bad_jobs(changes: dict[str, object], message: str) -> None:
    with pytest.raises(TrimtabError, match=message):
        make_job(**changes)


def test_lengths(tmp_path: object) -> None:
    from pathlib import Path

    cut = Lengths(3251, 4096)
    assert cut.quantiles.mean() == pytest.approx(3251, rel=1e-3)
    assert cut.quantiles.max() == 4096
    drawn = cut.sample(20_000, np.random.default_rng(0))
    assert drawn.mean() == pytest.approx(3251, rel=0.02)
    file = Path(str(tmp_path)) / "lengths.txt"
    file.write_text("100\n200\n9000\n")
    assert read_lengths(file, 4096).given == (100, 200, 4096)
    file.write_text("a lot")
    with pytest.raises(TrimtabError, match="one length in tokens per line"):
        read_lengths(file, 4097)
    with pytest.raises(TrimtabError, match="above 0 and at most the limit"):
        Lengths(2000, 1000)


def test_the_script_has_what_the_version_needs() -> None:
    for version, wanted in (("0.9.0", "export NCCL_CUMEM_ENABLE=0"), ("0.9.7", "unset NCCL_CUMEM_ENABLE")):
        job = make_job(version=version)
        plan = next(each.plan for each in search(job).plans if each.plan.placement.mode == "async")
        text = script(job, plan, arguments(plan_settings(job, plan), version))
        assert wanted in text
        assert text.startswith("#!/usr/bin/env bash\n")
        assert ("OPENRLHF_ASYNC_QUEUE_SIZE=1" in text) == (version == "0.9.0")
        assert ("--bf16" in text) == (version == "0.9.0")
    hybrid = next(each.plan for each in search(job).plans if each.plan.placement.mode == "hybrid")
    assert not any("NCCL_CUMEM_ENABLE" in line for line in environment(job, hybrid))
