"""Every flag of Vidur's command line, and where it goes in a scenario. Data, no logic.

Vidur (microsoft/vidur@7d47513) flattens its configuration classes into flags named
``<class>_<field>``; ``config.json`` holds the same fields nested. The table in
``docs/how-to/from-vidur.md`` is generated from here.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any


class Fate(Enum):
    """What becomes of a flag."""

    PLACED = "translated"
    IDLE = "not needed"  # changes no result
    MISSING = "no counterpart"  # a problem unless it has Vidur's default


@dataclass(frozen=True)
class Section:
    """One class of Vidur's configuration: its place in config.json, and the choice that selects it."""

    path: tuple[str, ...]
    choice: str | None = None


@dataclass(frozen=True)
class Flag:
    """``ours`` is a path in the scenario; ``type`` is that of one value."""

    section: str
    field: str
    default: Any
    ours: str = ""
    note: str = ""
    fate: Fate = Fate.PLACED
    type: type = str

    @property
    def name(self) -> str:
        """As on Vidur's command line, without the dashes."""
        return f"{self.section}_{self.field}" if self.section else self.field


REQUESTS = ("request_generator_config",)
LENGTHS = (*REQUESTS, "length_generator_config")
GAPS = (*REQUESTS, "interval_generator_config")
ROUTER = ("cluster_config", "global_scheduler_config")
SCHEDULER = ("cluster_config", "replica_scheduler_config")
TIMES = ("execution_time_predictor_config",)

SECTIONS: dict[str, Section] = {
    "": Section(()),
    "cluster_config": Section(("cluster_config",)),
    "replica_config": Section(("cluster_config", "replica_config")),
    "vllm_scheduler_config": Section(SCHEDULER, "vllm"),
    "sarathi_scheduler_config": Section(SCHEDULER, "sarathi"),
    "orca_scheduler_config": Section(SCHEDULER, "orca"),
    "faster_transformer_scheduler_config": Section(SCHEDULER, "faster_transformer"),
    "lightllm_scheduler_config": Section(SCHEDULER, "lightllm"),
    "synthetic_request_generator_config": Section(REQUESTS, "synthetic"),
    "trace_request_generator_config": Section(REQUESTS, "trace_replay"),
    "fixed_request_length_generator_config": Section(LENGTHS, "fixed"),
    "uniform_request_length_generator_config": Section(LENGTHS, "uniform"),
    "zipf_request_length_generator_config": Section(LENGTHS, "zipf"),
    "trace_request_length_generator_config": Section(LENGTHS, "trace"),
    "poisson_request_interval_generator_config": Section(GAPS, "poisson"),
    "gamma_request_interval_generator_config": Section(GAPS, "gamma"),
    "static_request_interval_generator_config": Section(GAPS, "static"),
    "trace_request_interval_generator_config": Section(GAPS, "trace"),
    "random_forrest_execution_time_predictor_config": Section(TIMES, "random_forrest"),
    "linear_regression_execution_time_predictor_config": Section(TIMES, "linear_regression"),
    "metrics_config": Section(("metrics_config",)),
}

# Flags that choose a class: place of the choice in config.json ("name" there), default, our path.
CHOICES: dict[str, tuple[tuple[str, ...], str, str]] = {
    "global_scheduler_config_type": (ROUTER, "round_robin", "router.name"),
    "replica_scheduler_config_type": (SCHEDULER, "sarathi", "replicas.scheduler.name"),
    "request_generator_config_type": (REQUESTS, "synthetic", "workload.arrivals.kind"),
    "length_generator_config_type": (LENGTHS, "fixed", "workload.lengths.kind"),
    "interval_generator_config_type": (GAPS, "poisson", "workload.arrivals.kind"),
    "execution_time_predictor_config_type": (TIMES, "random_forrest", "replicas.exectime.kind"),
}
ROUTER_NAMES = {"round_robin": "round-robin", "random": "random", "lor": "vidur-lor"}
SCHEDULER_NAMES = ("vllm", "sarathi", "orca", "faster_transformer", "lightllm")

# What Vidur's config.json repeats and derives; not flags.
DERIVED = frozenset(
    {"name", "world_size", "model_config", "device_config", "node_config", "max_tokens", "output_dir"}
)

NO_LINEAR = "no such predictor; random forests are there"
ONE_SEED = "everything is drawn from `seed`"
FILES = "files in Vidur's layout under one folder"
NEVER_WATERMARK = "this scheduler keeps no watermark, in Vidur either"


def _in(section: str, *rows: tuple[Any, ...]) -> list[Flag]:
    return [Flag(section, *row) for row in rows]


def _scheduler(name: str, keeps_watermark: bool, capped: bool) -> list[Flag]:
    at = "replicas.scheduler"
    cap_note = "at most Vidur's memory slots" if capped else ""
    watermark: tuple[Any, ...] = ("watermark_blocks_fraction", 0.01)
    watermark += (f"{at}.watermark", "", Fate.PLACED) if keeps_watermark else ("", NEVER_WATERMARK, Fate.IDLE)
    return _in(
        f"{name}_scheduler_config",
        ("batch_size_cap", 128, f"{at}.max_num_seqs", cap_note, Fate.PLACED, int),
        ("block_size", 16, f"{at}.block_size", "", Fate.PLACED, int),
        (*watermark, float),
        ("num_blocks", None, f"{at}.num_blocks", "unset: by Vidur's memory rule", Fate.PLACED, int),
    )


def _predictor(name: str) -> list[Flag]:
    data = "./data/profiling"
    placed, idle, missing = Fate.PLACED, Fate.IDLE, Fate.MISSING
    path = "replicas.exectime.path"
    return _in(
        f"{name}_execution_time_predictor_config",
        ("compute_input_file", f"{data}/compute/{{DEVICE}}/{{MODEL}}/mlp.csv", path, FILES),
        ("attention_input_file", f"{data}/compute/{{DEVICE}}/{{MODEL}}/attention.csv", path, FILES),
        ("all_reduce_input_file", f"{data}/network/{{NETWORK_DEVICE}}/all_reduce.csv", path, FILES),
        ("send_recv_input_file", f"{data}/network/{{NETWORK_DEVICE}}/send_recv.csv", path, FILES),
        (
            "cpu_overhead_input_file",
            f"{data}/cpu_overhead/{{NETWORK_DEVICE}}/{{MODEL}}/cpu_overheads.csv",
            "",
            "Vidur ships no such file",
            idle,
        ),
        ("k_fold_cv_splits", 10, "", "no grid search here", idle, int),
        ("no_cache", False, "", "nothing stale to avoid", idle, bool),
        ("kv_cache_prediction_granularity", 64, "", "always 64 tokens", missing, int),
        ("prediction_max_prefill_chunk_size", 4096, "", "tables are as large as needed", idle, int),
        ("prediction_max_batch_size", 128, "", "tables are as large as needed", idle, int),
        ("prediction_max_tokens_per_request", 4096, "replicas.exectime.max_tokens", "", placed, int),
        ("attention_decode_batching_overhead_fraction", 0.1, "", "always 0.1", missing, float),
        ("attention_prefill_batching_overhead_fraction", 0.1, "", "always 0.1", missing, float),
        ("nccl_cpu_launch_overhead_ms", 0.02, "", "always 0.02 ms", missing, float),
        ("nccl_cpu_skew_overhead_per_device_ms", 0.0, "", "always 0", missing, float),
        ("num_training_job_threads", -1, "", "changes no result", idle, int),
        (
            "skip_cpu_overhead_modeling",
            True,
            "",
            "its profiles are not public; see replicas.exectime.cpu_overhead_ms",
            missing,
            bool,
        ),
    )


_SCALES: tuple[tuple[Any, ...], ...] = (
    ("prefill_scale_factor", 1.0, "workload.lengths.prefill_scale", "", Fate.PLACED, float),
    ("decode_scale_factor", 1.0, "workload.lengths.decode_scale", "", Fate.PLACED, float),
)
_SEED: tuple[Any, ...] = ("seed", 42, "", ONE_SEED, Fate.IDLE, int)
_METRICS: dict[str, str] = {
    "write_metrics": "a run folder is always written",
    "write_json_trace": "trace.json is always written",
    "wandb_project": "trimtab simulate --wandb PROJECT",
    "wandb_group": "trimtab simulate --wandb PROJECT",
    "wandb_run_name": "trimtab simulate --wandb PROJECT",
    "wandb_sweep_id": "trimtab simulate --wandb PROJECT",
    "wandb_run_id": "trimtab simulate --wandb PROJECT",
    "enable_chrome_trace": "trace.json is always written",
    "save_table_to_wandb": "trimtab simulate --wandb PROJECT",
    "store_plots": "plots are always written",
    "store_operation_metrics": "times of operators are in the tables, not in the run",
    "store_token_completion_metrics": "inter-token latencies are always kept",
    "store_request_metrics": "always kept, in requests.parquet",
    "store_batch_metrics": "always kept",
    "store_utilization_metrics": "always kept",
    "keep_individual_batch_metrics": "always kept",
    "subsamples": "plots thin themselves out",
    "min_batch_index": "all batches count",
    "max_batch_index": "all batches count",
    "output_dir": "trimtab simulate --out FOLDER",
    "cache_dir": "nothing to cache",
}

FLAGS: tuple[Flag, ...] = (
    *_in(
        "",
        ("seed", 42, "seed", "", Fate.PLACED, int),
        ("log_level", "info", "", "changes no result", Fate.IDLE),
        ("time_limit", 0, "time_limit_s", "0: no limit", Fate.PLACED, float),
    ),
    *_in("cluster_config", ("num_replicas", 1, "replicas.count", "", Fate.PLACED, int)),
    *_in(
        "replica_config",
        ("model_name", "meta-llama/Llama-2-7b-hf", "replicas.model"),
        ("memory_margin_fraction", 0.1, "replicas.memory_margin", "", Fate.PLACED, float),
        ("num_pipeline_stages", 1, "replicas.pp", "", Fate.PLACED, int),
        ("tensor_parallel_size", 1, "replicas.tp", "", Fate.PLACED, int),
        ("device", "a100", "replicas.device"),
        ("network_device", "a100_pairwise_nvlink", "replicas.node"),
    ),
    *_scheduler("vllm", keeps_watermark=True, capped=False),
    *_in(
        "vllm_scheduler_config",
        ("max_tokens_in_batch", 4096, "replicas.scheduler.token_budget", "", Fate.PLACED, int),
    ),
    *_scheduler("sarathi", keeps_watermark=True, capped=False),
    *_in(
        "sarathi_scheduler_config",
        ("chunk_size", 512, "replicas.scheduler.token_budget", "", Fate.PLACED, int),
    ),
    *_scheduler("orca", keeps_watermark=False, capped=True),
    *_scheduler("faster_transformer", keeps_watermark=False, capped=True),
    *_scheduler("lightllm", keeps_watermark=False, capped=False),
    *_in(
        "lightllm_scheduler_config",
        ("max_tokens_in_batch", 4096, "replicas.scheduler.token_budget", "", Fate.PLACED, int),
        ("max_waiting_iters", 10, "replicas.scheduler.max_waiting_iters", "", Fate.PLACED, int),
    ),
    *_in(
        "synthetic_request_generator_config",
        _SEED,
        ("num_requests", 128, "workload.num_requests", "", Fate.PLACED, int),
        ("duration", None, "workload.duration_s", "wins over num_requests", Fate.PLACED, float),
    ),
    *_in(
        "trace_request_generator_config",
        _SEED,
        ("trace_file", "data/processed_traces/splitwise_conv.csv", "workload.trace.path"),
        *_SCALES,
        ("time_scale_factor", 1.0, "workload.arrivals.time_scale", "", Fate.PLACED, float),
        ("max_tokens", 4096, "workload.max_tokens", "cut from the prompt", Fate.PLACED, int),
    ),
    *_in(
        "fixed_request_length_generator_config",
        _SEED,
        (
            "max_tokens",
            4096,
            "replicas.scheduler.num_blocks",
            "only through the memory rule",
            Fate.PLACED,
            int,
        ),
        ("prefill_tokens", 2048, "workload.lengths.prefill", "", Fate.PLACED, int),
        ("decode_tokens", 512, "workload.lengths.decode", "", Fate.PLACED, int),
    ),
    *_in(
        "uniform_request_length_generator_config",
        _SEED,
        ("max_tokens", 4096, "workload.lengths.max_tokens", "", Fate.PLACED, int),
        ("min_tokens", 1024, "workload.lengths.min_tokens", "", Fate.PLACED, int),
        ("prefill_to_decode_ratio", 20.0, "workload.lengths.prefill_to_decode", "", Fate.PLACED, float),
    ),
    *_in(
        "zipf_request_length_generator_config",
        _SEED,
        ("max_tokens", 4096, "workload.lengths.max_tokens", "", Fate.PLACED, int),
        ("theta", 0.6, "workload.lengths.theta", "", Fate.PLACED, float),
        ("scramble", False, "workload.lengths.scramble", "", Fate.PLACED, bool),
        ("min_tokens", 1024, "workload.lengths.min_tokens", "", Fate.PLACED, int),
        ("prefill_to_decode_ratio", 20.0, "workload.lengths.prefill_to_decode", "", Fate.PLACED, float),
    ),
    *_in(
        "trace_request_length_generator_config",
        _SEED,
        (
            "trace_file",
            "data/processed_traces/sharegpt_8k_filtered_stats_llama2_tokenizer.csv",
            "workload.trace.path",
            "the default is not in Vidur's repository",
        ),
        *_SCALES,
        ("max_tokens", 4096, "workload.max_tokens", "cut from both in proportion", Fate.PLACED, int),
    ),
    *_in(
        "poisson_request_interval_generator_config",
        _SEED,
        (
            "qps",
            0.5,
            "workload.arrivals.qps",
            "gaps cut at 3/qps (`cap: 3`), as Vidur does",
            Fate.PLACED,
            float,
        ),
    ),
    *_in(
        "gamma_request_interval_generator_config",
        _SEED,
        ("qps", 0.2, "workload.arrivals.qps", "", Fate.PLACED, float),
        ("cv", 0.5, "workload.arrivals.cv", "", Fate.PLACED, float),
    ),
    *_in("static_request_interval_generator_config", _SEED),
    *_in(
        "trace_request_interval_generator_config",
        _SEED,
        *(
            (field, default, "", "Azure Functions invocations; not in Vidur's repository", Fate.MISSING)
            for field, default in (
                (
                    "trace_file",
                    "data/processed_traces/AzureFunctionsInvocationTraceForTwoWeeksJan2021Processed.csv",
                ),
                ("start_time", "1970-01-04 12:00:00"),
                ("end_time", "1970-01-04 15:00:00"),
            )
        ),
        ("time_scale_factor", 1.0, "", "as above", Fate.MISSING, float),
    ),
    *_predictor("random_forrest"),
    *_in(
        "random_forrest_execution_time_predictor_config",
        ("num_estimators", [250, 500, 750], "replicas.exectime.trees", "several: 250", Fate.PLACED, int),
        ("max_depth", [8, 16, 32], "replicas.exectime.max_depth", "several: 16", Fate.PLACED, int),
        ("min_samples_split", [2, 5, 10], "", "always 2", Fate.IDLE, int),
    ),
    *(
        Flag(
            "linear_regression_execution_time_predictor_config",
            field,
            default,
            "",
            NO_LINEAR,
            Fate.MISSING,
            type_,
        )
        for field, default, type_ in (
            *((flag.field, flag.default, flag.type) for flag in _predictor("random_forrest")),
            ("polynomial_degree", [1, 2, 3, 4, 5], int),
            ("polynomial_include_bias", [True, False], bool),
            ("polynomial_interaction_only", [True, False], bool),
            ("fit_intercept", [True, False], bool),
        )
    ),
    *(Flag("metrics_config", field, None, "", note, Fate.IDLE) for field, note in _METRICS.items()),
)
BY_NAME: dict[str, Flag] = {flag.name: flag for flag in FLAGS}
