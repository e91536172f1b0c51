"""What labelled pairs say about a judge, as a table: agreement, position flips, noise floor, what
is missing, costs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from analysis.rank import proportion
from analysis.table import Row, Table
from analysis.text import number


def judge_table(judge: str, source: str, repeats: int, found: Mapping[str, Any]) -> Table:
    """``found``: the result of a meta-evaluation ("agreement", "position", "noise", "costs").
    Shares in percent, with Wilson intervals where they are counts.
    """
    agree, position, noise, costs = (
        found[name] for name in ("agreement", "position", "noise", "costs")
    )
    flips = proportion(int(position["flips"]), int(position["pairs"]))
    wilson = f" ({_share(flips.low)}–{_share(flips.high)})" if flips.low is not None else ""
    rows = [
        ("agreement with the labels, both orders", _share(agree["accuracy"])),
        (
            "agreement, first order / flipped order",
            f"{_share(agree['accuracy_usual'])} / {_share(agree['accuracy_flipped'])}",
        ),
        ("agreement, the two orders averaged", _share(agree["accuracy_averaged"])),
        ("agreement of always naming the commoner label", _share(agree["majority_label_share"])),
        ("position-flip rate", _share(position["flip_rate"]) + wilson),
        (
            "advantage of the second place [points]",
            _share(position["second_place_advantage"], sign=True),
        ),
        ("noise floor: sd of one repeated verdict [points]", _share(noise["sd"])),
        ("noise floor: sd of the mean of the set [points]", _share(noise["sd_of_mean"])),
        ("verdicts equal in every repeat", _share(noise["unanimous_share"])),
        ("pairs without a verdict in both orders", f"{agree['missing']} of {agree['pairs']}"),
        ("judge calls; prompt and answer tokens; USD", _costs(costs)),
    ]
    caption = f"{agree['pairs']} pairs of {source}, each shown in both orders, judged {repeats} time{'s' if repeats > 1 else ''}. Percent."
    note = "The noise floor needs two or more repeats (--repeats 2)." if noise["sd"] is None else ""
    data = tuple(
        (group, name, value)
        for group in ("agreement", "position", "noise", "costs")
        for name, value in found[group].items()
    )
    shown = tuple(Row(row) for row in rows)
    return Table(
        "meta_judge",
        f"The judge {judge}",
        caption,
        ("measure", "value"),
        shown,
        ("group", "name", "value"),
        data,
        (note,) if note else (),
    )


def _share(value: float | None, *, sign: bool = False) -> str:
    return number(None if value is None else 100.0 * value, 1, sign=sign)


def _costs(costs: Mapping[str, float]) -> str:
    names = ("judge_calls", "judge_prompt_tokens", "judge_completion_tokens")
    calls, prompt, completion = (f"{costs.get(name, 0):,.0f}" for name in names)
    return f"{calls}; {prompt} and {completion}; {costs.get('judge_usd', 0.0):.2f}"
