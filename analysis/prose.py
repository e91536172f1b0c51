"""The finding in words, generated from the numbers: what differed, by how much, for whom it speaks,
and what could have been told.

A null result is worded as one: no difference was detected, and this is what would have been.
Nothing here is chosen after looking: the order is the declared one, and the arm that is named under
a null is the one farthest from zero.
"""

from __future__ import annotations

from analysis import findings
from analysis.findings import Comparison, Findings, TrendFinding
from analysis.load import StudyData
from analysis.measures import Measure
from analysis.stats import Estimate, Interval
from analysis.text import capitalised, listed, number, p_value, plural

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
    """ "after iteration 3"; where arms end at different iterations and the last is meant, that it
    is each arm's own.
    """
    ends, counted = {data.own_last(arm) for arm in data.arms}, counted_in(data)
    if iteration == data.last_iteration and len(ends) > 1:
        return f"after each arm's last {counted} ({min(ends)} to {max(ends)})"
    return f"after {counted} {iteration}"


def counted_in(data: StudyData) -> str:
    """What checkpoints are counted in."""
    return "step" if any(run.given for run in data.runs) else "iteration"


def named(label: str) -> str:
    """An arm's label in a sentence: quoted unless it is one setting like "α = 0.3"."""
    return label if " = " in label and "," not in label else f"“{label}”"


def finding(data: StudyData) -> list[str]:
    """Sentences of the first paragraph. The first one is the answer."""
    found = findings.find(data)
    measure = found.primary_measure
    outcome = f"{measure.name} {after(data, found.primary_iteration)}"
    if not data.baseline_arm:
        return [
            "This study declares no baseline, so it compares nothing; its scores are in Table 1 "
            f"and Table 2. Primary outcome: {outcome}."
        ]
    if len(data.arms) < 2:
        return [
            f"This study has one arm, {named(found.baseline_label)}, so it compares nothing. "
            f"{_alone(data, measure)}"
        ]
    if not found.primary:
        pair = f"{named(found.baseline_label)} and another arm"
        if data.unfinished:
            return [f"No finding yet: {outcome} is not stored for {pair} ({progress(data)})."]
        return [
            f"No finding: all stages are done, but {outcome} has no scored row for {pair}; the "
            "table of completeness says why."
        ]
    complete = [c for c in found.primary if c.estimate.value is not None]
    lost = [c for c in found.primary if c.estimate.value is None]
    if not complete:
        reasons = "; ".join(
            f"{named(c.label)}: {c.estimate.scored} of {c.estimate.expected} rows scored"
            for c in lost
        )
        return [
            f"No finding yet: every difference to {named(found.baseline_label)} in {outcome} is "
            f"INCOMPLETE ({reasons})."
        ]
    sentences = _answer(data, found, complete)
    if lost:
        rows = [f"{c.estimate.scored} of {c.estimate.expected} rows scored" for c in lost]
        sentences.append(
            f"Not included: {listed(named(c.label) for c in lost)} ({'; '.join(rows)}); a cell "
            "that is INCOMPLETE takes no part."
        )
    return sentences


def _alone(data: StudyData, measure: Measure) -> str:
    """The score of a study's only arm after its last iteration, in one sentence."""
    checkpoint = data.at(next(iter(data.arms)), data.last_iteration)
    value = findings.estimate(data, checkpoint, measure) if checkpoint else None
    if checkpoint is None or value is None or value.value is None:
        return (
            f"{measure.name} {after(data, data.last_iteration)} is not stored or incomplete "
            f"({progress(data)})."
        )
    items = measure.unit_of_items
    who = {
        "items": f"over new {items}, this checkpoint only,",
        "A": "(A) new seeds",
        "B": f"(B) new seeds and new {items}",
    }
    intervals = [
        f"{who[name]} {_range(i, measure.digits)}"
        for name, i in value.intervals.items()
        if i.low is not None
    ]
    return (
        f"{measure.name} {after(data, data.last_iteration)} is "
        f"{number(value.value, measure.digits)} {measure.unit} "
        f"(95 %: {', '.join(intervals) or 'no interval'}; n = {_n(value, measure.unit_of_items)})."
    )


def _answer(data: StudyData, found: Findings, complete: list[Comparison]) -> list[str]:
    measure, when, baseline = (
        found.primary_measure,
        after(data, found.primary_iteration),
        named(found.baseline_label),
    )
    if complete[0].estimate.seeds < 3:
        far = _farthest(complete)
        most = ", the largest of the differences," if len(complete) > 1 else ""
        return [
            f"With {plural(far.estimate.seeds, 'seed')} nothing can be said about other seeds: "
            "intervals over seeds "
            f"need 3. Measured for what it is, {named(far.label)} minus {baseline}{most} is "
            f"{number(far.estimate.value, measure.digits, sign=True)} {unit(measure)} in "
            f"{measure.name} {when}.",
            *_one_seed(far),
        ]
    detected = [c for c in complete if c.detected("A") or c.detected("B")]
    if not detected:
        return _null(data, found, complete)
    ordered = sorted(detected, key=lambda c: -abs(c.estimate.value or 0.0))
    verbs = {c.arm: "raised" if (c.estimate.value or 0) > 0 else "lowered" for c in ordered}
    head = "; ".join(
        f"{named(c.label)} {verbs[c.arm]} {measure.name} by "
        f"{number(abs(c.estimate.value or 0), measure.digits)} {unit(measure)}"
        for c in ordered[:MOST_NAMED]
    )
    more = (
        f" ({len(ordered) - MOST_NAMED} further arms also differ: see the table of differences)"
        if len(ordered) > MOST_NAMED
        else ""
    )
    sentences = [f"Against {baseline} {when}, {head}{more}."]
    sentences += [_details(c, found.family_size) for c in ordered[:MOST_NAMED]]
    sentences += [_reach(c) for c in ordered[:MOST_NAMED] if _reach(c)]
    rest = [c for c in complete if c not in detected]
    if rest:
        smallest = min((p for c in rest if (p := c.p("A")) is not None), default=None)
        others = listed(named(c.label) for c in rest)
        sentences.append(
            f"For {others} no difference was detected (smallest p after Holm: {p_value(smallest)} "
            "under (A))."
        )
    sentences.append(_told(ordered[0], null=False, family=found.family_size))
    return sentences


def _null(data: StudyData, found: Findings, complete: list[Comparison]) -> list[str]:
    measure, far = found.primary_measure, _farthest(complete)
    arms = named(far.label) if len(complete) == 1 else f"any of the {len(complete)} arms"
    return [
        f"No difference from {named(found.baseline_label)} was detected in {measure.name} "
        f"{after(data, found.primary_iteration)} for {arms}; "
        "that is not evidence of no effect.",
        f"The {'' if len(complete) == 1 else 'largest '}observed difference is that of "
        f"{_details(far, found.family_size)}",
        _told(far, null=True, family=found.family_size),
    ]


def _farthest(complete: list[Comparison]) -> Comparison:
    return max(complete, key=lambda c: (abs(c.estimate.value or 0.0), c.arm))


def _details(c: Comparison, family: int) -> str:
    value, digits = c.estimate, c.measure.digits
    parts = [
        f"{_population(p, c)}: {_range(value.intervals[p], digits)}, "
        f"{p_words(value.intervals[p].p)}"
        + (
            f", {p_value(c.holm[p])} after Holm over {family}"
            if c.holm.get(p) is not None and family > 1
            else ""
        )
        for p in ("A", "B")
    ]
    unequal = next((f" Note: {flag}." for flag in value.flags if flag.startswith("unequal")), "")
    return (
        f"{named(c.label)}: {number(value.value, digits, sign=True)} {unit(c.measure)} (95 % "
        f"intervals; {'; '.join(parts)}; "
        f"n = {_n(value, c.measure.unit_of_items)}).{unequal}"
    )


def _population(population: str, c: Comparison) -> str:
    return {
        "A": "(A) this benchmark, new seeds",
        "B": f"(B) new seeds and new {c.measure.unit_of_items}",
    }[population]


def _range(interval: Interval, digits: int) -> str:
    if interval.low is None or interval.high is None:
        return f"no interval ({interval.undefined})"
    return f"{number(interval.low, digits)} to {number(interval.high, digits)}"


def _n(value: Estimate, items: str) -> str:
    """ "3 seeds × 128 instructions"; without items where seeds are compared by their means."""
    crossed = f" × {value.clusters} {items}" if value.clusters > 1 else ""
    return plural(value.seeds, "seed") + crossed


def _reach(c: Comparison) -> str:
    """For whom a detected difference speaks."""
    a, b = c.detected("A"), c.detected("B")
    if a and not b:
        items = c.measure.unit_of_items
        return (
            f"For {named(c.label)} this is established for these {items} only: for new ones "
            "the difference cannot be told from zero."
        )
    if b and not a:
        return (
            f"For {named(c.label)} the two intervals disagree: it is detected under (B) but "
            "not under (A), so read it with care."
        )
    return ""


def _told(c: Comparison, *, null: bool, family: int) -> str:
    """Could we have told? The minimum detectable effect with its range."""
    shown = []
    for population in ("A", "B"):
        d = c.detectable.get(population)
        if d is None or d.value is None:
            continue
        low, high = (
            number(end, c.measure.digits) if end is not None else "?" for end in (d.low, d.high)
        )
        known = (
            f" (between {low} and {high}, as far as the spread over seeds is known)"
            if low != high and population == "A"
            else ""
        )
        shown.append(
            f"{number(d.value, c.measure.digits)} {unit(c.measure)} under ({population}){known}"
        )
    if not shown:
        return (
            "What could have been detected is undefined here: the scores hold no variance to "
            "estimate it from."
        )
    single = f", for one comparison alone (Holm over {family} asks for more)," if family > 1 else ""
    text = (
        f"Could we have told? With 80 % power at the 5 % level{single} this design detects a "
        f"difference of {' and of '.join(shown)}"
    )
    if null:
        return text + "; a smaller effect, in either direction, would most likely have been missed."
    smallest = min(d.value for d in c.detectable.values() if d.value is not None)
    if abs(c.estimate.value or 0.0) < smallest:
        return (
            text
            + "; the estimate is below that, and estimates that just pass a test tend to be too "
            "large."
        )
    return text + "."


def _one_seed(c: Comparison) -> list[str]:
    items = c.estimate.intervals.get("items")
    if items is None or items.low is None:
        return []
    return [
        f"Over new {c.measure.unit_of_items}, for these two checkpoints only: "
        f"{_range(items, c.measure.digits)} (95 %, {p_words(items.p)}, "
        f"n = {c.estimate.clusters})."
    ]


# -- the rest of the summary -----------------------------------------------------------------------
def other_outcomes(data: StudyData) -> str:
    """The further declared outcomes in one sentence, or an empty text."""
    found = findings.find(data)
    rest = [c for c in found.declared if c not in found.primary]
    if not rest:
        return ""
    hits = [c for c in rest if c.detected("A") or c.detected("B")]
    head = (
        f"Of the {len(rest)} further declared comparisons {len(hits) or 'none'} "
        f"differ{'s' * (len(hits) == 1)} from {named(found.baseline_label)} "
        "after Holm"
    )
    shown = [_hit(c) for c in hits[:6]]
    return head + (": " + "; ".join(shown) if shown else "") + "."


def _hit(c: Comparison) -> str:
    told = " and ".join(f"({p})" for p in "AB" if c.detected(p))
    return (
        f"{named(c.label)} in {c.measure.name}, "
        f"{number(c.estimate.value, c.measure.digits, sign=True)}, under {told}"
    )


def selection(data: StudyData) -> str:
    """The best arm, on seeds that did not choose it."""
    found = findings.find(data)
    chosen, measure = found.selection, found.primary_measure
    if chosen is None:
        return ""
    label, value = data.label(chosen.best), chosen.estimate
    a = value.intervals.get("A")
    interval = ""
    if a and a.low is not None:
        interval = f" (95 %, (A) {_range(a, measure.digits)})"
    elif a:
        interval = f" (no interval from {a.undefined})"
    return (
        f"Of {chosen.trials} arms tried, {named(label)} is best on "
        f"seed{'s' * (len(chosen.choosing) != 1)} {', '.join(map(str, chosen.choosing))} "
        f"({number(chosen.naive, measure.digits, sign=True)} {unit(measure)}); on the "
        f"seed{'s' * (len(chosen.estimating) != 1)} "
        f"that did not choose it, {', '.join(map(str, chosen.estimating))}, its difference is "
        f"{number(value.value, measure.digits, sign=True)} {unit(measure)}{interval}."
    )


def improvement(data: StudyData) -> str:
    """Whether training improves on the base at all: without that, α has nothing to change."""
    found = findings.find(data).improvement
    if found.estimate is None or found.estimate.value is None:
        return (
            "Whether training improves on the base cannot be said: "
            f"{found.reason or 'held-out reward is incomplete'}."
        )
    value, digits = found.estimate, found.measure.digits
    a, b = value.intervals.get("A"), value.intervals.get("B")
    shown = [
        f"({p}) {_range(i, digits)}"
        for p, i in (("A", a), ("B", b))
        if i is not None and i.low is not None
    ]
    sure = all(i is not None and i.low is not None and i.low > 0 for i in (a, b))
    worse = all(i is not None and i.high is not None and i.high < 0 for i in (a, b))
    verb = "It is not established that training improves on the base"
    if sure:
        verb = "Training improves on the base"
    elif worse:
        verb = "Training makes the base worse"
    ends = (
        f"{number(found.before, digits)} to {number(found.after, digits)}"
        if found.before is not None and found.after is not None
        else ""
    )
    return (
        f"{verb}: from the base to {named(found.label)} after iteration {found.iteration}, "
        f"{found.measure.name} goes from {ends}, a change of "
        f"{number(value.value, digits, sign=True)} (95 %: "
        f"{', '.join(shown) or 'no interval below 3 seeds'}; n = {_n(value, 'prompts')})."
    )


def trend(data: StudyData) -> str:
    """The diagnostic declared in advance."""
    found = findings.find(data).trend
    return "" if found is None else _trend(found)


def _trend(found: TrendFinding) -> str:
    name = f"{found.measure.name} after iteration {found.iteration}"
    along = found.axis.rsplit(".", 1)[-1].replace("alpha", "α")
    head = (
        f"Declared in advance: {name}, expected to "
        f"{found.expected.replace('falling', 'fall').replace('rising', 'rise')} with {along}."
    )
    if found.result is None:
        return f"{head} Not tested: {found.reason}."
    value, result = found.result.estimate, found.result
    if value.value is None:
        return f"{head} Not tested: {'; '.join(value.flags) or 'incomplete'}."
    a, b = value.intervals["A"], value.intervals["B"]
    as_expected = (value.value < 0) == (found.expected == "falling")
    established = result.p_directed is not None and result.p_directed < 0.05
    verdict = "Observed in the opposite direction"
    if established:
        verdict = f"It {'falls' if value.value < 0 else 'rises'}"
    elif as_expected:
        verdict = "Observed in that direction, but not established"
    page = (
        f"; Page's test over the orders within seeds: p = {result.page.p:.2g} (never below "
        f"{result.page.floor:.2g})"
        if result.page.p is not None
        else ""
    )
    return (
        f"{head} {verdict}: slope {number(value.value, 3, sign=True)} {found.measure.unit} per "
        f"step up the {len(result.alphas)} values of {along} "
        f"(95 %: (A) {_range(a, 3)}; "
        f"(B) {_range(b, 3)}; one-sided {p_words(result.p_directed)} under (A){page}; n = "
        f"{_n(value, 'prompts')})."
    )


def progress(data: StudyData) -> str:
    done = sum(1 for stage in data.stages.values() if stage.state == "done")
    return f"{done} of {len(data.stages)} stages are done"


def missing(data: StudyData) -> str:
    """What is not there, in one sentence; empty when everything is."""
    states: dict[str, int] = {}
    for stage, _ in data.unfinished:
        states[stage.state] = states.get(stage.state, 0) + 1
    if not states:
        return ""
    counted = listed(
        f"{states[state]} {state}" for state in ("failed", "partial", "missing") if state in states
    )
    return (
        f"This study is unfinished: {progress(data)}, {counted}. What depends on them is "
        "marked INCOMPLETE below; the reasons are listed."
    )


def conditions(data: StudyData) -> str:
    """What every statement is conditional on."""
    explore = data.recipe.get("exploration") or {}
    ends = {data.own_last(arm) for arm in data.arms}
    iterations = (
        plural(data.last_iteration, "iteration")
        if len(ends) == 1
        else f"{min(ends)} to {max(ends)} iterations"
    )
    parts = [f"{plural(len(data.arms), 'arm')} × {plural(len(data.seeds), 'seed')} × {iterations}"]
    if any(run.given for run in data.runs):
        steps = sum(len([step for step in run.iterations if step > 0]) for run in data.runs)
        told = f"{plural(len(data.arms), 'arm')}, {plural(len(data.runs), 'run')}"
        return (
            f"{told}, {plural(steps, 'checkpoint')} after training, all made elsewhere: how they "
            "were trained, and what a seed of theirs varied, is not known here."
        )
    bases = {run.iterations.get(0, {}).get("base", "") for run in data.runs}
    if len(bases) == 1:
        parts.append("all runs start from one shared base, so every statement is conditional on it")
    if explore.get("decoding") == "greedy":
        parts.append("y is greedy: a seed varies little more than the order of the data")
    elif explore:
        parts.append("a seed varies the order of the prompts, the samples and the training")
    judge = data.recipe.get("judge") or {}
    if judge.get("kind") == "pocket":
        parts.append("the judge is the pocket world's own")
    return capitalised("; ".join(parts)) + "."
