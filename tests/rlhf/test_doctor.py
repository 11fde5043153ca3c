"""The doctor: every signature by a line as it occurs, patterns of measures, every kind of file, healthy runs.

The logs in ``logs`` are of real runs: `python benchmarks/doctor.py --seeds 1 --out tests/rlhf/logs`.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from trimtab.cli import main
from trimtab.errors import TrimtabError
from trimtab.rlhf.doctor import SIGNATURES, diagnose, signatures, spelled
from trimtab.rlhf.log_files import Point, read_logs
from trimtab.rlhf.measure_ranges import GUIDE_RANGES
from trimtab.rlhf.measure_rules import symptoms

LOGS = Path(__file__).with_name("logs")
LINES = {  # as published in issues and sources, with what a rank's output is preceded by
    "gpu-memory-training": (
        "(PolicyModelActor pid=71) torch.OutOfMemoryError: CUDA out of memory. Tried to allocate "
        "9.28 GiB. GPU 3 has a total capacity of 79.15 GiB of which 5.06 GiB is free."
    ),
    "gpu-memory-wake-up": (
        "(LLMRayActor pid=9) CUDA Error: out of memory at /workspace/csrc/cumem_allocator.cpp:62"
    ),
    "no-kv-blocks": (
        "ValueError: No available memory for the cache blocks. Try increasing "
        "`gpu_memory_utilization` when initializing the engine."
    ),
    "gpu-taken": (
        "ValueError: Free memory on device (20.1/79.3 GiB) on startup is less than desired GPU "
        "memory utilization (0.9, 71.4 GiB). Decrease GPU memory utilization or reduce GPU "
        "memory used by other processes."
    ),
    "kv-below-length": (
        "ValueError: The model's max seq len (32768) is larger than the maximum number of tokens "
        "that can be stored in KV cache (9216). Try increasing `gpu_memory_utilization` or "
        "decreasing `max_model_len`"
    ),
    "kv-preemption": (
        "WARNING scheduler.py:1057] Sequence group 40 is preempted by PreemptionMode.RECOMPUTE "
        "mode because there is not enough KV cache space. total_num_cumulative_preemption=51\n"
        "WARNING scheduler.py:1057] Sequence group 40 is preempted by PreemptionMode.RECOMPUTE "
        "mode because there is not enough KV cache space. total_num_cumulative_preemption=51\n"
    ),
    "host-memory": "ray.exceptions.OutOfMemoryError: Task was killed due to the node running low on memory.",
    "collective-timeout": (
        "[rank3]:[E1] [Rank 3] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=8, "
        "OpType=ALLREDUCE, NumelIn=1, NumelOut=1, Timeout(ms)=1800000) ran for 1800033 ms"
    ),
    "nccl-cumem": "RuntimeError: NCCL error: unhandled cuda error (run with NCCL_DEBUG=INFO for details)",
    "weight-sync": (
        "(LLMRayActor pid=11) ERROR worker_base.py:145] Error executing method update_weight. "
        "This might cause deadlock in distributed execution."
    ),
    "invalid-ordinal": "RuntimeError: CUDA error: invalid device ordinal",
    "placement-pending": " {'GPU': 1.0, 'CPU': 1.0} * 8 (PACK): 1+ pending placement groups",
    "batch-divisibility": (
        "AssertionError: Check batch related parameters. train_batch_size is not equal to "
        "micro_batch_per_gpu * gradient_acc_step * world_size 128 != 3 * 5 * 8"
    ),
    "few-batches": (
        "ValueError: Insufficient batch size for async_run_method_batch: total_length=4, effective_actors=8"
    ),
    "sleep-zero-2": (
        "NotImplementedError: Only Zero stage 3 is currently supported when using DeepSpeed "
        "version 0.17.5 or lower"
    ),
    "illegal-access": "RuntimeError: CUDA error: an illegal memory access was encountered",
    "trace-cache": (
        "Invalidate trace cache @ step 10: expected module 11, but got module 19\n"
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."
    ),
    "flags-of-another-version": "train_ppo_ray.py: error: unrecognized arguments: --generate_max_len 1024",
    "packing-without-engines": "TypeError: '>' not supported between instances of 'NoneType' and 'int'",
    "async-sleep": "AssertionError: Async RLHF is not supported with --vllm_enable_sleep.",
    "colocation-sizes": (
        "AssertionError: num_nodes and num_gpus_per_node must be the same when colocate actor and ref model."
    ),
    "sleep-ignored": "Set args.vllm_enable_sleep to False when args.colocate_all_models is disabled.",
    "attention-missing": "ImportError: FlashAttention2 has been toggled on, but it cannot be used due to",
    "network-between-hosts": (
        "node-0:1112:13532 [0] ibvwrap.c:160 NCCL WARN Call to ibv_modify_qp failed with error "
        "Connection timed out"
    ),
    "vllm-version": "AttributeError: 'LLMEngine' object has no attribute 'model_executor'",
    "worker-died": (
        "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker "
        "exit detail: Worker unexpectedly exits with a connection error code 2. End of file."
    ),
    "ring-mesh": "RuntimeError: Mesh should not be bigger than default world size 8, but found 9 ranks!",
}
HEALTHY = """
(LLMRayActor pid=2) INFO 03-05 00:25:45 kv_cache_utils.py:716] GPU KV cache size: 412,016 tokens
(LLMRayActor pid=2) INFO NCCL INFO ncclCommInitRank comm 0x55 rank 3 nranks 8 cudaDev 3 - Init COMPLETE
(PolicyModelActor pid=3) Invalidate trace cache @ step 10: expected module 11, but got module 19
(LLMRayActor pid=2) WARNING Sequence group 4 is preempted by PreemptionMode.RECOMPUTE mode because
[Warning] Please --packing_samples to accelerate when --use_dynamic_batch is enabled.
Demands: {'GPU': 1.0, 'CPU': 1.0} * 8 (PACK): 1+ pending placement groups
Train epoch [1/1]: 100%|##########| 128/128 [23:32<00:00, 11.04s/it, act_loss=-0.0683, kl=0.0011]
"""


def written(folder: Path, text: str, name: str = "train.log") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def names(path: Path, **settings: Any) -> list[str]:
    return [finding.name for finding in diagnose([path], **settings).findings]


def run_log(steps: int = 20, **measures: Any) -> str:
    """A console log in OpenRLHF's form; measures are functions of the share of the run that is done."""
    lines = []
    for step in range(1, steps + 1):
        facts = {name: law(step / steps) for name, law in measures.items()}
        lines.append(f"INFO 03-05 00:25:45 ppo_trainer.py:414] \u2728 Global step {step}: {facts}")
    return "\n".join(lines) + "\n"


# --- lines --------------------------------------------------------------------------------------


def test_every_signature_has_its_line() -> None:
    assert set(LINES) == set(signatures())
    assert len(LINES) >= 16  # those of the reference that are lines; the others are patterns of measures


@pytest.mark.parametrize("name", LINES)
def test_a_line_is_recognised_and_shown(name: str, tmp_path: Path) -> None:
    path = written(tmp_path, f"starting\n\n\x1b[36m{LINES[name]}\x1b[0m\n")
    found = {finding.name: finding for finding in diagnose([path]).findings}
    assert name in found
    assert found[name].place == f"{path}:3"
    assert found[name].evidence in LINES[name] + LINES[name].split("\n")[0]
    assert found[name].fix
    assert set(found) <= {name, "gpu-memory-training"}, "another signature takes the same line"


@pytest.mark.parametrize("version", ["0.8.6", "0.9.7", "0.10.1", "0.10.2", "0.11.2"])
def test_every_fix_can_be_spelt(version: str) -> None:
    for rule in signatures().values():
        assert [text for text in (spelled(each, version) for each in rule["fix"]) if text]


def test_fixes_speak_the_version_at_hand(tmp_path: Path) -> None:
    flat = "+ python3 -m openrlhf.cli.train_ppo_ray --generate_max_len 512 --init_kl_coef 0.01\n"
    path = written(tmp_path, flat + LINES["kv-below-length"])
    assert diagnose([path]).version == "0.9.7"
    assert "shorten --generate_max_len, or --max_len" in diagnose([path]).findings[0].fix
    dotted = diagnose([path], version="0.10.2").findings[0].fix
    assert "shorten --rollout.max_new_tokens, or --data.max_len" in dotted


def test_a_printed_script_tells_the_version(tmp_path: Path) -> None:
    script = "ray job submit -- python3 -m openrlhf.cli.train_ppo_ray \\\n   --colocate_all_models \\\n"
    old = written(tmp_path, script + "   --flash_attn --generate_max_len 512\n" + LINES["host-memory"])
    assert diagnose([old]).version == "0.8.9"
    new = written(
        tmp_path, script.replace("colocate_all_models", "train.colocate_all") + LINES["host-memory"]
    )
    assert diagnose([new]).version.startswith("0.11")


def test_a_job_that_waits_is_told_what_it_asks_for(tmp_path: Path) -> None:
    """The tuning guide's example for 48 GPUs asks for 64, and hangs."""
    script = """+ python3 -m openrlhf.cli.train_ppo_ray \\
      --actor_num_nodes 2 --actor_num_gpus_per_node 8 --critic_num_nodes 2 --critic_num_gpus_per_node 8 \\
      --vllm_num_engines 4 --vllm_tensor_parallel_size 4 --zero_stage 3 --pretrain a --reward_pretrain b
"""
    (found,) = diagnose([written(tmp_path, script + LINES["placement-pending"])]).findings
    assert "asks for 64 GPUs" in found.fix[0]


def test_a_dead_worker_is_no_cause_where_another_is_known(tmp_path: Path) -> None:
    both = "\n".join([LINES["worker-died"], LINES["host-memory"]])
    assert names(written(tmp_path, both)) == ["host-memory"]


def test_a_cause_hides_what_follows_from_it(tmp_path: Path) -> None:
    both = "\n".join([LINES["gpu-memory-wake-up"], LINES["gpu-memory-training"]])
    assert names(written(tmp_path, both)) == ["gpu-memory-wake-up"]


# --- measures -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        ("kl_target", "kl-target-scale"),
        ("beta0", "no-kl-penalty"),
        ("lr30", "updates-too-large"),
        ("top_p", "sampling-narrowed"),
    ],
)
def test_injected_faults_of_real_runs_are_named(fault: str, named: str) -> None:
    assert names(LOGS / f"{fault}-0.log")[:1] == [named]


@pytest.mark.parametrize("log", sorted(LOGS.glob("healthy*.log")), ids=lambda path: path.stem)
def test_silent_on_healthy_runs(log: Path) -> None:
    assert names(log) == []


def test_silent_on_what_healthy_logs_also_say(tmp_path: Path) -> None:
    healthy = next(iter(sorted(LOGS.glob("healthy*.log")))).read_text()
    assert names(written(tmp_path, HEALTHY + healthy)) == []


def test_the_guide_calls_every_healthy_run_ill() -> None:
    found = diagnose([LOGS / "healthy0-0.log"], profile="guide").findings
    assert [finding.name for finding in found] == ["guide-clip-ratio-low"]
    assert found[0].confidence == "low"
    assert "misleads" in found[0].cause


def steady(value: float) -> Any:
    return lambda done: value


PATTERNS: dict[str, dict[str, Any]] = {
    "not-a-number": {"kl": lambda done: math.nan if done > 0.5 else 0.01},
    "kl-high": {"kl": lambda done: 0.3 * done},
    "kl-negative": {"kl": steady(-0.02)},
    "rollout-precision": {"vllm_kl": steady(0.015)},
    "entropy-collapse": {"entropy_loss": lambda done: 1.0 if done < 0.5 else 0.05},
    "samples-cut": {"truncated": steady(0.4)},
    "no-group-signal": {"group_reward_std": steady(0.0)},
    "critic-diverges": {"critic_loss": lambda done: 0.1 + done},
    "gradient-growing": {"actor_grad_norm": lambda done: 0.1 if done < 0.5 else 3.0},
    "reward-exploited": {
        "reward": lambda done: done,
        "response_length": lambda done: 100 + 400 * done,
        "truncated": lambda done: 0.15 * done,
        "entropy_loss": lambda done: 1.0 - 0.7 * done,
    },
    "reward-falls": {"reward": lambda done: 1.0 - done},
    "slow-weight-sync": {"timing/broadcast": steady(40.0), "timing/step_total": steady(100.0)},
    "generation-bound": {"timing/generation": steady(97.0), "timing/step_total": steady(100.0)},
    "policy-loss-scale": {"policy_loss": steady(3.0)},
}


@pytest.mark.parametrize("name", PATTERNS)
def test_a_pattern_is_recognised(name: str, tmp_path: Path) -> None:
    path = written(tmp_path, run_log(**PATTERNS[name]))
    found = diagnose([path]).findings
    assert [finding.name for finding in found] == [name]
    assert found[0].place.startswith(f"{path}:")
    assert found[0].fix


@pytest.mark.parametrize("limits", GUIDE_RANGES, ids=lambda limits: limits.name)
def test_ranges_of_the_guide(limits: Any) -> None:
    outside = limits.most + 1.0 if math.isfinite(limits.most) else limits.least - 1.0
    for value, wanted in ((outside, True), (max(limits.least, min(limits.most, 0.2)), False)):
        points = [Point(step, value, "log:1") for step in range(8)]
        found = {symptom.name for symptom in symptoms({limits.measure: points}, "guide")}
        assert (limits.name in found) == wanted


def shaped(coefficient: Any, centred: bool, kl_in_loss: bool = False) -> dict[str, Any]:
    """Measures of 500-token samples whose reward pays ``coefficient`` per nat, or whose loss does."""

    def kl(done: float) -> float:
        return 0.08 * done

    def reward(done: float) -> float:
        return 0.2 + done + 0.02 * math.sin(40 * done)

    def gained(done: float) -> float:
        paid = 1e-9 * math.cos(9 * done) if kl_in_loss else coefficient(done) * 500 * kl(done)
        return (0.0 if centred else reward(done)) - paid

    spread = {"group_reward_std": steady(0.4)} if centred else {}
    return {"kl": kl, "reward": reward, "return": gained, "response_length": steady(500.0), **spread}


@pytest.mark.parametrize("centred", [False, True])
def test_the_coefficient_is_told_from_rewards_and_returns(centred: bool, tmp_path: Path) -> None:
    fading = shaped(lambda done: 0.01 * math.exp(-6 * done), centred)
    assert names(written(tmp_path, run_log(40, **fading))) == ["kl-target-scale"]
    for healthy in (shaped(steady(0.01), centred), shaped(steady(0.01), centred, kl_in_loss=True)):
        assert names(written(tmp_path, run_log(40, **healthy))) == []


def test_few_steps_say_nothing(tmp_path: Path) -> None:
    assert names(written(tmp_path, run_log(steps=4, kl=steady(3.0)))) == []


def test_checked_answers_without_a_kl_penalty_are_meant(tmp_path: Path) -> None:
    assert names(written(tmp_path, run_log(kl=steady(0.0), reward=lambda done: done))) == []


# --- files --------------------------------------------------------------------------------------


def test_console_csv_and_event_files_say_the_same(tmp_path: Path) -> None:
    tensorboard = pytest.importorskip("torch.utils.tensorboard", reason="tensorboard is not installed")
    law = {"kl": lambda done: 0.3 * done, "reward": lambda done: 2.0 * done}
    written(tmp_path, run_log(**law))
    rows = [f"{step},{law['kl'](step / 20)},{law['reward'](step / 20)}" for step in range(1, 21)]
    written(tmp_path, "train/global_step,train/kl,train/reward\n" + "\n".join(rows), "export.csv")
    events = tmp_path / "events"
    for style in (False, True):  # a plain value, and a tensor of one
        with tensorboard.SummaryWriter(events) as writer:
            for step in range(1, 21):
                for name, value in law.items():
                    writer.add_scalar(f"train/{name}", value(step / 20), step, new_style=style)
    values = []
    for path in (tmp_path / "train.log", tmp_path / "export.csv", *sorted(events.iterdir())):
        logs = read_logs([path])
        assert logs.steps == 20
        values.append([point.value for point in logs.measures["kl"]])
        assert names(path) == ["kl-high"]
    assert all(column == pytest.approx(values[0], rel=1e-6) for column in values)
    assert len(read_logs([tmp_path]).files) == 4


def test_numpy_and_nan_are_read(tmp_path: Path) -> None:
    text = (
        "Global step 7: {'kl': np.float64(0.25), 'reward': nan, 'values': -1e-05, 'lr': inf, 'note': None}\n"
    )
    measures = read_logs([written(tmp_path, text)]).measures
    assert measures["kl"][0].value == 0.25
    assert measures["values"][0].value == -1e-05
    assert math.isnan(measures["reward"][0].value)
    assert math.isinf(measures["lr"][0].value)
    assert "note" not in measures


def test_a_cut_event_file_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    tensorboard = pytest.importorskip("torch.utils.tensorboard", reason="tensorboard is not installed")
    with tensorboard.SummaryWriter(tmp_path) as writer:
        for step in range(10):
            writer.add_scalar("train/kl", 0.5, step)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-7])
    assert read_logs([file]).steps == 9
    file.write_bytes(b"\x0a\0\0\0\0\0\0\0" + b"\xff" * 30)
    with pytest.raises(TrimtabError, match="no event file of TensorBoard, or is damaged: record 1"):
        read_logs([file])


# --- the command --------------------------------------------------------------------------------


def test_the_command_shows_cause_line_and_change(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, LINES["host-memory"] + "\n")
    assert main(["rlhf", "doctor", str(path), "--openrlhf", "0.9.7"]) == 0
    printed = capsys.readouterr().out
    assert "host-memory (high confidence)" in printed
    assert f"{path}:1" in printed.replace("\n", "")
    assert "without --adam_offload" in printed


def test_the_command_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rlhf", "doctor", str(LOGS / "lr30-0.log"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["findings"][0]["name"] == "updates-too-large"
    assert set(found["findings"][0]) == {
        "name",
        "cause",
        "confidence",
        "place",
        "evidence",
        "fix",
        "source",
        "times",
    }
    assert found["steps"] == 40


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.log"], "no log 'nowhere.log'"),
        (["."], "no logs in ."),
        (["empty.log"], "nothing to read in empty.log"),
        (["empty.log", "--profile", "gide"], "Did you mean 'guide'?"),
        (["full.log", "--openrlhf", "0.7"], "OpenRLHF 0.7 is not known here"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    if arguments != ["."]:
        written(tmp_path, "", "empty.log")
        written(tmp_path, "a line\n", "full.log")
    assert main(["rlhf", "doctor", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_signatures_are_complete() -> None:
    rules = yaml.safe_load(SIGNATURES.read_text())
    for name, rule in rules.items():
        assert {"pattern", "cause", "confidence", "fix", "source"} <= set(rule), name
        assert rule["confidence"] in ("high", "medium", "low"), name
        assert set(rule.get("hides", ())) <= set(rules), name
