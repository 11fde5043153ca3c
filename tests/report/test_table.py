"""The block that vllm bench serve prints, line for line."""

from __future__ import annotations

from rich.console import Console

from trimtab.report.table import bench_table, print_comparison, print_result, replica_table

EXPECTED = """\
============ Serving Benchmark Result ============
Successful requests:                     1000      
Failed requests:                         0         
Benchmark duration (s):                  12.35     
Total input tokens:                      250000    
Total generated tokens:                  100000    
Request throughput (req/s):              81.00     
Output token throughput (tok/s):         8100.00   
Total token throughput (tok/s):          28350.00  
---------------Time to First Token----------------
Mean TTFT (ms):                          50.00     
Median TTFT (ms):                        40.00     
P99 TTFT (ms):                           300.00    
-----Time per Output Token (excl. 1st token)------
Mean TPOT (ms):                          20.00     """  # noqa: W291


def test_lines_are_those_of_vllm(make_result):
    summary = dict.fromkeys(make_result(50).summary(), float("nan"))
    summary |= {"completed": 1000, "failed": 0, "duration": 12.3457, "total_input_tokens": 250_000}
    summary |= {"total_output_tokens": 100_000, "request_throughput": 81.0, "output_throughput": 8100.0}
    summary |= {"total_token_throughput": 28350.0, "mean_ttft_ms": 50.0, "median_ttft_ms": 40.0}
    summary |= {"p99_ttft_ms": 300.0, "mean_tpot_ms": 20.0}
    assert bench_table(summary).startswith(EXPECTED)


def test_unknown_figures_are_left_out(make_result):
    text = bench_table(make_result(50).summary())
    assert "nan" not in text
    assert "goodput" not in text
    assert all(len(line) <= 52 for line in text.splitlines())


def test_replicas_are_listed(result):
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(replica_table(result))
    assert len(console.export_text().splitlines()) == 5


def test_many_replicas_are_shortened(finish_result, make_table, scenario):
    table = replica_table(finish_result(make_table(5000, 64), 64, scenario), limit=10)
    assert table.row_count == 11


def test_everything_prints(result, capsys):
    print_result(result)
    printed = capsys.readouterr().out
    assert "Serving Benchmark Result" in printed
    assert "a100-80" in printed


def test_comparison_prints(comparison, capsys):
    print_comparison(comparison)
    printed = capsys.readouterr().out
    assert "least-outstanding" in printed
    assert "TTFT p99" in printed
    assert "E2E mean" in printed
    assert max(len(line) for line in printed.splitlines()) <= 80
