"""Commands that someone already has: the seed's examples, bad ones, and OpenRLHF's own opinion of them."""

from __future__ import annotations

import pytest

from tests.rlhf.conftest import Wheels
from trimtab.errors import TrimtabError
from trimtab.hardware import get_device, get_model
from trimtab.rlhf.check import Checked, check
from trimtab.rlhf.flags import checked_version, guess_version, parse, version_key, words_of
from trimtab.rlhf.job import Cluster
from trimtab.rlhf.rules import Command, demand

MODELS = "--pretrain meta-llama/Meta-Llama-3-8B --reward_pretrain meta-llama/Meta-Llama-3-8B "
HYBRID = (
    MODELS + "--actor_num_gpus_per_node 8 --critic_num_gpus_per_node 8 --ref_num_gpus_per_node 8 "
    "--reward_num_gpus_per_node 8 --vllm_num_engines 4 --vllm_tensor_parallel_size 2 --colocate_all_models "
    "--vllm_gpu_memory_utilization 0.5 --vllm_enable_sleep --deepspeed_enable_sleep"
)
# As the guide prints it, comments and all.
LARGE = """
# 16 GPUs -> vLLM (TP=4, 4 engines)

--actor_num_nodes 2 \\
--actor_num_gpus_per_node 8 \\
--critic_num_nodes 2 \\
--critic_num_gpus_per_node 8 \\
--vllm_num_engines 4 \\  # four of them
--vllm_tensor_parallel_size 4 \\
--zero_stage 3 \\
--pretrain meta-llama/Meta-Llama-3-70B --reward_pretrain meta-llama/Meta-Llama-3-70B
"""


def on(nodes: int) -> Cluster:
    return Cluster(get_device("a100-80"), nodes)


def rules(found: Checked) -> dict[str, str]:
    return {finding.rule: finding.kind for finding in found.findings}


def test_the_guides_48_gpus_are_64() -> None:
    found = check(LARGE, cluster=on(6), version="0.9.7")
    assert found.gpus == 64
    assert found.demand == {"vllm": 16, "actor": 16, "ref": 8, "critic": 16, "reward": 8}
    assert rules(found)["gpus-owned"] == "hangs"
    assert not found.runs
    assert found.mended is not None
    assert found.mended_gpus == 48
    again = check(" ".join(found.mended), cluster=on(6), version="0.9.7")
    assert again.gpus == 48
    assert "gpus-owned" not in rules(again)


@pytest.mark.parametrize("version", ["0.8.6", "0.9.7"])
def test_the_wheels_say_so_too(version: str, openrlhf: Wheels) -> None:
    words = words_of(LARGE)
    assert openrlhf.ask(version, words).gpus == 64
    mended = check(LARGE, cluster=on(6), version=version).mended
    asked = openrlhf.ask(version, mended or [])
    assert (asked.error, asked.gpus) == (None, 48)


def test_the_guides_8_gpus() -> None:
    found = check(HYBRID, cluster=on(1), version="0.9.7")
    assert (found.gpus, found.demand) == (8, {"all": 8})
    old = check(HYBRID, cluster=on(1), version="0.8.6")
    assert rules(old)["sleep-zero"] == "crashes"
    assert old.mended is not None
    assert "--zero_stage 3" in " ".join(old.mended)
    # "enough memory: colocate everything" makes a second group
    more = check(HYBRID + " --colocate_actor_ref --colocate_critic_reward", cluster=on(1), version="0.9.7")
    assert more.gpus == 16
    assert rules(more)["second-group"] == "hangs"
    assert more.mended_gpus == 8


BAD = {  # what is added to the hybrid example -> (rule, kind, what OpenRLHF itself says, if it does)
    "--async_train": ("async-sleep", "refused", "not supported with --vllm_enable_sleep"),
    "--vllm_num_engines 3": ("engines-fill-actor", "refused", "got 8 and 6"),
    "--ref_num_gpus_per_node 4": (
        "colocated-sizes",
        "refused",
        "must be the same when colocate actor and ref",
    ),
    "--advantage_estimator rloo": ("grouped-samples", "refused", "n_samples_per_prompt > 1"),
    "--partial_rollout": ("partial-async", "refused", "requires --async_train"),
    "--rollout_batch_size 16": ("enough-batches", "refused", "greater than or equal to the effective number"),
    "--eval_dataset x": ("eval-remote", "refused", "only supported with `--remote_rm_url`"),
    "--ring_attn_size 3": ("ring-divides", "crashes", None),
    "--train_batch_size 100": ("batch-divides", "crashes", None),
    "--ds_tensor_parallel_size 2 --zero_stage 3": ("tp-zero", "crashes", None),
    "--dual_clip 0.9": ("dual-clip", "crashes", None),
    "--kl_target 6": ("kl-target", "trap", None),
    "--top_p 0.9": ("sampling", "trap", None),
    "--eps_clip_low_high 0.2 0.28": ("clip-higher", "trap", None),
    "--deepspeed_enable_sleep --adam_offload": ("sleep-offload", "ignored", None),
    "--ref_reward_offload": ("offload-zero", "ignored", None),
}


@pytest.mark.parametrize("added", list(BAD))
def test_bad_commands(added: str, openrlhf: Wheels) -> None:
    rule, kind, said = BAD[added]
    found = check(f"{HYBRID} {added}", cluster=on(1), version="0.9.7")
    assert rules(found)[rule] == kind
    asked = openrlhf.ask("0.9.7", words_of(f"{HYBRID} {added}"))
    if said is None:
        assert asked.error is None
    else:
        assert said in asked.error


def test_packing_without_engines(openrlhf: Wheels) -> None:
    words = words_of(MODELS + "--packing_samples")
    assert rules(check(" ".join(words), version="0.9.7"))["packing-engines"] == "refused"
    assert "TypeError" in openrlhf.ask("0.9.7", words).error


def test_memory_and_heads() -> None:
    found = check(HYBRID, cluster=on(1), version="0.9.7")
    assert found.forecast is not None
    # ZeRO-2: four whole models and the engine do not fit into 80 GiB.
    assert rules(found)["gpu-memory"] == "memory"
    uneven = check(HYBRID.replace("size 2", "size 3"), cluster=on(1), version="0.9.7")
    assert rules(uneven)["heads-divide"] == "crashes"
    small = HYBRID.replace("utilization 0.5", "utilization 0.12") + " --generate_max_len 30000"
    assert rules(check(small, cluster=on(1), version="0.9.7"))["kv-cache"] == "memory"


@pytest.mark.parametrize(
    ("command", "version", "message"),
    [
        (
            "--zero_stag 3",
            "0.9.7",
            r"unknown flag --zero_stag in OpenRLHF 0\.9\.7\. Did you mean 'zero_stage'",
        ),
        ("--zero_stage 3", "0.11.2", r"not a flag of OpenRLHF 0\.11\.2; there it is called --ds\.zero_stage"),
        ("--generate_max_len 9", "0.9.8", r"give --max_len \(total\) and --max_new_tokens"),
        ("--ref_reward_offload", "0.10.2", r"give --ref\.offload and --reward\.offload"),
        ("--zero_stage three", "0.9.7", "--zero_stage must be a whole number, got 'three'"),
        ("--reward_clip_range 1", "0.9.7", "takes 2 values, got 1"),
        ("--kl_estimator k4", "0.9.7", "--kl_estimator k4; allowed: k1, k2, k3"),
        ("--bf16 yes", "0.8.6", "--bf16 is a switch and takes no value, got 'yes'"),
        ("--partial_rollout", "0.9.6", "not a flag of OpenRLHF 0.9.6"),
        ("echo hello", "0.9.7", "no flag of train_ppo_ray in the command"),
        ("--pretrain 'x", "0.9.7", "cannot be read as shell words: No closing quotation"),
    ],
)
def test_one_line_errors(command: str, version: str, message: str) -> None:
    with pytest.raises(TrimtabError, match=message) as caught:
        check(command, version=version)
    assert "\n" not in str(caught.value)


def test_versions() -> None:
    assert checked_version("0.11.x") == checked_version("v0.11.2") == "0.11.2"
    assert checked_version("0.9") == "0.9"
    assert version_key("0.10.1") < version_key("0.10.1.post2") < version_key("0.10.2")
    for wrong in ("0.7.5", "1.0.0", "latest"):
        with pytest.raises(TrimtabError, match=r"allowed: 0\.8\.6 to 0\.11\.x"):
            checked_version(wrong)
    assert guess_version(["--ds.zero_stage", "3"]) == "0.11.2"
    assert guess_version(["--zero_stage", "3", "--generate_max_len", "9"]) == "0.9.7"
    assert guess_version(["--bf16", "--zero_stage", "3"]) == "0.9.1"


def test_words_of_a_job() -> None:
    command = (
        "ray job submit --address=x -- python3 -m openrlhf.cli.train_ppo_ray --zero_stage=3 --pretrain m"
    )
    assert parse(words_of(command), "0.9.7") == {"zero_stage": 3, "pretrain": "m"}


def test_demand_follows_the_wheels(openrlhf: Wheels) -> None:
    """Every way of sharing, with and without critic and reward server."""
    nodes = [f"--{role}_num_nodes 2" for role in ("actor", "critic", "ref", "reward")]
    sizes = " ".join([*nodes, "--vllm_num_engines 16"])
    everything = "--colocate_all_models"
    ways = ["", "--colocate_actor_ref", "--colocate_critic_reward", everything]
    ways += [f"{everything} --async_train", f"{everything} --colocate_critic_reward"]
    for sharing in ways:
        for rest in ("", "--remote_rm_url u", "--advantage_estimator reinforce", "--init_kl_coef 0"):
            words = words_of(f"{MODELS} {sizes} {sharing} {rest}")
            asked = openrlhf.ask("0.9.7", words)
            assert asked.error is None
            assert sum(demand(Command(parse(words, "0.9.7"), "0.9.7")).values()) == asked.gpus, (
                sharing,
                rest,
            )


def test_a_model_that_is_not_bundled_has_no_memory() -> None:
    found = check(HYBRID.replace("meta-llama/Meta-Llama-3-8B", "my/own"), cluster=on(1), version="0.9.7")
    assert found.forecast is None
    named = check(
        HYBRID.replace("meta-llama/Meta-Llama-3-8B", "my/own"),
        cluster=on(1),
        version="0.9.7",
        actor=get_model("llama-3-8b"),
    )
    assert named.forecast is not None
