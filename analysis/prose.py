"""The finding in words, generated from the numbers: what differed, by how much, for whom it speaks,
and what could have been told.

A statement is plain words for any reader and, below them, one line of statistics for specialists,
whose terms are defined once (``screen.TERMS``). A null result is worded as one: no difference was
detected, and this is what would have been. Nothing here is chosen after looking: the order is the
declared one, and the arm that is named under a null is the one farthest from zero.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from analysis import findings, measures
from analysis.findings import Comparison
from analysis.load import StudyData
from analysis.measures import Measure
from analysis.screen import Statement
from analysis.stats import MIN_SEEDS, Estimate, Interval
from analysis.text import capitalised, listed, number, p_value, plural, size

MOST_NAMED = 3
"""Arms named one by one; the others are in the table."""


def unit(measure: Measure) -> str:
    """ "points" for percentages and ratings, otherwise the unit itself."""
    return {"percent": "points", "rating 1–10": "rating points"}.get(
        measure.unit, measure.unit or "units"
    )


def p_words(p: float | None) -> str:
    if p is None:
        return "p undefined"
    shown = p_value(p)
    return f"p {shown}" if shown.startswith("<") else f"p = {shown}"


def after(data: StudyData, iteration: int) -> str:
    """ "after iteration 3", or "after each arm's last" where arms end at different ones."""
    ends, counted = {data.own_last(arm) for arm in data.arms}, counted_in(data)
    if iteration == data.last_iteration and len(ends) > 1:
        return f"after each arm's last {counted} ({min(ends)} to {max(ends)})"
    return f"after {counted} {iteration}"


def nothing_trained(data: StudyData) -> bool:
    """Whether models are scored as they are, as by ``selm evaluate``."""
    return not data.last_iteration and not data.given


def counted_in(data: StudyData) -> str:
    """What checkpoints are counted in."""
    return "step" if data.given else "iteration"


def named(label: str) -> str:
    """An arm's label in a sentence: quoted unless it is one setting like "α = 0.3"."""
    return label if " = " in label and "," not in label else f"“{label}”"


def finding(data: StudyData) -> Statement:
    """The answer to the study's question on its primary outcome."""
    found = findings.find(data)
    measure, baseline = found.primary_measure, named(found.baseline_label)
    when = after(data, found.primary_iteration)
    outcome = f"{measure.name} {when}"
    if len(data.arms) < 2:
        return _alone(data, measure)
    if not data.baseline_arm:
        return Statement(
            "This study declares no baseline, so it compares nothing; the table shows its scores. "
            f"Primary outcome: {outcome}."
        )
    if not found.primary:
        pair = f"{baseline} and another arm"
        said = f"No finding yet: {outcome} is not stored for {pair} ({progress(data)})."
        if not data.unfinished:
            said = (
                f"No finding: all stages are done, but {outcome} has no scored row for {pair}; the "
                "table of completeness says why."
            )
        return Statement(said)
    complete = [c for c in found.primary if c.estimate.value is not None]
    rows = "; ".join(
        f"{named(c.label)}: {c.estimate.scored} of {c.estimate.expected} rows scored"
        for c in found.primary
        if c.estimate.value is None
    )
    if not complete:
        return Statement(
            f"No finding yet: every difference to {baseline} in {outcome} is INCOMPLETE ({rows})."
        )
    told = with_intervals(complete)
    answer = _answer(told, baseline, when) if told else _few_seeds(complete, baseline, when)
    plain = answer.plain
    few = [c for c in complete if c.estimate.seeds < MIN_SEEDS]
    if told and few:
        seeds = listed(f"{named(c.label)} ({plural(c.estimate.seeds, 'seed')})" for c in few)
        plain += f" Nothing is said of {seeds}: intervals over seeds need {MIN_SEEDS}."
    if rows:
        plain += f" Not included, because INCOMPLETE cells take no part: {rows}."
    return Statement(plain, answer.exact)


def with_intervals(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Those with a value over enough seeds to say how seeds vary."""
    return [
        c for c in comparisons if c.estimate.value is not None and c.estimate.seeds >= MIN_SEEDS
    ]


def _alone(data: StudyData, measure: Measure) -> Statement:
    """The score of a study's only arm after its last iteration."""
    arm = next(iter(data.arms), "")
    if nothing_trained(data):
        label = named(data.label(arm))
        return Statement(f"{label} was scored and nothing trained; the table shows its scores.")
    checkpoint = data.at(arm, data.last_iteration)
    value = findings.estimate(data, checkpoint, measure) if checkpoint else None
    head = (
        f"This study has one arm, {named(data.label(arm))}, so it compares nothing. "
        f"{measure.name} {after(data, data.last_iteration)} is"
    )
    if value is None or value.value is None:
        return Statement(f"{head} not stored or incomplete ({progress(data)}).")
    digits, items = value.digits(measure.digits), measure.unit_of_items
    intervals = []
    for name, interval in value.intervals.items():
        of = f"over new {items}, this checkpoint only:" if name == "items" else f"({name})"
        intervals.append(f"{of} {_range(interval, digits)}")
    shown = f"{number(value.value, digits)} {measure.unit}".strip()
    return Statement(f"{head} {shown}.", f"{'; '.join(intervals)}; n = {_n(value, items)}.")


def _answer(complete: list[Comparison], baseline: str, when: str) -> Statement:
    measure, detected = complete[0].measure, [c for c in complete if c.detected()]
    if not detected:
        return _null(complete, baseline, when)
    largest = sorted(detected, key=lambda c: -abs(c.estimate.value or 0.0))[:MOST_NAMED]
    shown = [c for c in detected if c in largest]  # in the study's order: its controls come last
    head = "; ".join(f"{named(c.label)} {_effect(c)}" for c in shown)
    if len(detected) > MOST_NAMED:
        head += f"; {len(detected) - MOST_NAMED} further arms also differ"
    sentences = [f"Against {baseline} {when}, {head}."]
    for c in shown:
        arm, a, b = named(c.label), c.detected("A"), c.detected("B")
        if not b:
            sentences.append(
                f"For {arm} this is established for these {measure.unit_of_items} only: for new "
                "ones the difference cannot be told from zero."
            )
        elif not a:
            sentences.append(
                f"For {arm} the two intervals disagree: it is detected under (B) but not under "
                "(A), so read it with care."
            )
    rest = [c for c in complete if c not in detected]
    if rest:
        others = listed(named(c.label) for c in rest)
        if len(rest) > MOST_NAMED:
            others = f"the {len(rest)} other arms"
        sentences.append(f"For {others} no difference was detected in {measure.name}.")
    return Statement(" ".join(sentences), _exact(shown))


def _effect(c: Comparison) -> str:
    """ "raised MT-Bench mean by 0.32 rating points (better; 95 % interval 0.10 to 0.54)"."""
    value, verdict = c.estimate.value or 0.0, ""
    if c.measure.better:
        verdict = "better; " if value * c.measure.better > 0 else "worse; "
    interval = c.estimate.intervals["A" if c.detected("A") else "B"]
    return (
        f"{'raised' if value > 0 else 'lowered'} {c.measure.name} by "
        f"{number(abs(value), c.digits)} {unit(c.measure)} "
        f"({verdict}{_interval(interval, c.digits)})"
    )


def _few_seeds(complete: list[Comparison], baseline: str, when: str) -> Statement:
    """Below three seeds: what was measured, with an interval over items where there is one seed."""
    far = _farthest(complete)
    most = ", the largest of the differences," if len(complete) > 1 else ""
    items, exact = far.estimate.intervals.get("items"), ""
    if items is not None and items.low is not None:
        exact = (
            f"Over new {far.measure.unit_of_items}, for these two checkpoints only: "
            f"{_range(items, far.digits)}, {p_words(items.p)}, n = {far.estimate.clusters}."
        )
        if len(complete) > 1 and items.p is not None:  # Bonferroni's, which is Holm's of the first
            least = p_words(min(1.0, items.p * len(complete)))
            exact += f" As the largest of {len(complete)}: {least}."
    return Statement(
        f"With {plural(far.estimate.seeds, 'seed')} nothing can be said about other seeds: "
        f"intervals over seeds need 3. Measured for what it is, {named(far.label)} minus "
        f"{baseline}{most} is {number(far.estimate.value, far.digits, sign=True)} "
        f"{unit(far.measure)} in {far.measure.name} {when}.",
        exact,
    )


def _null(complete: list[Comparison], baseline: str, when: str) -> Statement:
    far = _farthest(complete)
    arms, largest = named(far.label), "The observed difference"
    if len(complete) > 1:
        largest = f"The largest observed difference is that of {arms}, which"
        arms = f"any of the {len(complete)} arms"
    return Statement(
        f"No difference from {baseline} was detected in {far.measure.name} {when} for {arms}; that "
        f"is not evidence of no effect. {largest} is "
        f"{number(far.estimate.value, far.digits, sign=True)} {unit(far.measure)} "
        f"({_interval(far.estimate.intervals['A'], far.digits)}).",
        _exact([far]),
    )


def detectable(data: StudyData) -> Statement | None:
    """What could have been detected; None without a difference over three seeds."""
    found = findings.find(data)
    complete = with_intervals(found.primary)
    if not complete:
        return None
    far = _farthest(complete)
    known = {p: d for p, d in far.detectable.items() if d.value is not None}
    if not known:
        return Statement(
            "What could have been detected is undefined here: the scores hold no variance to "
            "estimate it from."
        )
    (least, *_), a, about = known.values(), far.detectable["A"], ""
    if a.low is not None and a.high is not None:
        about = f"{size(a.low, far.digits)} to {size(a.high, far.digits)}"
    single = " in one comparison alone" if len(found.declared) > 1 else ""
    seeds = f" ({about}, as far as {far.estimate.seeds} seeds tell their spread)" * bool(about)
    ending = "."
    if not any(c.detected() for c in complete):
        ending = "; a smaller one, in either direction, would most likely have been missed."
    elif all(abs(far.estimate.value or 0.0) < (d.value or 0.0) for d in known.values()):
        ending = (
            "; the estimate is below that, and estimates that just pass a test tend to be too "
            "large."
        )
    shown = [
        f"({p}) {size(d.value, far.digits)}" + f" ({about})" * (p == "A" and bool(about))
        for p, d in known.items()
    ]
    return Statement(
        f"Could we have told? A true difference of {size(least.value, far.digits)} "
        f"{unit(far.measure)}{seeds} would be found four times in five{single}{ending}",
        f"MDE: {'; '.join(shown)}; n = {_n(far.estimate, far.measure.unit_of_items)}.",
    )


def _farthest(complete: list[Comparison]) -> Comparison:
    return max(complete, key=lambda c: (abs(c.estimate.value or 0.0), c.arm))


def _exact(comparisons: list[Comparison]) -> str:
    """Both intervals of every comparison with their p, plain and after Holm."""
    sentences = []
    for c in comparisons:
        parts = []
        for population in findings.POPULATIONS:
            interval = c.estimate.intervals[population]
            said = f"({population}) {_range(interval, c.digits)}, {p_words(interval.p)}"
            if c.holm.get(population) is not None:
                said += f", Holm {p_value(c.holm[population])}"
            parts.append(said)
        n = _n(c.estimate, c.measure.unit_of_items)
        sentences.append(f"{named(c.label)}: {'; '.join(parts)}; n = {n}.")
        flags = [flag for flag in c.estimate.flags if flag.startswith("unequal")]
        sentences += [f"{capitalised(flag)}." for flag in flags]
    return " ".join(sentences)


def _interval(interval: Interval, digits: int) -> str:
    return f"{'95 % interval ' * interval.defined}{_range(interval, digits)}"


def _range(interval: Interval, digits: int) -> str:
    if interval.low is None or interval.high is None:
        return f"no interval ({interval.undefined})"
    return f"{number(interval.low, digits)} to {number(interval.high, digits)}"


def _n(value: Estimate, items: str) -> str:
    """ "3 seeds × 128 instructions"; without items where seeds are compared by their means."""
    crossed = f" × {value.clusters} {items}" if value.clusters > 1 else ""
    return plural(value.seeds, "seed") + crossed


# -- the rest of the summary -----------------------------------------------------------------------
def other_outcomes(data: StudyData) -> Statement | None:
    """The further declared outcomes in one sentence."""
    found = findings.find(data)
    rest = [c for c in found.declared if c not in found.primary]
    if not rest:
        return None
    hits = [c for c in rest if c.detected()]
    head = (
        f"Of the {len(rest)} further declared comparisons {len(hits) or 'none'} "
        f"differ{'s' * (len(hits) == 1)} from {named(found.baseline_label)}"
    )
    shown = "; ".join(f"{named(c.label)} {_effect(c)}" for c in hits[:6])
    return Statement(f"{head}{': ' * bool(shown)}{shown}.", _exact(hits[:6]))


def selection(data: StudyData) -> Statement | None:
    """The best arm, on seeds that did not choose it."""
    found = findings.find(data)
    chosen, measure = found.selection, found.primary_measure
    if chosen is None:
        return None
    value, a = chosen.estimate, chosen.estimate.intervals.get("A")
    digits = value.digits(measure.digits)
    first, others = (
        f"seed{'s' * (len(some) != 1)} {', '.join(map(str, some))}"
        for some in (chosen.choosing, chosen.estimating)
    )
    return Statement(
        f"Of {chosen.trials} arms tried, {named(data.label(chosen.best))} is best on {first} "
        f"({number(chosen.naive, digits, sign=True)} {unit(measure)}); on {others}, "
        "which did not choose it, its difference is "
        f"{number(value.value, digits, sign=True)} {unit(measure)}.",
        f"(A) {_range(a, digits)}." if a else "",
    )


def improvement(data: StudyData) -> Statement:
    """Whether training improves on the base at all: without that, α has nothing to change."""
    found = findings.find(data).improvement
    if found.estimate is None or found.estimate.value is None:
        return Statement(
            "Whether training improves on the base cannot be said: "
            f"{found.reason or 'held-out reward is incomplete'}."
        )
    value, digits = found.estimate, found.estimate.digits(found.measure.digits)
    known = {p: value.intervals[p] for p in findings.POPULATIONS if p in value.intervals}
    shown = [f"({p}) {_range(i, digits)}" for p, i in known.items() if i.low is not None]
    verb = "It is not established that training improves on the base"
    if known and all(i.low is not None and i.low > 0 for i in known.values()):
        verb = "Training improves on the base"
    elif known and all(i.high is not None and i.high < 0 for i in known.values()):
        verb = "Training makes the base worse"
    return Statement(
        f"{verb}: from the base to {named(found.label)} after iteration {found.iteration}, "
        f"{found.measure.name} goes from {number(found.before, digits)} to "
        f"{number(found.after, digits)}.",
        f"Change {number(value.value, digits, sign=True)}; "
        f"{'; '.join(shown) or 'no interval below 3 seeds'}; n = {_n(value, 'prompts')}.",
    )


def trend(data: StudyData) -> Statement | None:
    """The diagnostic declared in advance."""
    found = findings.find(data).trend
    if found is None:
        return None
    along = found.axis.rsplit(".", 1)[-1].replace("alpha", "α")
    head = (
        f"Declared in advance: {found.measure.name} after iteration {found.iteration}, expected to "
        f"{found.expected.replace('falling', 'fall').replace('rising', 'rise')} with {along}."
    )
    result = found.result
    if result is None:
        return Statement(f"{head} Not tested: {found.reason}.")
    value = result.estimate
    if value.value is None:
        return Statement(f"{head} Not tested: {'; '.join(value.flags)}.")
    verdict = "Observed in the opposite direction"
    if result.p_directed is not None and result.p_directed < 0.05:
        verdict = f"It {'falls' if value.value < 0 else 'rises'}"
    elif (value.value < 0) == (found.expected == "falling"):
        verdict = "Observed in that direction, but not established"
    page, digits = "", value.digits(3)
    if result.page.p is not None:
        page = (
            f"; Page's test over the orders within seeds: p = {result.page.p:.2g} (never below "
            f"{result.page.floor:.2g})"
        )
    ranges = "; ".join(f"({p}) {_range(value.intervals[p], digits)}" for p in findings.POPULATIONS)
    return Statement(
        f"{head} {verdict}.",
        f"Slope {number(value.value, digits, sign=True)} {found.measure.unit} per step up the "
        f"{len(result.alphas)} values of {along}; {ranges}; one-sided {p_words(result.p_directed)} "
        f"under (A){page}; n = {'; '.join((_n(value, 'prompts'), *result.flags))}.",
    )


def progress(data: StudyData) -> str:
    done = sum(1 for stage in data.stages.values() if stage.state == "done")
    return f"{done} of {len(data.stages)} stages are done"


def unfitted(data: StudyData) -> str:
    """How many length-controlled win rates are the library's one half of an empty fit."""
    found = [
        summary
        for checkpoint in data.checkpoints
        for run in checkpoint.runs
        if (summary := data.summary(run, checkpoint.iteration, "alpaca_eval"))
    ]
    empty = sum(map(measures.penalised_to_nothing, found))
    if not empty:
        return ""
    return (
        f"AlpacaEval LC is no measurement in {empty} of {len(found)} sets of verdicts: the "
        "library's penalty left no coefficient of its fit, which then says 50. Read WR there."
    )


def missing(data: StudyData) -> str:
    """What is not there, in one sentence; empty when everything is."""
    states = Counter(stage.state for stage, _ in data.unfinished)
    if not states:
        return ""
    order = ("failed", "partial", "missing")
    counted = listed(f"{states[state]} {state}" for state in order if states[state])
    return (
        f"This study is unfinished: {progress(data)}, {counted}. What depends on them is "
        "marked INCOMPLETE below; the reasons are listed."
    )


def conditions(data: StudyData) -> str:
    """What every statement is conditional on."""
    arms = plural(len(data.arms), "arm")
    if data.given:
        steps = sum(len([step for step in run.iterations if step > 0]) for run in data.runs)
        return (
            f"{arms}, {plural(len(data.runs), 'run')}, {plural(steps, 'checkpoint')} after "
            "training, all made elsewhere: how they were trained, and what a seed of theirs "
            "varied, is not known here."
        )
    ends = {data.own_last(arm) for arm in data.arms}
    iterations = plural(data.last_iteration, "iteration")
    if len(ends) > 1:
        iterations = f"{min(ends)} to {max(ends)} iterations"
    parts = [f"{arms} × {plural(len(data.seeds), 'seed')} × {iterations}"]
    if len({run.iterations.get(0, {}).get("base", "") for run in data.runs}) == 1:
        parts.append("all runs start from one shared base, so every statement is conditional on it")
    explore = data.recipe.get("exploration") or {}
    if explore.get("decoding") == "greedy":
        parts.append("y is greedy: a seed varies little more than the order of the data")
    elif explore:
        parts.append("a seed varies the order of the prompts, the samples and the training")
    if (data.recipe.get("judge") or {}).get("kind") == "pocket":
        parts.append("the judge is the pocket world's own")
    return capitalised("; ".join(parts)) + "."
