"""The pages of a fusion training and of a comparison: one file each, nothing from the network."""

from __future__ import annotations

import math
from html import escape
from typing import Any

from trimtab import __version__
from trimtab.fusion.compare import OURS, PLAIN
from trimtab.fusion.methods import METHODS
from trimtab.fusion.train import Training, balances
from trimtab.report.html import LOGO, page, tip

Json = dict[str, Any]
SCRIPTS = ("base.js", "charts.js", "fusion.js")
SKETCH = {  # what the first sketch expected: before and after
    "dominant": ("99.4 %", "70 to 80 %"),
    "other": ("0.3 to 0.4 %", "10 to 20 %"),
    "variance": ("0.165", "0.020"),
}


def signed_points(difference: Any) -> str:
    """A difference of shares in percentage points with its interval.

    >>> signed_points([0.008, 0.002, 0.014])
    '+0.8 (+0.2 to +1.4)'
    """
    value, low, high = difference
    if not all(map(math.isfinite, (low, high))):
        return f"{100 * value:+.1f}"
    return f"{100 * value:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def headline(found: Json) -> tuple[str, str]:
    """(the answer, what backs it) of a comparison."""
    ours = OURS if all(OURS in each["methods"] for each in found["data"]) else None
    if ours is None:
        return "No method of ours was run on every data set.", ""
    errors = {each["name"]: each["methods"][ours]["weight_error"] for each in found["data"]}
    worst = max(errors, key=lambda name: float(errors[name]))
    lower = [e["name"] for e in found["data"] if e["methods"][ours]["accuracy_difference"][2] < 0]
    better = [e["name"] for e in found["data"] if e["methods"][ours]["without_dominant_difference"][1] > 0]
    answer = f"{ours} keeps mean weights within {errors[worst]:.3f} of the target (worst on {worst})."
    backing = (
        f"Its accuracy is {'lower than' if lower else 'not lower than'} the plain gate's"
        f"{' on ' + ', '.join(lower) if lower else ' on any data set'}; without the dominant "
        f"modality it is higher on {', '.join(better) or 'none'} (95 % intervals, paired by seed)."
    )
    return answer, backing


def compare_page(found: Json) -> str:
    """The page of a comparison (comparison.json as read), complete HTML."""
    answer, backing = headline(found)
    plan = found["plan"]
    few = (
        "" if plan["seeds"] > 2 else '<p class="notice">Fewer than three seeds: differences may be luck.</p>'
    )
    body = f"""<header class="top">
<div class="eyebrow">{LOGO}trimtab fusion compare</div>
<h1>Gates between modalities</h1>
<p class="lead"><b>{escape(answer)}</b> {escape(backing)}</p>
<ul class="facts"><li><b>{len(found["data"])}</b> data sets</li><li><b>{len(plan["methods"])}</b> methods</li>
<li><b>{plan["seeds"]}</b> seeds</li><li><b>{plan["epochs"]}</b> epochs</li></ul>{few}
</header>
<main>
{"".join(_data_section(each) for each in found["data"])}
{_before_after(found["data"][0])}
{_long_section(found["long"])}
{_grid_section(found["grid"])}
{_methods_section(plan["methods"])}
</main>
<footer>Made with trimtab {escape(__version__)}. Every figure is in comparison.json.</footer>"""
    return page("Gates between modalities", body, {"charts": _long_charts(found["long"])}, SCRIPTS)


def _data_section(each: Json) -> str:
    dominant = escape(each["dominant"])
    rows = []
    best = max(row["without_dominant"][0] for row in each["methods"].values())
    for name, row in each["methods"].items():
        summary = METHODS[name].summary
        own = "" if name == PLAIN else _points(row["accuracy_difference"])
        missing = "" if name == PLAIN else _points(row["without_dominant_difference"])
        win = ' class="win"' if row["without_dominant"][0] >= best - 1e-12 else ""
        weights = [weight[0] for weight in row["weights"]]
        error = "" if row["weight_error"] is None else f"{row['weight_error']:.3f}"
        rows.append(
            f'<tr><th scope="row">{tip(name, summary)}</th>'
            f"<td>{100 * row['accuracy'][0]:.1f} %<small>{own}</small></td>"
            f"<td{win}>{100 * row['without_dominant'][0]:.1f} %<small>{missing}</small></td>"
            f'<td style="min-width:190px">{_stack(weights, each["modalities"], "weight")}</td>'
            f"<td>{error}</td>"
            f'<td style="min-width:190px">{_stack(row["shapley_shares"], each["modalities"], "share")}</td>'
            f"<td>{_list(row['bias'])}</td></tr>"
        )
    heads = "".join(
        f'<th scope="col">{name}</th>'
        for name in (
            "method", "accuracy", f"without {dominant}", "mean weights", "off target",
            "Shapley shares of accuracy", "bias",
        )
    )  # fmt: skip
    swatches = "".join(
        f'<span><i class="swatch" style="background:var(--c{i})"></i>{escape(name)}</span>'
        for i, name in enumerate(each["modalities"])
    )
    source = f" from {escape(each['source'])}" if each["source"] else ""
    return f"""<section><h2>{escape(each["name"])}</h2>
<p class="see">{each["samples"]:,} samples{source}. <b>{dominant}</b> has most weight in the plain gate. Small
figures are differences to the plain gate in percentage points, with 95 % intervals paired by seed. Balanced
weights (left bars) are not balanced use (right bars): compare them.</p>
<div class="legend">{swatches}</div>
<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>
</section>"""


def _points(difference: Any) -> str:
    return escape(signed_points(difference))


def _list(values: list[float]) -> str:
    return " ".join(f"{value:+.2f}" for value in values)


def _stack(shares: list[float], names: list[str], what: str) -> str:
    """Shares as one bar; what is below zero (a modality that does harm) is not drawn, and said."""
    if any(map(math.isnan, shares)):
        return ""
    parts = "".join(
        f'<i style="flex:{max(share, 0):.4f} 0 0;background:var(--c{i})" tabindex="0" '
        f'data-tip="{escape(name)}: {what} {share:.3f}"></i>'
        for i, (name, share) in enumerate(zip(names, shares, strict=True))
    )
    said = " / ".join(f"{share:.2f}" for share in shares)
    return f'<div class="stack" style="height:16px;margin:2px 0 1px">{parts}</div><small>{said}</small>'


def _before_after(each: Json) -> str:
    """The first sketch's table with what was measured."""
    plain, ours = each["methods"][PLAIN], each["methods"].get("balanced")
    if ours is None:
        return ""
    at = each["modalities"].index(each["dominant"])

    def others(row: Json) -> str:
        return ", ".join(f"{100 * w[0]:.1f} %" for i, w in enumerate(row["weights"]) if i != at)

    rows = (
        (f"weight of the dominant ({each['dominant']})", *SKETCH["dominant"],
         f"{100 * plain['weights'][at][0]:.1f} %", f"{100 * ours['weights'][at][0]:.1f} %"),
        ("weight of the others", *SKETCH["other"], others(plain), others(ours)),
        ("variance of the weights", *SKETCH["variance"],
         f"{plain['weight_variance']:.3f}", f"{ours['weight_variance']:.3f}"),
    )  # fmt: skip
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>{"".join(f"<td>{escape(x)}</td>" for x in row[1:])}</tr>'
        for row in rows
    )
    heads = "".join(
        f'<th scope="col">{name}</th>'
        for name in ("", "expected: before", "expected: after", f"{escape(each['name'])}: plain", "balanced")
    )
    return f"""<section><h2>Before and after, expected and measured</h2>
<p class="see">The expected column contradicts itself: weights of 99.4 / 0.4 / 0.3 % have a variance of 0.218,
not 0.165, and 70 / 15 / 15 % have 0.067. A variance of 0.020 would be about 53 / 24 / 23 %, so it cannot come
with 70 to 80 % for the dominant modality.</p>
<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></section>"""


def _long_section(long: Json | None) -> str:
    if long is None:
        return ""
    return f"""<section><h2>Does it last?</h2>
<p class="see">{
        escape(long["data"])
    }, seed 0, one line per modality; dashes are the target. A gate with free logits
cancels the bias, which then grows without end (literal); with bounded logits both stand still.</p>
<div class="times">{
        "".join(
            f'<div><h3>{escape(name)}: {what}</h3><div class="plot" id="{escape(name)}-{key}"></div></div>'
            for name in long["methods"]
            for what, key in (("mean weights", "test_weights"), ("bias", "bias"))
        )
    }</div></section>"""


def _long_charts(long: Json | None) -> list[Json]:
    if long is None:
        return []
    charts = []
    others = len(long["modalities"]) - 1
    for name, rows in long["methods"].items():
        ratio = METHODS[name].gate.get("target_balance_ratio")
        dashes = [] if ratio is None else [ratio, 1 - ratio * others]
        for key, what in (("test_weights", "weight"), ("bias", "bias")):
            drawn = dashes if what == "weight" else []
            charts.append(chart(f"{name}-{key}", rows["epoch"], rows[key], long["modalities"], what, drawn))
    return charts


def chart(
    key: str, epochs: list[int], rows: list[list[float]], names: list[str], what: str, dashes: list[float]
) -> Json:
    """What fusion.js draws: one line per name, from one row of values per epoch."""
    columns = list(zip(*rows, strict=True))
    flat = [value for row in rows for value in row]
    low, high = (0.0, 1.0) if what == "weight" else (min(0.0, *flat), max(*flat, 0.0) or 1.0)
    lines = [{"name": name, "values": list(column)} for name, column in zip(names, columns, strict=True)]
    return {"id": key, "x": epochs, "y": [low, high], "what": what, "lines": lines, "dashes": dashes}


def _grid_section(grid: Json | None) -> str:
    if grid is None:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{rate}</td><td>{ratio}</td>'
        f"<td>{' / '.join(f'{w:.3f}' for w in cell['weights'])}</td><td>{cell['weight_error']:.3f}</td>"
        f"<td>{cell['weight_variance']:.4f}</td><td>{100 * cell['accuracy']:.1f} %</td>"
        f"<td>{100 * cell['without_dominant']:.1f} %</td></tr>"
        for cell in [*grid["settings"], *grid["cells"]]
        for name, rate, ratio in [_setting(cell)]
    )
    heads = "".join(
        f'<th scope="col">{name}</th>'
        for name in (
            "",
            "update rate",
            "ratio",
            "mean weights",
            "off target",
            "variance",
            "accuracy",
            "without dominant",
        )
    )
    return f"""<section><h2>Rates and ratios</h2>
<p class="see">{escape(grid["data"])}, balanced. The ratio decides where the weights end, the rate only how
soon.</p>
<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div></section>"""


def _setting(cell: Json) -> tuple[str, str, str]:
    if cell["rate"] is None:
        gate = METHODS[cell["method"]].gate
        name = "standard" if cell["method"] == "balanced" else cell["method"]
        return name, str(gate["load_balance_update_rate"]), str(gate["target_balance_ratio"])
    return "", str(cell["rate"]), str(cell["ratio"])


def _methods_section(names: list[str]) -> str:
    words = "".join(f"<dt>{escape(name)}</dt><dd>{escape(METHODS[name].summary)}</dd>" for name in names)
    return f"""<section><h2>How this was computed</h2><div class="method">
<p>Each seed draws halves of each class for training and test (or the data's own split is used) and the
initial weights; every method gets the same. An epoch has about 20 batches. Accuracy without a modality: its
encoding is zero and its weight 0, the others share the whole. Shapley shares are of test accuracy.</p>
</div><dl class="words">{words}</dl></section>"""


# --- one training ---------------------------------------------------------------------------------------


def train_page(training: Training, figures: Json) -> str:
    """The page of one training, complete HTML."""
    recipe, data, history = training.recipe, training.data, training.history
    epochs = [row["epoch"] for row in history]
    dashes = sorted(set(training.model.gate.target().tolist())) if balances(training) else []
    dashes = [value for value in dashes if math.isfinite(value)]
    charts = [
        chart("weights", epochs, [row["test_weights"] for row in history], data.modalities, "weight", dashes),
        chart("bias", epochs, [row["bias"] for row in history], data.modalities, "bias", []),
        chart("norms", epochs, [row["gradient_norms"] for row in history], data.modalities, "norm", []),
        chart("accuracy", epochs, [[row["accuracy"]] for row in history], ["test"], "accuracy", []),
    ]
    alarm, summary = history[-1]["alarm"], METHODS[recipe.method].summary
    rows = "".join(
        f'<tr><th scope="row"><i class="swatch" style="background:var(--c{i})"></i> {escape(name)}</th>'
        f"<td>{figures['weights'][i]:.3f}</td><td>{figures['dominant_counts'][i]:,}</td>"
        f"<td>{100 * figures['without'][i]:.1f} %</td><td>{100 * figures['alone'][i]:.1f} %</td>"
        f"<td>{figures['shapley_shares'][i]:.3f}</td></tr>"
        for i, name in enumerate(data.modalities)
    )
    heads = "".join(
        f'<th scope="col">{n}</th>'
        for n in ("modality", "mean weight", "dominant in", "accuracy without it", "alone", "Shapley share")
    )
    plots = (
        ("weights", "Mean weights", "On the test samples; dashes are the target."),
        ("bias", "Bias", "Should come to rest. Growth without end means that the gate cancels it."),
        ("norms", "Gradient norms of the encoders", "An encoder near zero learns nothing."),
        ("accuracy", "Test accuracy", "Balancing must not cost it."),
    )
    shown = "".join(
        f'<div><h3>{title}</h3><p class="see">{see}</p><div class="plot" id="{key}"></div></div>'
        for key, title, see in plots
    )
    body = f"""<header class="top">
<div class="eyebrow">{LOGO}trimtab fusion train</div>
<h1>{escape(data.name)}, {escape(recipe.method)}</h1>
<p class="lead"><b>Test accuracy {100 * figures["accuracy"]:.1f} %.</b> Method: {escape(summary)}.</p>
<ul class="facts"><li><b>{len(data.labels):,}</b> samples</li><li><b>{len(history)}</b> epochs</li>
<li>batches of <b>{recipe.batch_size}</b></li><li>seed <b>{recipe.seed}</b></li></ul>
{f'<p class="notice">{escape(alarm)}</p>' if alarm else ""}
</header><main>
<section><h2>Weight and use</h2>
<p class="see">On the test samples. A weight says how much an encoding is multiplied by; the columns after it,
what the model loses without the modality and what it can do with it alone.</p>
<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></section>
<section><h2>Epoch by epoch</h2><p class="see">One line per modality.</p>
<div class="times">{shown}</div></section>
</main><footer>Made with trimtab {escape(__version__)}. Figures: metrics.csv and summary.json.</footer>"""
    return page(f"{data.name}: {recipe.method}", body, {"charts": charts}, SCRIPTS)
