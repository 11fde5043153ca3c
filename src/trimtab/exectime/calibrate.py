"""From profiles to a calibration with honest errors: what ``trimtab calibrate`` does.

Errors are measured on shapes that the fit never saw. *Held out*: a quarter of the shapes that a batch
can take (token counts; batch x context), the same ones for every model and operator. *Left out*: each
model in turn, and with it every row of another model that has the same matrix. An iteration is the sum
of all operators of a layer that were measured at the same tokens, model and parallelism; attention and
collectives are measured on other grids and are judged as operators.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.errors import TrimtabError
from trimtab.exectime.calibration import Calibration
from trimtab.exectime.fit import fit_calibration, predict, shape_folds
from trimtab.exectime.groups import GROUP_OF, GROUPS
from trimtab.exectime.kernels import COLLECTIVES, Kernels, get_efficiency
from trimtab.exectime.profile_schema import COLUMNS, Profile, read_profile
from trimtab.exectime.vidur_profile import FILES, concatenate, read_vidur
from trimtab.hardware.devices import Node, get_device, list_nodes, node_for
from trimtab.hardware.models import get_model, list_models

Array = NDArray[np.float64]
Step = Callable[[str], None]
SHARE = 4  # one shape in so many is held out
LINEAR = ("attn_pre_proj", "attn_post_proj", "mlp_up_proj", "mlp_down_proj")
LAYER = (
    *LINEAR,
    "mlp_act",
    "attn_rope",
    "input_layernorm",
    "post_attention_layernorm",
    "add",
)
# Between these, measured over analytic time is plausible; outside, the unit is wrong.
PLAUSIBLE = (0.02, 50.0)


@dataclass(frozen=True)
class Found:
    """Rows of one device, the kernels without calibration, and the files that were passed over."""

    rows: Profile
    kernels: Kernels
    skipped: list[str]


def collect(paths: list[Path], device: str | None = None) -> Found:
    """Profiles in our schema and in Vidur's layout, files or folders, of one device.

    Of operators that were measured in CUDA graphs and eagerly, the graphs' rows are kept.

    Raises
    ------
    TrimtabError
        one line: no profile, several devices and none chosen, an empty profile, a missing column, times
        in another unit, heads that the parallelism does not divide.
    """
    parts: list[Profile] = []
    skipped: list[str] = []
    chosen = get_device(device) if device else None
    own = {each.lower() for each in (chosen.name, *chosen.aliases)} if chosen else set()
    wanted = chosen.name if chosen else None
    for path in _files(paths, skipped):
        part = read_vidur(path) if path.name in FILES else read_profile(path)
        given = np.unique(part.words["device"])
        names = {name: wanted if name.lower() in own else get_device(str(name)).name for name in given}
        part.words["device"] = np.array([names[name] for name in part.words["device"]])
        part = part if wanted is None else part.where(part.words["device"] == wanted)
        _check_heads(path, part)
        if len(part):
            parts.append(part)
    if not parts:
        where = ", ".join(map(str, paths))
        raise TrimtabError(f"an empty profile: no rows{f' of {wanted}' if wanted else ''} in {where}")
    rows = concatenate(parts)
    devices = sorted(set(rows.words["device"]))
    if len(devices) > 1:
        raise TrimtabError(f"profiles of {len(devices)} devices ({', '.join(devices)}); choose one: --device")
    found = chosen or get_device(str(devices[0]))
    node = _node(rows, node_for(found, None))
    rows = rows.where(_usable(rows, node))
    kernels = Kernels(found, node, get_efficiency(found.efficiency))
    check_unit(rows, kernels)
    return Found(rows, kernels, skipped)


def _files(paths: list[Path], skipped: list[str]) -> Iterator[Path]:
    for path in paths:
        if not path.is_dir():
            yield path
            continue
        for file in sorted([*path.rglob("*.csv"), *path.rglob("*.csv.gz")]):
            if "surrogate" in file.name.lower():
                skipped.append(f"{file.relative_to(path)}: not measured")
            elif file.name in FILES or _is_ours(file):
                yield file


def _is_ours(file: Path) -> bool:
    if file.suffix == ".gz":
        return True
    with file.open(encoding="utf-8", errors="replace") as stream:
        return {"operator", "median_ms"} <= set(stream.readline().strip().split(",")) <= {*COLUMNS}


def _check_heads(path: Path, rows: Profile) -> None:
    known = set(list_models())
    for name in np.unique(rows.words["model"]):
        if str(name) not in known:
            continue
        model = get_model(str(name))
        for tp in np.unique(rows.numbers["tp"][rows.words["model"] == name]):
            if tp < 1 or model.heads % int(tp):
                raise TrimtabError(f"{path}: tp={tp:g} does not divide the {model.heads} heads of {name}")


def _node(rows: Profile, usual: Node) -> Node:
    """Where collectives were measured; several kinds of nodes: the usual one counts."""
    known = set(list_nodes())
    measured = {str(name) for name in np.unique(rows.words["model"])} & known
    if len(measured) == 1:
        return node_for(get_device(usual.device), measured.pop())
    return usual


def _usable(rows: Profile, node: Node) -> NDArray[np.bool_]:
    """Collectives of this node and of one group of linked devices; graphs before eager launches."""
    operators, models = rows.words["operator"], rows.words["model"]
    keep = np.ones(len(rows), dtype=bool)
    for operator in np.unique(operators):
        mine = operators == operator
        graphs = mine & (rows.numbers["graph"] == 1)
        if graphs.any():
            keep &= ~mine | graphs
    collective = np.isin(operators, COLLECTIVES)
    other_node = np.isin(models, [name for name in list_nodes() if name != node.name])
    return keep & ~(collective & (other_node | (rows.numbers["tp"] > node.link_group)))


def check_unit(rows: Profile, kernels: Kernels) -> None:
    """Times must be near what the data sheet allows; a factor of a thousand is a unit.

    Raises
    ------
    TrimtabError
        that says which unit the times seem to be in.
    """
    ratios = []
    for name, group in GROUPS.items():
        part = rows.where(np.isin(rows.words["operator"], group.operators))
        if len(part) and name != "cpu_overhead":
            ratios.append(part.numbers["median_ms"] / 1000 / group.first_guess(name, kernels, part))
    if not ratios:
        return
    typical = float(np.median(np.concatenate(ratios)))
    if not PLAUSIBLE[0] < typical < PLAUSIBLE[1]:
        unit = "seconds" if typical < 1 else "microseconds"
        raise TrimtabError(
            f"{rows.source}: times are {typical:.2g} times what {kernels.device.name} can reach: they seem "
            f"to be in {unit}; median_ms must be in milliseconds"
        )


# --- errors -------------------------------------------------------------------------------------


def calibrate(found: Found, step: Step = lambda what: None) -> Calibration:
    """Fit on three quarters of the shapes, measure on the rest and on models left out, then fit on all."""
    rows, kernels = found.rows, found.kernels
    held = held_out(rows)
    step("choosing regressions")
    trained = fit_calibration(kernels, rows.where(~held))
    chosen = {name: surface.predictor for name, surface in trained.surfaces.items()}
    errors = held_out_errors(trained, kernels, rows.where(held))
    for operator, entry in errors["operators"].items():
        entry["predictor"] = chosen.get(GROUP_OF[operator], "constants")
    errors["left_out"] = left_out_errors(rows, kernels, chosen, step)
    step("fitting all rows")
    final = fit_calibration(kernels, rows, chosen)
    return replace(final, errors=errors)


def held_out(rows: Profile) -> NDArray[np.bool_]:
    """One in four shapes of each group's grid."""
    chosen = np.zeros(len(rows), dtype=bool)
    for group in GROUPS.values():
        mine = np.flatnonzero(np.isin(rows.words["operator"], group.operators))
        if len(mine):
            chosen[mine] = shape_folds(group.grid_of(rows.where(mine)), SHARE) == 0
    return chosen


def with_constants(kernels: Kernels, calibration: Calibration) -> Kernels:
    """The roofline whose constants are the calibration's, without its surfaces."""
    return replace(
        kernels,
        efficiency=replace(kernels.efficiency, **calibration.efficiency),
        calibration=None,
        lattices={},
    )


def predicted(calibration: Calibration, kernels: Kernels, rows: Profile) -> tuple[Array, Array]:
    """Seconds (R,) by the calibration, and by its constants alone."""
    kernels = with_constants(kernels, calibration)
    surfaces, constants = np.empty(len(rows)), np.empty(len(rows))
    for name, group in GROUPS.items():
        mine = np.flatnonzero(np.isin(rows.words["operator"], group.operators))
        if len(mine):
            part = rows.where(mine)
            surfaces[mine] = predict(name, calibration.surfaces.get(name), kernels, part)
            constants[mine] = predict(name, None, kernels, part)
    return surfaces, constants


def held_out_errors(calibration: Calibration, kernels: Kernels, rows: Profile) -> dict[str, Any]:
    """Mean absolute relative errors per operator, of linear operators together, and of iterations."""
    seconds, constants = predicted(calibration, kernels, rows)
    measured = rows.numbers["median_ms"] / 1000
    operators: dict[str, Any] = {}
    for operator in np.unique(rows.words["operator"]):
        mine = rows.words["operator"] == operator
        operators[str(operator)] = {
            "rows": int(mine.sum()),
            "constants": mean_error(constants[mine], measured[mine]),
            "calibrated": mean_error(seconds[mine], measured[mine]),
        }
    linear = np.isin(rows.words["operator"], LINEAR)
    return {
        "operators": operators,
        "linear": mean_error(seconds[linear], measured[linear]),
        "iteration": iteration_errors(rows, seconds),
    }


def left_out_errors(rows: Profile, kernels: Kernels, chosen: dict[str, str], step: Step) -> dict[str, Any]:
    """The same with each model, and every equal shape of others, left out of the fit."""
    layers = rows.where(np.isin(rows.words["operator"], LAYER))
    models = [str(name) for name in np.unique(layers.words["model"])]
    if len(models) < 2:
        return {}
    linear, iterations, medians = [], [], {}
    for model in models:
        step(f"leaving out {model}")
        mine, others = _apart(layers, model)
        calibration = _fit_layers(kernels, others, chosen)
        seconds, _ = predicted(calibration, kernels, mine)
        products = np.isin(mine.words["operator"], LINEAR)
        linear.append(np.abs(seconds / (mine.numbers["median_ms"] / 1000) - 1)[products])
        errors = _iterations(mine, seconds)
        iterations.append(errors)
        medians[model] = _rounded(np.median(errors)) if len(errors) else None
    every = np.concatenate(iterations)
    return {
        "linear": _rounded(np.concatenate(linear).mean()),
        **_spread(every),
        "models": medians,
    }


def _fit_layers(kernels: Kernels, rows: Profile, chosen: dict[str, str]) -> Calibration:
    return fit_calibration(kernels, rows, {**dict.fromkeys(GROUPS, "spline"), **chosen})


def _apart(rows: Profile, model: str) -> tuple[Profile, Profile]:
    """Rows of a model, and rows of others that share no key with it in their group."""
    mine = rows.words["model"] == model
    other = ~mine
    for group in GROUPS.values():
        inside = np.isin(rows.words["operator"], group.operators)
        if not (inside & mine).any():
            continue
        own = {tuple(key) for key in group.keys_of(rows.where(inside & mine))}
        left = np.flatnonzero(inside & ~mine)
        if len(left):
            shared = [tuple(key) in own for key in group.keys_of(rows.where(left))]
            other[left] = ~np.array(shared)
    return rows.where(mine), rows.where(other)


def _iterations(rows: Profile, seconds: Array) -> Array:
    """Relative errors of the summed layer, where every operator that the model has was measured."""
    layer = np.isin(rows.words["operator"], LAYER)
    if not layer.any():
        return np.zeros(0)
    part, predictions = rows.where(layer), seconds[layer]
    measured = part.numbers["median_ms"] / 1000
    models, codes = np.unique(part.words["model"], return_inverse=True)
    shapes = np.column_stack([codes, part.numbers["tp"], part.numbers["tokens"]])
    _, where, counts = np.unique(shapes, axis=0, return_inverse=True, return_counts=True)
    where = where.ravel()
    ours, theirs = np.bincount(where, predictions), np.bincount(where, measured)
    # All operators, once or as often as each other (a profile may repeat a shape).
    kinds = {code: len(np.unique(part.words["operator"][codes == code])) for code in range(len(models))}
    expected = np.array([kinds[code] for code in codes])[np.unique(where, return_index=True)[1]]
    whole = counts % expected == 0
    return np.asarray(np.abs(ours / theirs - 1)[whole])


def iteration_errors(rows: Profile, seconds: Array) -> dict[str, Any]:
    return _spread(_iterations(rows, seconds))


def _spread(errors: Array) -> dict[str, Any]:
    if not len(errors):
        return {"rows": 0}
    median, tail = np.quantile(errors, [0.5, 0.99])
    return {"rows": len(errors), "median": _rounded(median), "p99": _rounded(tail)}


def mean_error(seconds: Array, measured: Array) -> float | None:
    return _rounded(np.mean(np.abs(seconds / measured - 1))) if len(seconds) else None


def _rounded(value: Any) -> float:
    return round(float(value), 5)
