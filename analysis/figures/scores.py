"""A line an arm: scores and diagnostics over iterations, pairs and KL (Figs. 3, 6); histograms of
reward (Fig. 3); the pairwise matrix (Fig. 2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis import findings, measures, prose
from analysis.figure import (
    DOUBLE,
    LINES,
    MARKERS,
    NO_ENDS,
    SINGLE,
    ArmStyle,
    Drawn,
    axis_label,
    dodge,
    error_bar_note,
    hollow,
    legend_below,
    new_figure,
    pale,
    ramp,
    seeds_and_mean,
    set_title,
    shown,
    styles,
)
from analysis.load import DIAGNOSTICS, StudyData
from analysis.measures import Measure
from analysis.table import Observation, Unavailable
from analysis.tables.differences import KL, drifts

THIN: dict[str, Any] = {"markersize": 3.6, "capsize": 1.5, "elinewidth": 0.6, "capthick": 0.6}


def curve(
    axes: Axes,
    data: StudyData,
    measure: Measure,
    panel: str,
    pairs: Mapping[tuple[str, int], float] | None = None,
) -> list[Observation]:
    """One line per arm over iterations, or over the ``pairs`` trained on by arm and iteration: mean
    with interval (A), and every seed's point. Returns what was drawn.
    """
    look, rows, arms = styles(data), [], list(data.arms)
    for number, arm in enumerate(arms):
        xs, means, errors, style = [], [], [], look[arm]
        for iteration in data.iterations:
            checkpoint = data.checkpoint(arm, iteration)
            points = measures.points(data, checkpoint, measure)
            if not checkpoint or not points or (pairs and (arm, iteration) not in pairs):
                continue
            x = pairs[arm, iteration] if pairs else iteration + dodge(number, len(arms), 0.3)
            beside = [x + dodge(place, len(points), 0.05) for place in range(len(points))]
            axes.plot(beside, list(points.values()), **pale(style))
            estimate = findings.estimate(data, checkpoint, measure)
            place = {"panel": panel, "arm": arm, "label": style.label, "iteration": iteration}
            place |= {"pairs": x} if pairs else {}
            rows += seeds_and_mean({**place, "measure": measure.key}, points, estimate)
            if estimate.value is not None:
                xs.append(x)
                means.append(estimate.value)
                errors.append(estimate.half_width() or 0.0)
        if xs:
            axes.errorbar(xs, means, yerr=errors, **style.look, **THIN)
    axes.set_xlabel("pairs trained on" if pairs else prose.counted_in(data))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    set_title(axes, measure.name)
    axes.set_ylabel(measure.unit)
    return rows


def headline(data: StudyData) -> Measure:
    """Length-controlled win rate, or the declared primary measure where AlpacaEval was not run."""
    name = ("alpaca_eval", "length_controlled_win_rate")
    if name in data.metrics():
        return measures.find(data, *name)
    return findings.find(data).primary_measure


# -- histograms of reward --------------------------------------------------------------------------
MOST_OUTLINES = 6
"""Arms whose histograms are laid over one another."""
SCALAR = (
    " PairRM compares two texts; how the paper makes one answer's reward of it is not said there. "
    "Here it is the mean of its logit differences to all answers ranked with it."
)
Outline = tuple[ArmStyle, dict[int, np.ndarray]]
"""A histogram: its style, and the values of every seed."""


def histogram(
    axes: Axes, outlines: Sequence[Outline], panel: str, measure: Measure
) -> list[Observation]:
    """Common bins, seeds pooled; every seed's mean under the axis. Returns what was drawn."""
    rows: list[Observation] = []
    pooled = [np.concatenate(list(seeds.values())) for _, seeds in outlines]
    every = np.concatenate(pooled)
    low, high = measure.scale or (float(every.min()), float(every.max()))
    edges = np.linspace(low, high if high > low else low + 1.0, 13)
    shares = [np.histogram(values, edges)[0] / len(values) for values in pooled]
    for number, ((style, seeds), share) in enumerate(zip(outlines, shares, strict=True), 1):
        axes.stairs(share, edges, color=style.color, linestyle=style.line, linewidth=1.2)
        means = {seed: float(values.mean()) for seed, values in seeds.items()}
        under: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "clip_on": False}
        depth = [-0.05 * number] * len(means)
        axes.plot(list(means.values()), depth, **under, **hollow(style, 3, 0.7))
        place = {"panel": panel, "arm": style.label, "label": style.label, "iteration": None}
        place["measure"] = measure.key
        for seed, mean in means.items():
            rows.append({**place, "kind": "seed mean", "seed": seed, "value": mean, **NO_ENDS})
        for value, a, b in zip(share.tolist(), edges[:-1], edges[1:], strict=True):
            ends = {**NO_ENDS, "A_low": float(a), "A_high": float(b)}  # those of the bin
            rows.append({**place, "kind": "share", "seed": None, "value": value, **ends})
    axes.set_ylim(0, max(float(share.max()) for share in shares) * 1.08 or 1)
    axes.tick_params(axis="x", pad=3 + 5.5 * len(outlines))
    axes.set_ylabel("share of answers")
    return rows


def _rewards(data: StudyData, arm: str, iteration: int, measure: Measure) -> dict[int, np.ndarray]:
    """Seed → sorted rewards of the answers of an arm after an iteration."""
    found = {}
    for run in data.arms[arm]:
        rows = data.rows(run.name, iteration, measure.benchmark, measure.metric)
        values = rows["value"].dropna().to_numpy(dtype=float)
        if len(values):
            found[run.seed] = np.sort(values)
    return found


def figure_3(data: StudyData) -> Drawn | Unavailable:
    """Left: score by iteration; then held-out reward by arm, and by iteration."""
    title = "Figure 3. Scores over iterations and rewards of greedy answers"
    measure, reward, look = headline(data), measures.heldout(data), styles(data)
    counted, at = prose.counted_in(data), data.iterations[: 2 + 1][-1]
    figure, grid = new_figure(DOUBLE, 2.75, 1, 3)
    left, middle, right = grid[0]
    rows = curve(left, data, measure, "left")
    left.set_ylabel(axis_label(measure))
    set_title(left, f"by {counted}")
    rewards = {arm: _rewards(data, arm, at, reward) for arm in data.arms}
    outlines = [(look[arm], found) for arm, found in rewards.items() if found]
    if not rows and not outlines:
        return Unavailable("figure_3", title, "neither scores nor held-out rewards are stored yet")
    few = outlines[:MOST_OUTLINES]
    if few:
        rows += histogram(middle, few, "histogram middle", reward)
    set_title(middle, f"{counted} {at}, by arm")
    # the largest κ, which is declared and not chosen by score
    others = [arm for arm in data.arms if arm != data.baseline_arm] or list(data.arms)
    arm = max(others, key=lambda arm: max(data.arms[arm][0].kappa.values(), default=0.0))
    rows += _by_iteration(right, data, arm, reward)
    set_title(right, f"{look[arm].label}, by {counted}")
    for axes in (middle, right):
        axes.set_xlabel(reward.title)
    legend_below(figure, [style.handle() for style in look.values()])
    which = ""
    if len(few) < len(outlines):
        which = f" (the first {len(few)} of {len(outlines)} arms)"
    caption = (
        f"Left: {measure.name} against {counted}, one line per arm, {error_bar_note(data)}; "
        "small marks: every seed. Middle: reward of greedy answers to held-out prompts after "
        f"{counted} {at}{which}, seeds pooled; marks under "
        f"the axis: every seed's mean. Right: the same by {counted} for {look[arm].label}."
        f"{SCALAR if data.recipe['ranker']['kind'] == 'pairrm' else ''}"
    )
    alt = f"{measure.name} over iterations by arm, and histograms of held-out reward."
    return Drawn("figure_3", title, caption, figure, rows, alt)


def _by_iteration(axes: Axes, data: StudyData, arm: str, reward: Measure) -> list[Observation]:
    """An arm's histograms, light to dark with the iteration."""
    outlines, counted = [], data.runs[0].counted
    colours = ramp("cividis", 0.85, 0.0, len(data.iterations))
    for place, (i, colour) in enumerate(zip(data.iterations, colours, strict=False)):
        mark, line = MARKERS[place % len(MARKERS)], LINES[(place + 1) % len(LINES)]
        if found := _rewards(data, arm, i, reward):
            label = f"{counted} {i}" if i else "base"
            outlines.append((ArmStyle(colour, mark, line, label), found))
    if not outlines:
        return []
    rows = histogram(axes, outlines, "histogram right", reward)
    room = 1.2 + 0.12 * (-(-len(outlines) // 3))  # for the legend
    axes.set_ylim(0, axes.get_ylim()[1] * room)
    handles = [style.handle() for style, _ in outlines]
    how: dict[str, Any] = {"ncols": 3, "handlelength": 1.6, "columnspacing": 0.8}
    axes.legend(handles=handles, loc="upper center", **how)
    return rows


# -- small multiples -------------------------------------------------------------------------------
GROUPS = {
    "diagnostics_exploration": (
        *("kl_base", "kl_previous", "entropy", "newness", "mode_coverage", "unseen_mass"),
        *("distinct_2", "self_rouge", "grad_ratio_end"),
    ),
    "diagnostics_extrapolation": (
        *("rhat_reference_samples", "displacement_chosen_train", "displacement_chosen_heldout"),
        *("displaced_share_heldout", "spearman_reward", "brier_pairs_heldout", "regret"),
        *("length_tokens", "truncated_share"),
    ),
}
"""Figure → the diagnostics that are its panels."""


def small_multiples(
    data: StudyData, chosen: Sequence[Measure], height: float
) -> tuple[Figure, list[Observation]]:
    """Measures over iterations, a panel each, three in a line of ``height`` inches."""
    columns = min(3, len(chosen))
    lines = -(-len(chosen) // columns)
    figure, grid = new_figure(DOUBLE, height * lines + 0.35, lines, columns)
    rows = []
    for axes, measure in zip(grid.ravel(), chosen, strict=False):
        name = measure.metric if measure.benchmark == DIAGNOSTICS else measure.key
        rows += curve(axes, data, measure, name)
    for axes in grid.ravel()[len(chosen) :]:
        axes.set_axis_off()
    legend_below(figure, [style.handle() for style in styles(data).values()])
    return figure, rows


def figure_curves(data: StudyData) -> Drawn | Unavailable:
    """Every headline measure against iteration."""
    title, held = "Scores over iterations", measures.present(data, measures.headlines(data))
    chosen = [one for one in held if not one.part and one != measures.heldout(data)]
    if not chosen:
        return Unavailable("curves", title, "no scores are stored yet")
    figure, rows = small_multiples(data, chosen, 1.85)
    caption = (
        f"Mean over seeds; {error_bar_note(data)}; small marks: every seed. "
        f"{prose.counted_in(data).capitalize()} 0 is the first model."
    )
    alt = "Scores of every benchmark over iterations, one line per arm."
    return Drawn("curves", title, caption, figure, rows, alt)


def figure_exploration(data: StudyData) -> Drawn | Unavailable:
    return _diagnostics(data, "diagnostics_exploration", "Exploration over iterations")


def figure_extrapolation(data: StudyData) -> Drawn | Unavailable:
    return _diagnostics(data, "diagnostics_extrapolation", "Extrapolation over iterations")


def _diagnostics(data: StudyData, key: str, title: str) -> Drawn | Unavailable:
    available = {measure.metric: measure for measure in measures.diagnostics(data)}
    chosen = [available[name] for name in GROUPS[key] if name in available]
    if not chosen:
        return Unavailable(key, title, "no diagnostics are stored yet")
    figure, rows = small_multiples(data, chosen, 1.75)
    caption = (
        f"Mean over seeds; {error_bar_note(data)}; small marks: every seed. Clusters are prompts; "
        "nats are per response unless a token is named."
    )
    return Drawn(key, title, caption, figure, rows, title)


# -- over KL, and over pairs -----------------------------------------------------------------------
def figure_matched_kl(data: StudyData) -> Drawn | Unavailable:
    """Held-out reward of samples against KL from π_0: what a unit of drift buys."""
    title, reward = "Reward at matched KL", measures.heldout(data, sampled=True)
    if len(measures.present(data, (KL, reward))) < 2:
        reason = "KL from the base and held-out reward are not both stored yet"
        return Unavailable("matched_kl", title, reason)
    figure, grid = new_figure(SINGLE, 2.6)
    axes, rows = grid[0, 0], []
    for arm in data.arms:
        rows += _drift(axes, data, arm, reward)
    axes.set_xlabel(axis_label(KL))
    axes.set_ylabel(axis_label(reward))
    legend_below(figure, [style.handle() for style in styles(data).values()])
    caption = (
        "Held-out reward of temperature-1 samples against KL(π_θ‖π_0), iteration by iteration "
        "from the base (KL 0). Lines: means over seeds; small marks: every seed."
    )
    return Drawn("matched_kl", title, caption, figure, rows, title)


def _drift(axes: Axes, data: StudyData, arm: str, reward: Measure) -> list[Observation]:
    """One arm from the base on: every seed's point after every iteration, a line through means."""
    style = styles(data)[arm]
    rows: list[Observation] = []
    for iteration in data.iterations:
        checkpoint = data.checkpoint(arm, iteration)
        both = drifts(data, checkpoint, reward) if checkpoint else {}
        if not both:
            continue
        axes.plot(*zip(*both.values(), strict=True), **pale(style))
        x, y = np.array(list(both.values())).mean(axis=0).tolist()
        place = {"arm": arm, "label": style.label, "iteration": iteration}
        for seed, (a, b) in both.items():
            rows.append({**place, "kind": "seed", "seed": seed, "kl_base": a, "reward": b})
        rows.append({**place, "kind": "mean", "seed": None, "kl_base": x, "reward": y})
    means = [(row["kl_base"], row["reward"]) for row in rows if row["kind"] == "mean"]
    if means:
        axes.plot(*zip(*means, strict=True), **style.look)
    return rows


def figure_6_offline(data: StudyData) -> Drawn | Unavailable:
    """One line per arm over pairs; the offline arm is one run, optimiser and schedule."""
    title = "Figure 6, last panel. A benchmark over training data, beside offline DPO"
    offline = [arm for arm, runs in data.arms.items() if runs[0].mode == "offline"]
    if not offline:
        reason = "no arm of this study trains offline (loop.mode: offline)"
        return Unavailable("figure_6_offline", title, reason)
    papers = ("mt_bench", "rating")
    measure = measures.find(data, *papers) if papers in data.metrics() else headline(data)
    figure, grid = new_figure(SINGLE, 2.6, 1, 1)
    axes, look, pairs = grid[0, 0], styles(data), _pairs_seen(data)
    rows = curve(axes, data, measure, "training data", pairs) if pairs else []
    if not rows:
        reason = f"no {measure.name} of a trained checkpoint is stored yet"
        return Unavailable("figure_6_offline", title, reason)
    axes.set_ylabel(axis_label(measure))
    set_title(axes, measure.name)
    legend_below(figure, [look[arm].handle() for arm in data.arms])
    names = ", ".join(look[arm].label for arm in offline)
    caption = (
        f"{measure.name} against the pairs trained on (a pair counts in every pass over it), one "
        f"line per arm, {error_bar_note(data)}; small marks: every seed. {names}: one run over the "
        "labelled pairs, one optimiser, one schedule, scored on its way. The paper shows a "
        "single run of each up to 60,000 prompts, and does not say whether passes are counted nor "
        "which of the offline run's checkpoints its line joins."
    )
    alt = f"{measure.name} over training data, a line per arm."
    return Drawn("figure_6_offline", title, caption, figure, rows, alt)


def _pairs_seen(data: StudyData) -> dict[tuple[str, int], float]:
    """Pairs trained on by arm and iteration, counted in every pass, mean over seeds; an iteration
    with a training stage before it that is not done is left out.
    """
    found: dict[tuple[str, int], float] = {}
    for arm, runs in data.arms.items():
        for iteration in data.iterations:
            counts = []
            for run in (run for run in runs if iteration in run.iterations):
                earlier = [at for at in run.iterations if 0 < at <= iteration]
                stages = [data.stage(run, at, "train") for at in earlier]
                done = [stage for stage in stages if stage and stage.state == "done"]
                passes = [one.rows * float(one.settings["training"]["epochs"]) for one in done]
                counts.append(sum(passes) if len(done) == len(stages) else np.nan)
            if counts and not np.isnan(counts).any():
                found[arm, iteration] = sum(counts) / len(counts)
    return found


# -- the pairwise matrix ---------------------------------------------------------------------------
def figure_2(data: StudyData) -> Drawn | Unavailable:
    """Matrix of pairwise length-controlled win rates among declared checkpoints."""
    title, judged = "Figure 2. Pairwise length-controlled win rates", data.manifest["pairwise"]
    wins = {}
    for pair in judged:
        stage = data.stages.get(str(pair["key"]))
        if stage and stage.state == "done":
            wins[pair["b"], pair["a"]] = stage.summary.get("length_controlled_win_rate")
    if not any(value is not None for value in wins.values()):
        reason = "the study declares no pairwise checkpoints (declare.pairwise)"
        if judged:
            reason = "pairwise judgments are not stored yet"
        return Unavailable("figure_2", title, reason)
    ids = list(dict.fromkeys(pair["a"] for pair in judged))
    names = [data.title_of(name) for name in ids]
    labels = [shown(name, 22) for name in names]
    values = np.array([[wins.get((row, column)) for column in ids] for row in ids], dtype=float)
    figure, grid = new_figure(SINGLE + 0.4, SINGLE, 1, 1)
    axes = grid[0, 0]
    reach = max(10.0, 5.0 * np.ceil(float(np.nanmax(np.abs(values - 50.0))) / 5.0))
    image = axes.imshow(values, cmap="cividis", vmin=50.0 - reach, vmax=50.0 + reach)
    axes.grid(False)
    axes.set_xticks(range(len(ids)), labels, rotation=35, ha="right")
    axes.set_yticks(range(len(ids)), labels)
    rows = []
    for (i, j), value in np.ndenumerate(values):
        of = {"row": names[i], "column": names[j]}
        rows.append({**of, "length_controlled_win_rate": float(value)})
        if np.isfinite(value):
            color = "white" if value < 50.0 + 0.1 * reach else "black"
            how = {"ha": "center", "va": "center", "fontsize": 6.5, "color": color}
            axes.text(j, i, f"{value:.1f}", **how)
    figure.colorbar(image, ax=axes, label="LC win rate of row against column [percent]", shrink=0.8)
    caption = "Length-controlled win rate of the row's checkpoint against the column's, in percent."
    return Drawn("figure_2", title, caption, figure, rows, "Matrix of pairwise win rates.")
