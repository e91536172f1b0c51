"""Figures of exploration and extrapolation: the declared trend, the paper's Figs. 4 and 5,
diagnostics over iterations, reward at matched KL.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from analysis import exact, findings, measures, prose
from analysis.figure import (
    DISTINCT,
    DOUBLE,
    LINES,
    MARKERS,
    SINGLE,
    Drawn,
    bars,
    legend_below,
    new_figure,
    shown,
    styles,
    symbols,
)
from analysis.figures_scores import CURVE_DATA, axis_label, curve
from analysis.layout import Layout, paired
from analysis.load import StudyData
from analysis.measures import Measure, diagnostic
from analysis.table import Unavailable
from analysis.text import number, p_value

Rows = list[tuple[object, ...]]
PLAIN, OPTIMISTIC = DISTINCT[0], DISTINCT[1]


def figure_1(_: StudyData | None = None) -> Drawn:
    """Left: two reward models equal on the data, the optimistic one larger off it; middle: their
    best policies; right: SELM's early steps.
    """
    found = exact.figure_one()
    figure, grid = new_figure(DOUBLE, 2.55, 1, 3)
    left, middle, right = grid[0]
    rows: Rows = []
    answers, seen = np.array(found["answer"]), np.array(found["in_data"])
    pairs = (
        ("reward", left, ("reward_model", "optimistic_reward_model")),
        ("policy", middle, ("policy", "optimistic_policy")),
    )
    for panel, axes, (plain, optimistic) in pairs:
        axes.axvspan(
            float(answers[seen].min()) - 0.5,
            float(answers[seen].max()) + 0.5,
            color="#eeeeee",
            linewidth=0,
            zorder=0,
        )
        for name, offset, colour, marker in (
            (plain, -0.12, PLAIN, MARKERS[0]),
            (optimistic, 0.12, OPTIMISTIC, MARKERS[1]),
        ):
            values = np.array(found[name])
            axes.vlines(answers + offset, 0, values, color=colour, linewidth=1.2)
            axes.plot(answers + offset, values, linestyle="none", marker=marker, color=colour)
            rows.extend(
                (panel, name, None, int(y), bool(known), float(v))
                for y, known, v in zip(answers, seen, values, strict=True)
            )
        axes.set_xlabel("answer (grey: in the data)")
        axes.set_xticks(answers)
    left.plot(
        answers, found["true_reward"], linestyle="none", marker="_", markersize=9, color=DISTINCT[2]
    )
    rows.extend(
        ("reward", "true_reward", None, int(y), bool(known), float(v))
        for y, known, v in zip(answers, seen, found["true_reward"], strict=True)
    )
    left.set_title("reward models")
    middle.set_title("policies they lead to")
    _steps(right, found, rows)
    handles = [
        *middle.plot([], [], color=PLAIN, marker=MARKERS[0], label="plain reward model"),
        *middle.plot([], [], color=OPTIMISTIC, marker=MARKERS[1], label="optimistic reward model"),
        *left.plot([], [], color=DISTINCT[2], marker="_", linestyle="none", label="true reward"),
    ]
    legend_below(figure, handles, 3)
    caption = (
        "A finite answer set, exact. Left: two reward models that agree on the compared answers; "
        "the optimistic one is larger off them. "
        "Middle: the policies that maximise each with the KL penalty. "
        "Right: mean of r/β under π_ref over gradient steps; DPO already lowers it, α > 0 lowers "
        "it more."
    )
    columns = ("panel", "series", "alpha", "answer_or_step", "in_data", "value")
    title = "Figure 1. Optimism off the data (exact, finite answer set)"
    return Drawn(
        "figure_1",
        title,
        caption,
        figure,
        columns,
        tuple(rows),
        "Two reward models, their policies, and mean log-ratio over steps.",
    )


def _steps(axes: Axes, found: dict[str, Any], rows: Rows) -> None:
    for place, (alpha, values) in enumerate(
        zip(found["alphas"], found["mean_log_ratio"], strict=True)
    ):
        axes.plot(
            found["steps"],
            values,
            color=DISTINCT[(place + 2) % len(DISTINCT)] if place else DISTINCT[0],
            linestyle=LINES[place],
            marker=MARKERS[place],
            markevery=5,
            label=f"α = {alpha:g}",
        )
        rows.extend(
            ("steps", "mean_log_ratio", float(alpha), int(step), None, float(v))
            for step, v in zip(found["steps"], values, strict=True)
        )
    axes.set_title(r"$E_{\pi_{\mathrm{ref}}}[r/\beta] = -KL(\pi_{\mathrm{ref}} \Vert \pi)$")
    axes.set_xlabel("gradient step")
    axes.set_ylabel("nats")
    axes.legend(loc="best")


TREND_DATA = (
    "arm",
    "alpha",
    "position",
    "iteration",
    "measure",
    "kind",
    "seed",
    "value",
    "A_low",
    "A_high",
    "B_low",
    "B_high",
)


def figure_trend(data: StudyData) -> Drawn | Unavailable:
    """The diagnostic declared in advance against its axis, with the trend test."""
    title, finding = "Declared diagnostic trend", findings.find(data).trend
    if finding is None:
        return Unavailable("trend", title, "the study declares no trend (declare.trend)")
    measure, axis, look = finding.measure, finding.axis, styles(data)
    levels = sorted(
        (float(runs[0].arm[axis]), arm)
        for arm, runs in data.arms.items()
        if isinstance(runs[0].arm.get(axis), (int, float))
        and all(data.baseline.get(k) == v for k, v in runs[0].arm.items() if k != axis)
    )
    figure, grid = new_figure(SINGLE, 2.5)
    axes: Axes = grid[0, 0]
    rows: Rows = []
    by_seed: dict[int, list[tuple[float, float]]] = {}
    for position, (level, arm) in enumerate(levels):
        checkpoint = data.at(arm, finding.iteration)
        points = measures.points(data, checkpoint, measure) if checkpoint else {}
        if not checkpoint or not points:
            continue
        estimate = findings.estimate(data, checkpoint, measure)
        for seed, value in points.items():
            by_seed.setdefault(seed, []).append((position, value))
            rows.append(
                (
                    arm,
                    level,
                    position,
                    finding.iteration,
                    measure.key,
                    "seed",
                    seed,
                    value,
                    *[None] * 4,
                )
            )
        if estimate.value is not None:
            ends = [
                end
                for p in ("A", "B")
                if p in estimate.intervals
                for end in (estimate.intervals[p].low, estimate.intervals[p].high)
            ] or [None] * 4
            half = estimate.intervals["A"].half_width if "A" in estimate.intervals else None
            axes.errorbar(
                [position],
                [estimate.value],
                yerr=[half or 0.0],
                color=look[arm].color,
                marker=look[arm].marker,
                capsize=2,
                zorder=4,
            )
            rows.append(
                (
                    arm,
                    level,
                    position,
                    finding.iteration,
                    measure.key,
                    "mean",
                    None,
                    estimate.value,
                    *ends,
                )
            )
    if not rows:
        return Unavailable(
            "trend", title, f"{measure.name} after iteration {finding.iteration} is not stored yet"
        )
    for seed, path in sorted(by_seed.items()):
        axes.plot(
            *zip(*path, strict=True),
            color="#888888",
            linewidth=0.7,
            marker="o",
            markersize=2.4,
            markerfacecolor="none",
            zorder=2,
        )
        axes.annotate(
            f"{seed}",
            path[-1],
            xytext=(4, 0),
            textcoords="offset points",
            fontsize=6,
            color="#555555",
            va="center",
        )
    axes.set_xticks(range(len(levels)), [f"{level:g}" for level, _ in levels])
    axes.set_xlabel(shown(axis.rsplit(".", 1)[-1].replace("alpha", "α")))
    axes.set_ylabel(axis_label(measure))
    axes.set_title(f"expected {finding.expected};\n{trend_text(finding)}", fontsize=7)
    caption = (
        f"{measure.name} after iteration {finding.iteration}, declared before the run and "
        f"expected {finding.expected}. "
        f"Grey lines: one seed each (its number at the right); markers: mean; {bars(data)}. The "
        "slope is taken on the rank of the values."
    )
    return Drawn(
        "trend", title, caption, figure, TREND_DATA, tuple(rows), f"{measure.name} against {axis}."
    )


def trend_text(finding: findings.TrendFinding) -> str:
    """ "slope −0.28 per step, p = 0.001 (A)": the test in one phrase."""
    if finding.result is None:
        return "not tested"
    value = finding.result.estimate
    if value.value is None:
        return "not tested (incomplete)"
    p = p_value(finding.result.p_directed)
    return (
        f"slope {number(value.value, 3, sign=True)} per step, one-sided p "
        f"{p if p.startswith('<') else '= ' + p}"
    )


def _sorted_difference(
    data: StudyData, arm: str, measure: Measure, iteration: int
) -> Layout | None:
    ours, theirs = data.at(arm, iteration), data.at(data.baseline_arm, iteration)
    if not ours or not theirs:
        return None
    D, _ = paired(
        measures.layout_of(data, ours, measure), measures.layout_of(data, theirs, measure)
    )
    return D if D.values.size and not np.isnan(D.values).all() else None


def _difference_panels(
    data: StudyData,
    key: str,
    title: str,
    panels: list[tuple[str, Measure, int, str, float]],
    caption: str,
) -> Drawn | Unavailable:
    """Arm minus baseline per prompt, sorted, one panel per (heading, measure, iteration, unit,
    factor); thin lines: seeds.
    """
    if not data.baseline_arm:
        return Unavailable(key, title, "the study declares no baseline")
    look = styles(data)
    rows: Rows = []
    drawn: list[str] = []
    figure, grid = new_figure(DOUBLE, 2.5, 1, len(panels))
    for axes, (heading, measure, iteration, unit, factor) in zip(grid[0], panels, strict=True):
        for arm in data.arms:
            D = (
                _sorted_difference(data, arm, measure, iteration)
                if arm != data.baseline_arm
                else None
            )
            if D is None:
                continue
            values = D.values * factor
            mean = (
                values.mean(axis=0)
                if not np.isnan(values).any()
                else np.nanmean(values[:, ~np.isnan(values).all(axis=0)], axis=0)
            )
            order = np.sort(mean)
            x = (np.arange(len(order)) + 0.5) / len(order)
            for seed, row in zip(D.seeds, values, strict=True):
                kept = np.sort(row[~np.isnan(row)])
                axes.plot(
                    (np.arange(len(kept)) + 0.5) / max(len(kept), 1),
                    kept,
                    color=look[arm].color,
                    linewidth=0.4,
                    alpha=0.55,
                )
                rows.extend(
                    (heading, arm, look[arm].label, iteration, seed, i, float(v))
                    for i, v in enumerate(kept)
                )
            axes.plot(
                x,
                order,
                color=look[arm].color,
                linestyle=look[arm].line,
                marker=look[arm].marker,
                markevery=max(len(order) // 8, 1),
                markersize=3,
            )
            rows.extend(
                (heading, arm, look[arm].label, iteration, None, i, float(v))
                for i, v in enumerate(order)
            )
            drawn.append(arm)
        axes.axhline(0, color="black", linewidth=0.6)
        axes.set_title(symbols(heading))
        axes.set_xlabel("prompts, sorted (share)")
        axes.set_ylabel(f"arm − {look[data.baseline_arm].label} [{unit}]")
    if not drawn:
        return Unavailable(key, title, "its values are not stored for an arm and the baseline yet")
    legend_below(figure, [look[arm].handle() for arm in data.arms if arm in drawn])
    return Drawn(
        key,
        title,
        caption,
        figure,
        ("panel", "arm", "label", "iteration", "seed", "rank", "difference"),
        tuple(rows),
        title,
    )


def _beta(data: StudyData) -> float:
    beta = (data.recipe.get("objective") or {}).get("beta", 1.0)
    if isinstance(beta, dict):
        beta = beta.get("start", 1.0)
    return float(beta[0] if isinstance(beta, list) else beta)


def figure_4(data: StudyData) -> Drawn | Unavailable:
    """r_arm − r_baseline on held-out prompts, sorted, on y_w and on y_l, after iteration 1."""
    beta, fixed = _beta(data), "objective.beta" not in data.axes
    unit, factor = ("reward, β·nats", beta) if fixed else ("nats", 1.0)
    panels = [
        (f"{name} (held-out), iteration 1", diagnostic(metric, f"r̂ of {name}"), 1, unit, factor)
        for name, metric in (("y_w", "rhat_heldout_chosen"), ("y_l", "rhat_heldout_rejected"))
    ]
    caption = (
        "Implicit reward of the arm minus that of the baseline on held-out preferred (left) and "
        "dispreferred (right) answers after "
        "iteration 1, each curve sorted by itself. Thick: mean over seeds per prompt; thin: every "
        "seed."
    )
    return _difference_panels(
        data, "figure_4", "Figure 4. Implicit reward differences on held-out pairs", panels, caption
    )


def figure_5(data: StudyData) -> Drawn | Unavailable:
    """Reward of each model's own samples, arm minus baseline, sorted: under each model's implicit
    reward, and under the external one.
    """
    at = data.last_iteration
    present = [metric for _, metric in data.metrics("diagnostics")]
    names = {
        "implicit_reward_samples": "own samples, own implicit reward",
        "implicit_reward_reference_samples": "π_ref's samples, own implicit reward",
    }
    panels = [
        (heading, diagnostic(m, heading), at, "reward", 1.0)
        for m, heading in names.items()
        if m in present
    ]
    external = measures.heldout(data, sampled=True)
    if (external.benchmark, external.metric) in data.metrics():
        panels.append(("own samples, external reward", external, at, "reward", 1.0))
    title = "Figure 5. Rewards of each model's own samples"
    if not panels:
        return Unavailable("figure_5", title, "no rewards of own samples are stored yet")
    caption = (
        f"Mean reward of temperature-1 samples per held-out prompt {prose.after(data, at)}, arm "
        "minus baseline, each curve sorted by "
        "itself. Thick: mean over seeds; thin: every seed. Implicit rewards are β·log π_θ/π_0 "
        "against the common π_0. On own samples their mean is "
        "β·KL ≥ 0: it measures drift; only the external reward measures quality."
    )
    return _difference_panels(data, "figure_5", title, panels, caption)


GROUPS = (
    (
        "diagnostics_exploration",
        "Exploration over iterations",
        (
            "kl_base",
            "kl_previous",
            "entropy",
            "newness",
            "mode_coverage",
            "unseen_mass",
            "distinct_2",
            "self_rouge",
            "grad_ratio_end",
        ),
    ),
    (
        "diagnostics_extrapolation",
        "Extrapolation over iterations",
        (
            "rhat_reference_samples",
            "displacement_chosen_train",
            "displacement_chosen_heldout",
            "displaced_share_heldout",
            "spearman_reward",
            "brier_pairs_heldout",
            "regret",
            "length_tokens",
            "truncated_share",
        ),
    ),
)


def _group(data: StudyData, which: int) -> Drawn | Unavailable:
    key, title, wanted = GROUPS[which]
    available = {m.metric: m for m in measures.diagnostics(data)}
    chosen = [available[name] for name in wanted if name in available]
    if not chosen:
        return Unavailable(key, title, "no diagnostics are stored yet")
    lines = -(-len(chosen) // 3)
    figure, grid = new_figure(DOUBLE, 1.75 * lines + 0.35, lines, 3)
    rows: Rows = []
    for axes, measure in zip(grid.ravel(), chosen, strict=False):
        curve(axes, data, measure, rows, measure.metric)
    for axes in grid.ravel()[len(chosen) :]:
        axes.set_axis_off()
    legend_below(figure, [style.handle() for style in styles(data).values()])
    caption = (
        f"Mean over seeds; {bars(data)}; small marks: every seed. Clusters are prompts; nats "
        "are per response unless a token is named."
    )
    return Drawn(key, title, caption, figure, CURVE_DATA, tuple(rows), title)


def figure_exploration(data: StudyData) -> Drawn | Unavailable:
    return _group(data, 0)


def figure_extrapolation(data: StudyData) -> Drawn | Unavailable:
    return _group(data, 1)


def figure_matched_kl(data: StudyData) -> Drawn | Unavailable:
    """Held-out reward of samples against KL from π_0: what a unit of drift buys."""
    title, kl = "Reward at matched KL", diagnostic("kl_base", "KL(π_θ‖π_0)")
    reward = measures.heldout(data, sampled=True)
    present = set(data.metrics())
    if not {(kl.benchmark, kl.metric), (reward.benchmark, reward.metric)} <= present:
        return Unavailable(
            "matched_kl", title, "KL from the base and held-out reward are not both stored yet"
        )
    figure, grid = new_figure(SINGLE, 2.6)
    axes: Axes = grid[0, 0]
    look = styles(data)
    rows: Rows = []
    for arm in data.arms:
        line: list[tuple[float, float]] = []
        for iteration in range(data.last_iteration + 1):
            checkpoint = data.checkpoint(arm, iteration)
            ys = measures.points(data, checkpoint, reward) if checkpoint else {}
            xs = dict.fromkeys(ys, 0.0)  # the base is at no distance from itself
            if checkpoint and iteration:
                xs = measures.points(data, checkpoint, kl)
            both = sorted(set(xs) & set(ys))
            if not both:
                continue
            axes.plot(
                [xs[s] for s in both],
                [ys[s] for s in both],
                linestyle="none",
                marker=look[arm].marker,
                markersize=2.4,
                markerfacecolor="white",
                markeredgecolor=look[arm].color,
                markeredgewidth=0.6,
                zorder=5,
            )
            rows.extend((arm, look[arm].label, iteration, "seed", s, xs[s], ys[s]) for s in both)
            line.append(
                (float(np.mean([xs[s] for s in both])), float(np.mean([ys[s] for s in both])))
            )
            rows.append((arm, look[arm].label, iteration, "mean", None, *line[-1]))
        if line:
            axes.plot(
                *zip(*line, strict=True),
                color=look[arm].color,
                linestyle=look[arm].line,
                marker=look[arm].marker,
            )
    axes.set_xlabel(axis_label(kl))
    axes.set_ylabel(axis_label(reward))
    legend_below(figure, [style.handle() for style in look.values()])
    caption = (
        "Held-out reward of temperature-1 samples against KL(π_θ‖π_0), iteration by iteration "
        "from the base (KL 0). "
        "Lines: means over seeds; small marks: every seed."
    )
    return Drawn(
        "matched_kl",
        title,
        caption,
        figure,
        ("arm", "label", "iteration", "kind", "seed", "kl_base", "reward"),
        tuple(rows),
        title,
    )


def figure_differences(data: StudyData) -> Drawn | Unavailable:
    """Differences to the baseline on the primary outcome with both intervals and what could have
    been detected.
    """
    title, found = "Differences to the baseline", findings.find(data)
    measure = found.primary_measure
    done = [c for c in found.primary if c.estimate.value is not None]
    if not done:
        return Unavailable(
            "differences",
            title,
            "no arm has a complete difference to the baseline on the primary outcome yet",
        )
    width = SINGLE if max(len(c.label) for c in done) <= 24 else DOUBLE
    figure, grid = new_figure(width, 0.8 + (0.36 if len(done) <= 6 else 0.24) * len(done))
    axes: Axes = grid[0, 0]
    look = styles(data)
    rows: Rows = []
    for position, c in enumerate(done):
        y, style = -position, look[c.arm]
        a, b = c.estimate.intervals["A"], c.estimate.intervals["B"]
        mde = {p: c.detectable[p].value if p in c.detectable else None for p in ("A", "B")}
        if mde["A"] is not None:
            axes.fill_betweenx(
                [y - 0.32, y + 0.32], -mde["A"], mde["A"], color="#e6e6e6", linewidth=0, zorder=0
            )
        for interval, thick in ((b, 0.7), (a, 2.0)):
            if interval.low is not None and interval.high is not None:
                axes.plot(
                    [interval.low, interval.high],
                    [y, y],
                    color=style.color,
                    linewidth=thick,
                    solid_capstyle="butt",
                )
        axes.plot(
            [c.estimate.value or 0.0], [y], marker=style.marker, color=style.color, markersize=5
        )
        axes.plot(
            c.estimate.points,
            [y + 0.22] * len(c.estimate.points),
            linestyle="none",
            marker=style.marker,
            markersize=2.6,
            markerfacecolor="none",
            markeredgecolor=style.color,
            markeredgewidth=0.6,
        )
        rows.append(
            (
                c.arm,
                style.label,
                measure.key,
                c.iteration,
                "mean",
                None,
                c.estimate.value,
                a.low,
                a.high,
                b.low,
                b.high,
                mde["A"],
                mde["B"],
            )
        )
        rows.extend(
            (c.arm, style.label, measure.key, c.iteration, "seed", i, v, *[None] * 6)
            for i, v in enumerate(c.estimate.points)
        )
    axes.axvline(0, color="black", linewidth=0.6)
    axes.set_yticks([-i for i in range(len(done))], [look[c.arm].label for c in done])
    axes.set_ylim(-len(done) + 0.4, 0.6)
    against = shown(found.baseline_label) if len(found.baseline_label) <= 16 else "baseline"
    axes.set_xlabel(f"{measure.name}: arm − {against} [{prose.unit(measure)}]")
    what = (
        "Thick: 95 % interval (A), this benchmark and new seeds; thin: (B), new seeds and new "
        f"{measure.unit_of_items}; small marks: every seed. "
        "Grey: differences too small to be detected with 80 % power under (A)."
        if len(data.seeds) >= 3
        else "Every seed and their mean; no interval over seeds below 3 seeds."
    )
    caption = (
        f"{measure.name} {prose.after(data, found.primary_iteration)}, arm minus "
        f"{prose.named(found.baseline_label)}. {what}"
    )
    names = (
        "arm",
        "label",
        "measure",
        "iteration",
        "kind",
        "seed_number",
        "difference",
        "A_low",
        "A_high",
        "B_low",
        "B_high",
        "mde_A",
        "mde_B",
    )
    return Drawn(
        "differences",
        title,
        caption,
        figure,
        names,
        tuple(rows),
        f"Differences of every arm to {found.baseline_label}.",
    )
