"""Model cards: one beside every checkpoint that is kept and none of one that is gone, valid front
matter, the table's numbers, as text.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from analysis import cards, measures
from analysis.load import StudyData, load_study
from analysis.tables import TABLES
from harness.records import content_hash
from tests import synthetic

SPEC = synthetic.Synthetic(faults=False, answers=False, weights=True, seeds=(0, 1))


@pytest.fixture
def built(tmp_path: Path) -> tuple[Path, StudyData]:
    folder, store = synthetic.build(tmp_path, SPEC)
    return folder, load_study(folder, store)


def front(path: Path) -> dict[str, object]:
    _, matter, _ = path.read_text(encoding="utf-8").split("---\n", 2)
    found = yaml.safe_load(matter)
    assert isinstance(found, dict)
    return found


def test_every_kept_checkpoint_has_one_card_and_the_shared_base_has_one(
    built: tuple[Path, StudyData],
) -> None:
    folder, data = built
    written = cards.write_cards(data, folder)
    assert len(written) == 3 * 2 * 2 + 1  # arms × seeds × iterations, and the base
    assert folder / "models" / "objective.alpha=0.3,seed=1" / "iteration-2" / "README.md" in written
    assert (
        "Shared by 6 runs"
        in (
            folder / "models" / "objective.alpha=0,seed=0" / "iteration-0" / "README.md"
        ).read_text()
    )
    index = (folder / "models" / "README.md").read_text()
    assert index.count("[card](") == len(written)


def test_front_matter_is_what_the_hub_reads(built: tuple[Path, StudyData]) -> None:
    hub = pytest.importorskip("huggingface_hub")
    folder, data = built
    for path in cards.write_cards(data, folder):
        read = hub.ModelCard.load(path)
        assert read.data.library_name == "transformers"
        assert read.data.license is None
        assert len(read.data.eval_results) == 6 + 7 + 4
        assert front(path)["tags"][0] == "selm-harness"  # type: ignore[index]


def test_scores_are_the_tables(built: tuple[Path, StudyData]) -> None:
    folder, data = built
    cards.write_cards(data, folder)
    table = TABLES["table_1"](data)
    points = {}
    for row in table.data:  # type: ignore[union-attr]
        seeds = (pair.split(":") for pair in row["points"].split(";"))
        points[row["checkpoint"], row["measure"]] = dict(seeds)
    card = folder / "models" / "objective.alpha=1,seed=1" / "iteration-2" / "README.md"
    results = front(card)["model-index"][0]["results"]  # type: ignore[index]
    shown = {(r["dataset"]["type"], m["name"]): m["value"] for r in results for m in r["metrics"]}
    for measure in measures.columns(data, "table_1"):
        assert shown[measure.benchmark, measure.with_unit] == pytest.approx(
            float(points["α = 1, iter 2", measure.key]["1"]), rel=1e-12
        )
    run = next(run for run in data.runs if run.name == "objective.alpha=1,seed=1")
    values = data.rows(run.name, 2, "alpaca_eval", "win_rate")["value"].to_numpy()
    line = next(
        line for line in card.read_text().splitlines() if line.startswith("| AlpacaEval WR")
    )
    assert f"| {values.std(ddof=1) / len(values) ** 0.5:.3f} |" in line
    assert "| 24 instructions | 24 of 24 | pocket-judge on 2 |" in line


def test_provenance_names_the_folder_its_hashes_and_every_ancestor_once(
    built: tuple[Path, StudyData],
) -> None:
    folder, data = built
    cards.write_cards(data, folder)
    run = data.runs[-1]
    text = (folder / "models" / run.name / "iteration-2" / "README.md").read_text()
    stage = data.stage(run, 2, "train")
    assert stage is not None
    assert f"objects/{stage.key[:2]}/{stage.key}/model" in text
    files = json.loads((stage.folder / "record.json").read_text())["files"]
    assert content_hash(files) in text
    assert files["model/model.safetensors"] in text
    history = text.split("## Provenance")[1]
    earlier = data.stage(run, 1, "train")
    assert earlier is not None and history.count(earlier.key) == 1
    assert (
        history.index(run.iterations[0]["base"])
        < history.index(earlier.key)
        < history.index(run.iterations[2]["rollout"])
    )
    assert "`selm run ablations/synthetic.yaml`" in history
    assert "torch 2.11" in history
    assert "host" not in history


def test_a_card_goes_when_its_checkpoint_does_and_nothing_else_goes(
    built: tuple[Path, StudyData],
) -> None:
    folder, data = built
    before = cards.write_cards(data, folder)
    other = folder / "models" / "mine" / "iteration-1" / "README.md"
    other.parent.mkdir(parents=True)
    other.write_text("my own notes")
    for run in data.runs:
        stage = data.stage(run, 1, "train")
        assert stage is not None
        (stage.folder / "dropped").touch()
    after = cards.write_cards(data, folder)
    assert len(after) == len(before) - 6
    assert sorted(
        path for path in (folder / "models").glob("*/iteration-*/README.md") if path != other
    ) == sorted(after)
    assert not list((folder / "models").glob("*/iteration-1/"))[
        1:
    ]  # only the folder that is not ours
    assert other.read_text() == "my own notes"


def test_written_again_every_byte_is_the_same(built: tuple[Path, StudyData]) -> None:
    folder, data = built
    first = {
        path: path.read_bytes()
        for path in [*cards.write_cards(data, folder), folder / "models" / "README.md"]
    }
    again = load_study(folder, folder.parent / "store")
    cards.write_cards(again, folder)
    assert {path: path.read_bytes() for path in first} == first


def test_without_weights_there_is_no_card(tmp_path: Path) -> None:
    folder, store = synthetic.build(
        tmp_path, synthetic.Synthetic(faults=False, answers=False, seeds=(0,), iterations=1)
    )
    assert cards.write_cards(load_study(folder, store), folder) == []
    assert not (folder / "models").exists()


@pytest.mark.parametrize(
    "evil",
    [
        *(text for text in synthetic.HOSTILE if "\ud800" not in text),
        "a: b\n---\n# heading",
        "{{ x }}",
        "../../escape",
    ],
)
def test_names_stay_names(evil: str, tmp_path: Path) -> None:
    spec = synthetic.Synthetic(
        axes={"arm": ["plain", evil]},
        seeds=(0,),
        iterations=1,
        faults=False,
        answers=False,
        weights=True,
    )
    folder, store = synthetic.build(tmp_path, spec)
    for path in cards.write_cards(load_study(folder, store), folder):
        assert path.resolve().is_relative_to((folder / "models").resolve())
        assert set(front(path)) == {"library_name", "pipeline_tag", "tags", "model-index"}
        body = path.read_text(encoding="utf-8").split("---\n", 2)[2]
        assert [line for line in body.splitlines() if line.startswith("# ")] == [
            body.splitlines()[1]
        ]
        assert "<script" not in body.replace("\\<script", "")
        assert not any(c in body for c in "\x1b\x07\u202e\u200f")


def test_folder_names_never_meet(tmp_path: Path) -> None:
    names = [
        "model.source=a/b,seed=0",
        "model.source=a_b,seed=0",
        "model.source=a:b,seed=0",
        "..",
        "x" * 300,
        "x" * 301,
    ]
    parts = [cards.path_part(name) for name in names]
    assert len(set(parts)) == len(names)
    assert all("/" not in part and not part.startswith(".") and len(part) < 140 for part in parts)
    assert cards.path_part("objective.alpha=0.3,seed=1") == "objective.alpha=0.3,seed=1"
