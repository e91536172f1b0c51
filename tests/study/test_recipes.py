"""The recipes of real models resolve to the paper's settings, field by field; the small one fits
the card it names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.engine.runs import build_plan
from harness.evaluate.academic import PAPER_TASKS
from harness.model.chat import encode_prompt, encode_response, preflight
from harness.study.settings import Recipe
from harness.study.study import compose
from tests import tiny

RECIPES = Path(__file__).parents[2] / "ablations" / "recipes"
PAPER = ("zephyr-7b", "llama-3-8b", "phi-3-mini")

# Sources: [P] Zhang et al., arXiv 2405.19332 v3, section 6 and its appendix; [C] the released
# code's recipes; [M] the model cards.
COMMON: dict[str, Any] = {
    "data.source": "hub",
    "data.path": "HuggingFaceH4/ultrafeedback_binarized",  # [P]
    "data.train_split": "train_prefs",  # [P] 61,135 rows
    "data.heldout_split": "test_prefs",  # [P]
    "data.heldout": 2000,  # [P] all of test_prefs
    "data.prompts": 0,  # every one
    "loop.iterations": 3,  # [P] iterations of SELM
    "loop.prompts_per_iteration": 0,  # the whole portion
    "loop.reference_policy": "previous",  # [P] Algorithm 1
    "loop.order": "data",  # [C] ranges of rows
    "exploration.overlong_prompts": "keep",  # [C] no prompt is dropped for its length
    "training.truncation": "prompt_first",  # [C] TRL's rule of then
    "pairs.truncated_y": "as_drawn",
    "evaluation.academic.chat_template": False,  # the paper's columns are the leaderboard's
    "loop.mode": "iterative",
    "objective.beta": 0.01,  # [P]
    "objective.name": "selm",  # [P] equation 4.2, [C]
    "objective.placebo": "none",
    "exploration.decoding": "greedy",  # [C] temperature 0
    "exploration.policy": "current",  # [P] Algorithm 1: y from the iteration-start model
    "exploration.samples": 1,  # [P]
    "exploration.max_new_tokens": 1024,  # [C]
    "ranker.kind": "pairrm",  # [P] 0.4 B
    "ranker.model": "llm-blender/PairRM-hf",  # the published weights in transformers' form
    "pairs.rule": "best_worst",  # [P] of {y, y_w, y_l}
    "training.epochs": 1,  # [P] per iteration
    "training.optimizer": "adamw_torch",  # [P]
    "training.scheduler": "cosine",  # [P]
    "training.warmup_ratio": 0.1,  # [P]
    "training.max_length": 1024,  # [C]
    "training.max_prompt_length": 512,  # [C]
    "training.gradient_checkpointing": True,  # [C]
    "training.lora": None,  # full fine-tuning
    "pairs.accumulate": False,
    "pairs.offline": True,
    "pairs.y": 1,
    "pairs.current": 0,
    "pairs.first": 0,
    "model.dtype": "bfloat16",  # [C]
}
OWN: dict[str, dict[str, Any]] = {
    "zephyr-7b": {
        "model.source": "HuggingFaceH4/mistral-7b-sft-beta",  # [P]
        "loop.warmup_dpo": True,  # [P] one ordinary DPO iteration on the first quarter
        "loop.portions": 4,  # [P] 61135 // 4
        "objective.alpha": 1e-3,  # [P]
        "training.batch_size": 256,  # [C]
        "training.learning_rate": [5e-7, 5e-7, 1e-7],  # [P]; the warm-up's is 5e-7 too
    },
    "llama-3-8b": {
        "model.source": "meta-llama/Meta-Llama-3-8B-Instruct",  # [P]
        "loop.warmup_dpo": False,
        "loop.portions": 3,  # [P] 61135 // 3
        "objective.alpha": 1e-4,  # [C]
        "training.batch_size": 128,  # [C]
        "training.learning_rate": [5e-7, 3e-7, 1e-7],  # [P]
    },
    "phi-3-mini": {
        "model.source": "microsoft/Phi-3-mini-4k-instruct",  # [M]
        "loop.warmup_dpo": False,
        "loop.portions": 3,
        "objective.alpha": 1e-3,  # [C]
        "training.batch_size": 128,  # [M]
        "training.learning_rate": [5e-7, 3e-7, 1e-7],  # [M]
    },
}
PORTION = {"zephyr-7b": 15_283, "llama-3-8b": 20_378, "phi-3-mini": 20_378}


def recipe(name: str) -> Recipe:
    path = RECIPES / f"{name}.yaml"
    return compose(path, name, str(path), {}, {"recipe": {}}, [42]).base


def at(found: Any, key: str) -> Any:
    for part in key.split("."):
        found = getattr(found, part)
    return found


@pytest.mark.parametrize("name", PAPER)
def test_settings_are_the_papers_field_by_field(name: str) -> None:
    resolved = recipe(name)
    wanted = COMMON | OWN[name]
    assert {key: at(resolved, key) for key in wanted} == wanted
    assert 61_135 // resolved.loop.portions == PORTION[name]


Y = "y greedy 1024"
BY_HAND: dict[str, list[tuple[Any, ...]]] = {
    # By iteration: policy and reference (the iteration before), prompts from and to, drawn, pair,
    # objective, c, rate, global batch. From the authors' scripts and the paper's section 6.
    "zephyr-7b": [
        (0, -1, 0, 15_283, "-", "labelled", "dpo", 0.0, 5e-7, 256),
        (1, 0, 15_283, 30_566, Y, "pairrm best_worst", "selm", 1e-5, 5e-7, 256),
        (2, 1, 30_566, 45_849, Y, "pairrm best_worst", "selm", 1e-5, 5e-7, 256),
        (3, 2, 45_849, 61_132, Y, "pairrm best_worst", "selm", 1e-5, 1e-7, 256),
    ],
    "llama-3-8b": [
        (1, 0, 0, 20_378, Y, "pairrm best_worst", "selm", 1e-6, 5e-7, 128),
        (2, 1, 20_378, 40_756, Y, "pairrm best_worst", "selm", 1e-6, 3e-7, 128),
        (3, 2, 40_756, 61_134, Y, "pairrm best_worst", "selm", 1e-6, 1e-7, 128),
    ],
    "phi-3-mini": [
        (1, 0, 0, 20_378, Y, "pairrm best_worst", "selm", 1e-5, 5e-7, 128),
        (2, 1, 20_378, 40_756, Y, "pairrm best_worst", "selm", 1e-5, 3e-7, 128),
        (3, 2, 40_756, 61_134, Y, "pairrm best_worst", "selm", 1e-5, 1e-7, 128),
    ],
}


def plan_rows(name: str) -> list[tuple[Any, ...]]:
    """What the plan of a recipe does, one row an iteration, as ``BY_HAND`` has it."""
    path = RECIPES / f"{name}.yaml"
    plan = build_plan(compose(path, name, str(path), {}, {"recipe": {}}, [42]))
    iterations = plan.runs[0].iterations
    policies = {stages.get("train", stages.get("base")): i for i, stages in iterations.items()}
    rows = []
    for iteration, stages in iterations.items():
        if "train" not in stages:
            continue
        train, pairs = plan.nodes[stages["train"]], plan.nodes[stages["pairs"]]
        portion, drawn, how = pairs, "-", "labelled"
        if "rollout" in stages:
            portion = plan.nodes[stages["rollout"]]
            asked: Any = portion.settings
            drawn = f"y {asked.decoding} {asked.max_new_tokens}"
            how = f"{pairs.settings.kind} {pairs.settings.rule}"  # type: ignore[attr-defined]
            assert policies[portion.inputs["policy"]] == iteration - 1
            assert asked.samples == 1
        assert train.inputs["policy"] == train.inputs["reference_policy"]
        settings: Any = train.settings
        size = 61_135 // portion.settings.portions  # type: ignore[attr-defined]
        first = portion.settings.portion * size  # type: ignore[attr-defined]
        objective, training = settings.objective, settings.training
        before = policies[train.inputs["policy"]]
        coefficient, rate = round(objective.c, 12), training.learning_rate
        row = (iteration, before, first, first + size, drawn, how)
        rows.append((*row, objective.name, coefficient, rate, training.batch_size))
    return rows


@pytest.mark.parametrize("name", PAPER)
def test_the_plan_is_the_originals_iteration_by_iteration(name: str) -> None:
    rows = plan_rows(name)
    print("\n".join(map(str, rows)))
    assert rows == BY_HAND[name]


@pytest.mark.parametrize("name", PAPER)
def test_academic_shots_are_the_papers(name: str) -> None:
    shots = recipe(name).evaluation.academic.shots
    assert {task: shots.get(task, row.shots) for task, row in PAPER_TASKS.items()} == {
        task: row.shots for task, row in PAPER_TASKS.items()
    }


@pytest.mark.parametrize(
    "name", [path.stem for path in sorted(RECIPES.glob("*.yaml")) if path.stem != "own_data"]
)
def test_every_recipe_gives_a_plan(name: str) -> None:
    path = RECIPES / f"{name}.yaml"
    plan = build_plan(compose(path, name, str(path), {}, {"recipe": {}}, [42]))
    trained = [node for node in plan.nodes.values() if node.stage == "train"]
    base = recipe(name).loop
    assert len(trained) == base.iterations + base.warmup_dpo


def test_the_template_of_the_small_recipe_passes_the_token_check_and_ends_turns() -> None:
    resolved = recipe("small-1b-lora")
    template = (RECIPES.parent.parent / resolved.model.chat_template).read_text(encoding="utf-8")
    tokenizer = tiny.tokenizer("chatml", template=template)
    preflight(tokenizer)
    messages = [{"role": "user", "content": "Hello"}]
    text = tokenizer.decode(encode_prompt(tokenizer, messages))
    assert (
        text == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    assert tokenizer.decode(encode_response(tokenizer, messages, "Hi.")) == "Hi.<|im_end|>"
