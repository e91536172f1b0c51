"""The published algorithms by name: who wrote what, what was paired, what the term reads, found in
what a study on the pocket world stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from harness.engine.graph import Plan
from harness.engine.runs import build_plan
from harness.engine.store import Store
from harness.engine.worker import run_stage
from harness.records import HarnessError, read_jsonl
from harness.study.study import load_study

ABLATIONS = Path(__file__).parents[2] / "ablations"
PRESETS = sorted(path.stem for path in (ABLATIONS / "presets").glob("*.yaml"))
SMALL = {
    "loop": {"iterations": 2, "prompts_per_iteration": 48},
    "pocket": {"steps": 60, "rows": 800},
    "training": {"epochs": 1, "batch_size": 16, "learning_rate": 0.003},
    "data": {"heldout": 8, "ood": 4},
    "evaluation": {"benchmarks": []},
    "diagnostics": {"enabled": False},
}

QUICK = {"learning_rate": 0.003, "epochs": 5}


def study(folder: Path, preset: str, **changes: Any) -> Plan:
    text = f"name: one\nrecipe: {ABLATIONS}/recipes/pocket.yaml\nset: {SMALL}\nseeds: [0]\n"
    text += f"arms: [{{label: arm, preset: {ABLATIONS}/presets/{preset}.yaml, set: {changes}}}]\n"
    file = folder / f"{preset}.yaml"
    file.write_text(text.replace("True", "true").replace("False", "false"))
    return build_plan(load_study(file))


@dataclass
class Ran:
    """A study of one run whose stages are done."""

    plan: Plan
    store: Store

    def stage(self, iteration: int, name: str) -> Any:
        return self.plan.nodes[self.plan.runs[0].iterations[iteration][name]]

    def rows(self, key: str, file: str) -> list[dict[str, Any]]:
        return list(read_jsonl(self.store.folder(key) / file))

    def drawn(self, iteration: int, name: str) -> dict[str, list[str]]:
        """Texts of a rollout by prompt, in the order of their samples."""
        found: dict[str, list[str]] = {}
        for row in self.rows(self.stage(iteration, name).key, "responses.jsonl"):
            found.setdefault(row["prompt_id"], []).append(row["text"])
        return found

    def pairs(self, iteration: int) -> dict[str, dict[str, Any]]:
        rows = self.rows(self.stage(iteration, "rank").key, "pairs.jsonl")
        return {row["prompt_id"]: row for row in rows}

    def writer(self, iteration: int, name: str) -> str:
        """Who wrote a rollout: ``first`` or ``current`` at the second iteration."""
        policy = self.stage(iteration, name).inputs["policy"]
        run = self.plan.runs[0].iterations
        return {run[0]["base"]: "first", run[1]["train"]: "current"}[policy]


def run_all(plan: Plan, store: Store) -> Ran:
    for node in plan.nodes.values():
        if not node.stage.startswith("benchmarks"):
            result = run_stage(store, node)
            assert result.state == "done", (node.stage, result.message)
    return Ran(plan, store)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Any:
    store = Store(tmp_path_factory.mktemp("store"))
    store.open()

    def make(preset: str, **changes: Any) -> Ran:
        return run_all(study(tmp_path_factory.mktemp(preset), preset, **changes), store)

    return make


def candidates(found: Ran, *names: tuple[str, int]) -> list[set[str]]:
    """What each pair of the second iteration may be chosen from: the first so many samples of each
    rollout.
    """
    drawn = {name: found.drawn(2, name) for name, _ in names}
    return [
        {text for name, count in names for text in drawn[name][prompt][:count]}
        for prompt in found.pairs(2)
    ]


def paired(found: Ran) -> list[set[str]]:
    return [{row["chosen"], row["rejected"]} for row in found.pairs(2).values()]


def check_common(found: Ran, reference: str, merged: int) -> None:
    """π_ref of the second iteration, and how many iterations' pairs it trains on."""
    train = found.stage(2, "train")
    run = found.plan.runs[0].iterations
    wanted = run[0]["base"] if reference == "fixed" else run[1]["train"]
    assert train.inputs["reference_policy"] == wanted
    assert found.stage(2, "reference").inputs["policy"] == wanted
    rows = found.rows(train.inputs["pairs"], "pairs.jsonl")
    assert len(rows) == sum(len(found.pairs(i)) for i in range(3 - merged, 3))
    for row in found.pairs(2).values():
        assert row["scores"][row["chosen_from"]] >= row["scores"][row["rejected_from"]]


def check_term(found: Ran, wanted: dict[str, list[str]]) -> None:
    """The term reads the first sample of a rollout; its log-probability under π_ref is stored."""
    assert "explore" in found.stage(2, "train").settings.objective.roles
    for prompt, row in found.pairs(2).items():
        assert row["explore"] == wanted[prompt][0]


def test_every_preset_is_checked_here() -> None:
    checked = {name.removeprefix("test_preset_") for name in globals() if "test_preset_" in name}
    assert checked == set(PRESETS)


def test_preset_selm(ran: Any) -> None:
    """y ~ π_t; best and worst of {y, y_w, y_l}; π_ref = π_t."""
    found = ran("selm", **{"objective.alpha": 0.5})
    assert found.writer(2, "rollout") == "current"
    y = found.drawn(2, "rollout")
    check_term(found, y)
    names = {name for row in found.pairs(2).values() for name in row["scores"]}
    assert names == {"chosen", "rejected", "y"}
    assert all(len(texts) == 1 for texts in y.values())
    check_common(found, "previous", 1)


def test_preset_xpo(ran: Any) -> None:
    """Pair = (π_t sample, π_ref sample); the term reads the π_ref sample; data accumulate."""
    found = ran("xpo", **{"objective.alpha": 0.05})
    assert (found.writer(2, "rollout"), found.writer(2, "current")) == ("first", "current")
    allowed = candidates(found, ("rollout", 1), ("current", 1))
    assert all(pair == two for pair, two in zip(paired(found), allowed, strict=True))
    check_term(found, found.drawn(2, "rollout"))
    check_common(found, "fixed", 2)
    # At the start π_t is π_ref: still two samples, with noise of their own.
    first = (found.drawn(1, "rollout"), found.drawn(1, "current"))
    assert any(first[0][prompt] != first[1][prompt] for prompt in first[0])


def test_preset_vpo(ran: Any) -> None:
    """Pair = two samples of π_t; the term reads a sample of the calibration policy."""
    found = ran("vpo", **{"objective.alpha": 0.5})
    assert (found.writer(2, "rollout"), found.writer(2, "current")) == ("first", "current")
    allowed = candidates(found, ("current", 2))
    assert all(pair == two for pair, two in zip(paired(found), allowed, strict=True))
    check_term(found, found.drawn(2, "rollout"))
    check_common(found, "fixed", 2)
    # At α = 0 nothing reads y, so nothing draws it, and the first pairs are shared.
    zero = ran("vpo", **{"objective.alpha": 0})
    assert "rollout" not in zero.plan.runs[0].iterations[1]
    assert zero.stage(1, "current").key == found.stage(1, "current").key


def test_preset_se_popo(ran: Any) -> None:
    """Pair = two samples of π_t, y the first of them."""
    found = ran("se_popo", **{"objective.alpha": 0.4})
    assert (found.writer(2, "rollout"), found.writer(2, "current")) == ("current", "current")
    allowed = candidates(found, ("rollout", 1), ("current", 1))
    assert all(pair == two for pair, two in zip(paired(found), allowed, strict=True))
    assert {row["y_role"] for row in found.pairs(2).values()} <= {"winner", "loser"}
    check_term(found, found.drawn(2, "rollout"))
    check_common(found, "fixed", 1)


def test_preset_online_dpo(ran: Any) -> None:
    """Pair = two samples of π_t; no y at all."""
    found = ran("online_dpo")
    assert "rollout" not in found.plan.runs[0].iterations[2]
    assert found.writer(2, "current") == "current"
    allowed = candidates(found, ("current", 2))
    assert all(pair == two for pair, two in zip(paired(found), allowed, strict=True))
    assert {row["y_role"] for row in found.pairs(2).values()} == {"absent"}
    check_common(found, "fixed", 1)


def test_preset_best_of_k(ran: Any) -> None:
    """Best and worst of eight samples of π_t by the ranker."""
    found = ran("best_of_k")
    allowed = candidates(found, ("current", 8))
    for row, pair, texts in zip(found.pairs(2).values(), paired(found), allowed, strict=True):
        assert pair <= texts
        assert row["scores"][row["chosen_from"]] == max(row["scores"].values())
        assert row["scores"][row["rejected_from"]] == min(row["scores"].values())
    check_common(found, "previous", 1)


def test_preset_copo(ran: Any) -> None:
    """As SELM; the term weighs y by its rarity among the y of the iteration's pairs."""
    found = ran("copo", **{"objective.alpha": 1.0, "counts": QUICK})
    assert found.writer(2, "rollout") == "current"
    check_term(found, found.drawn(2, "rollout"))
    check_common(found, "previous", 1)
    train, count = found.stage(2, "train"), found.stage(2, "count")
    assert count.inputs == {
        "policy": train.inputs["reference_policy"],
        "pairs": train.inputs["pairs"],
    }
    rows = pq.read_table(found.store.folder(count.key) / "counts.parquet").to_pylist()
    pairs = [*found.pairs(2).values()]
    assert [row["prompt_id"] for row in rows] == [pair["prompt_id"] for pair in pairs]
    assert {row["role"] for row in rows} == {"explore"}
    assert len({round(row["rarity"], 6) for row in rows}) > len(rows) / 2
    assert "count" not in ran("copo", **{"objective.alpha": 0}).plan.runs[0].iterations[2]


def selected(found: Ran, iteration: int) -> dict[str, list[str]]:
    rows = found.rows(found.stage(iteration, "select").key, "selected.jsonl")
    return {row["prompt_id"]: row["names"] for row in rows}


def check_selected(found: Ran, drawn: int) -> None:
    """Pairs are of what was selected, and of nothing else."""
    chosen = selected(found, 2)
    assert set() < set(found.pairs(2)) <= set(chosen)
    for prompt, row in found.pairs(2).items():
        assert (
            {row["chosen_from"], row["rejected_from"]} == set(chosen[prompt]) == set(row["scores"])
        )
    assert {len(texts) for texts in found.drawn(2, "current").values()} == {drawn}


def test_preset_apl(ran: Any) -> None:
    """Half of the prompts by entropy, half of these by margin, a pair of eight samples."""
    found = ran("apl", **{"loop.prompts_per_iteration": 160})
    check_selected(found, 8)
    assert len(selected(found, 2)) == 40
    check_common(found, "fixed", 2)
    inputs, train = found.stage(2, "select").inputs, found.stage(2, "train").inputs
    assert inputs["policy"] == train["policy"]
    assert inputs["reference_policy"] == train["reference_policy"]


def test_preset_sea(ran: Any) -> None:
    """Two favourites of an ensemble that was fitted to the pairs of the iteration before."""
    found = ran("sea", **{"ensemble.epochs": 1, "loop.prompts_per_iteration": 96})
    check_selected(found, 20)
    check_common(found, "fixed", 1)
    inputs = found.stage(2, "select").inputs
    assert inputs["pairs_01"] == found.stage(1, "rank").key
    assert inputs["policy"] == found.plan.runs[0].iterations[0]["base"]


def test_the_term_averages_k_samples(ran: Any) -> None:
    found = ran("selm", **{"objective.alpha": 0.5, "exploration.samples": 3})
    drawn = found.drawn(2, "rollout")
    for prompt, row in found.pairs(2).items():
        assert [row["explore"], *row["explore_more"]] == drawn[prompt]
        assert not {"y1", "y2"} & set(row["scores"]), "one sample of y is a candidate"
    roles = ("chosen", "rejected", "explore", "explore_1", "explore_2")
    assert found.stage(2, "train").settings.objective.roles == roles


def test_a_preset_that_is_not_there_is_named_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match=r"dpo.yaml:5: preset '.*' not found"):
        study(tmp_path, "dpo")
