"""Academic tasks by vLLM's engine: what transformers gives, item by item."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.evaluate import academic_run
from harness.model.generate import engine_of
from harness.model.policy import load_policy
from harness.records import HarnessError
from tests import tiny
from tests.evaluate import test_academic as academic
from tests.vllm.test_engine import RUNTIME, SHAPE

pytest.importorskip("vllm", reason="vLLM is not installed here: make test-vllm")
pytestmark = pytest.mark.slow

POSITIONS = 4096


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("policy")
    return tiny.checkpoint(made, max_position_embeddings=POSITIONS, initializer_range=0.3, **SHAPE)


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Any]:
    policy = load_policy(folder, weights=False)
    with engine_of(policy, academic.asked(engine="vllm"), RUNTIME) as found:
        yield found


@pytest.mark.parametrize("chat_template", [True, False])
def test_scores_are_those_of_transformers(
    folder: Path, engine: Any, tmp_path: Path, chat_template: bool
) -> None:
    """Every log-likelihood within 1e-4 nats, every answer as text, so every item's score."""
    changes = {"chat_template": chat_template, "max_new_tokens": 24}
    settings = academic.prepared(academic.public_files(tmp_path), tmp_path / "tasks", **changes)
    empty = load_policy(folder, weights=False)
    ours = academic_run.evaluate_policy(empty, tmp_path / "tasks", settings, engine=engine)
    theirs = academic_run.evaluate_policy(load_policy(folder), tmp_path / "tasks", settings)
    assert academic.same_samples(ours[1], theirs[1])
    for one, other in zip(ours[0], theirs[0], strict=True):
        assert one.value == pytest.approx(other.value, abs=1e-3)
    assert ours[3] == theirs[3]


def test_the_stage_reads_by_an_engine_of_its_own(folder: Path, tmp_path: Path) -> None:
    """Rows of the same scores as the stage's by transformers, whose policy is loaded whole."""
    files, found = academic.public_files(tmp_path), {}
    for engine in ("vllm", "transformers"):
        root = tmp_path / engine
        root.mkdir()
        task = academic.stage(files, folder, root, tasks=["arc_challenge"], engine=engine)
        outcome = academic_run.run(replace(task, runtime=RUNTIME))
        assert (outcome.rows, outcome.errors) == (4, 0)
        found[engine] = outcome.summary
    assert found["vllm"] == found["transformers"]


def test_whether_a_text_is_the_likeliest_is_told(folder: Path, engine: Any) -> None:
    """Of the greedy continuation, and of the same with another last token."""
    loop = academic.Loop(folder)
    prompt = list(range(65, 90))
    (drawn,) = loop.draw([academic.GenerationRequest(tuple(prompt), 6, 0.0)])
    other = [*drawn[0][:-1], (drawn[0][-1] + 1) % 256]
    rows = [(prompt + answer, len(answer)) for answer in (drawn[0], other)]
    rows.append((prompt + drawn[0] + prompt, 3))
    ours, theirs = engine.score(rows), loop.score(rows)
    assert [likeliest for _, likeliest in ours] == [True, False, False]
    assert [likeliest for _, likeliest in theirs] == [True, False, False]
    assert [value for value, _ in ours] == pytest.approx([value for value, _ in theirs], abs=1e-4)


def test_a_row_longer_than_the_engine_holds_is_an_error(engine: Any) -> None:
    with pytest.raises(HarnessError, match=f"holds {POSITIONS} tokens.*vllm_memory_share"):
        engine.score([([65] * POSITIONS, 1)])
    ((value, _),) = engine.score([([65] * (POSITIONS - 1), 1)])
    assert value < 0
