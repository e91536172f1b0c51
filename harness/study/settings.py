"""The recipe: every setting of one run but its seed. A recipe YAML is exactly this tree."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import create_model, model_validator

from harness.evaluate.registry import BENCHMARKS
from harness.rankers.pairs import PAIR_RULES, SELECTORS
from harness.rankers.registry import RANKERS
from harness.study import sections
from harness.study.sections import Different, JudgeSettings, Linear, Positive, Schedule, Section


class EvaluationSettings(Section):
    """What every checkpoint is scored on. Each benchmark that has settings adds its section."""

    benchmarks: Different = ["mt_bench", "alpaca_eval", "academic", "heldout"]
    """By which every checkpoint is scored."""
    heldout_samples: Positive = 4
    """Answers per held-out prompt at temperature 1 (besides the greedy one)."""
    heldout_max_new_tokens: Positive = 24
    """Tokens of an answer to a held-out prompt."""
    rank_alpaca_eval: bool = False
    """The ranker also compares AlpacaEval's answers with the baseline's, so that its disagreement
    with the judge is measured answer by answer.
    """
    iterations: Literal["all", "last"] = "all"
    """Whose checkpoints after training are scored: every iteration's, or the last alone."""

    def of(self, benchmark: str) -> Any:
        """A benchmark's section; None for one without settings."""
        return getattr(self, benchmark, None)

    @model_validator(mode="after")
    def _benchmarks_exist(self) -> Self:
        for name in self.benchmarks:
            if name not in BENCHMARKS:
                known = ", ".join(BENCHMARKS)
                raise ValueError(f"benchmarks names {name!r}; known: {known}")
        if self.rank_alpaca_eval and not {"alpaca_eval", "heldout"} <= set(self.benchmarks):
            raise ValueError("rank_alpaca_eval needs alpaca_eval and heldout among the benchmarks")
        return self


if TYPE_CHECKING:
    Evaluation = EvaluationSettings
else:
    own = {
        name: (benchmark.settings, benchmark.settings())
        for name, benchmark in BENCHMARKS.items()
        if benchmark.settings is not None
    }
    Evaluation = create_model("Evaluation", __base__=EvaluationSettings, **own)


class Recipe(Section):
    """Everything that decides one run, except its seed."""

    title: str = ""
    model: sections.ModelSettings = sections.ModelSettings()
    pocket: sections.PocketBaseSettings = sections.PocketBaseSettings()
    world: sections.WorldSettings = sections.WorldSettings()
    rules: sections.RulesSettings = sections.RulesSettings()
    data: sections.DataSettings = sections.DataSettings()
    loop: sections.LoopSettings = sections.LoopSettings()
    objective: sections.ObjectiveSettings = sections.ObjectiveSettings()
    exploration: sections.ExplorationSettings = sections.ExplorationSettings()
    ranker: sections.RankerSettings = sections.RankerSettings()
    ranker_training: sections.RankerTrainingSettings = sections.RankerTrainingSettings()
    pairs: sections.PairSettings = sections.PairSettings()
    counts: sections.CountSettings = sections.CountSettings()
    ensemble: sections.EnsembleSettings = sections.EnsembleSettings()
    training: sections.TrainingSettings = sections.TrainingSettings()
    judge: JudgeSettings = JudgeSettings()
    evaluation: Evaluation = Evaluation()
    diagnostics: sections.DiagnosticsSettings = sections.DiagnosticsSettings()
    runtime: sections.RuntimeSettings = sections.RuntimeSettings()

    @property
    def engines(self) -> set[str]:
        """What answers and reads academic tasks: transformers, vllm, or both."""
        scored = [self.evaluation.of(name) for name in self.evaluation.benchmarks]
        reading = {one.engine for one in scored if hasattr(one, "engine")}
        return {self.model.generation_backend, *reading}

    @property
    def judges(self) -> dict[str, JudgeSettings]:
        """Who judges what: the judged benchmarks, with the judge of each."""
        scored = {name: self.evaluation.of(name) for name in self.evaluation.benchmarks}
        judged = {name: one for name, one in scored.items() if hasattr(one, "judge")}
        return {name: one.judge or self.judge for name, one in judged.items()}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        wrong = next(self._wrong(), "")
        if wrong:
            raise ValueError(wrong)
        return self

    def _wrong(self) -> Iterator[str]:
        """What is wrong with sections that do not go together."""
        model, data, training, runtime = self.model, self.data, self.training, self.runtime
        if model.trust_remote_code and model.trust_remote_code != model.source:
            yield (
                f"model.trust_remote_code names {model.trust_remote_code!r}, but model.source is "
                f"{model.source!r}"
            )
        if data.source in ("files", "hub") and not data.path:
            yield f"data.path is empty; data.source {data.source!r} needs one"
        for key, name, known in (
            ("pairs.rule", self.pairs.rule, [*PAIR_RULES]),
            ("pairs.selector", self.pairs.selector, ["", *SELECTORS]),
            ("ranker.kind", self.ranker.kind, [*RANKERS]),
        ):
            if name not in known:
                yield f"{key} is {name!r}; known: {', '.join(filter(None, known))}"
        keeps = self.exploration.overlong_prompts == "keep"
        if keeps and training.truncation != "prompt_first":
            yield (
                "exploration.overlong_prompts keep gives training prompts over "
                "training.max_prompt_length: set training.truncation: prompt_first"
            )
        if training.max_prompt_length >= training.max_length:
            yield (
                f"training.max_prompt_length {training.max_prompt_length} leaves a response no "
                f"room within training.max_length {training.max_length}"
            )
        yield from self._wrong_schedules()
        yield from self._wrong_pairs()
        yield from self._not_carried()
        missing = RANKERS[self.ranker.kind].missing(self.ranker, data)
        if missing:
            yield f"ranker.kind is {self.ranker.kind}: {missing}"
        if runtime.sharding != "none" and runtime.processes < 2:
            yield (
                f"runtime.sharding {runtime.sharding!r} divides the model over processes; set "
                "runtime.processes to 2 or more"
            )
        if training.lora and training.lora.base != "whole" and runtime.sharding != "none":
            yield (
                "training.lora.base nf4 is not divided: set runtime.sharding: none, or base: whole"
            )
        if (model.source == "pocket") != (data.source == "pocket"):
            yield "model.source and data.source must both be 'pocket' or neither"

    @property
    def _schedules(self) -> dict[str, Schedule]:
        return {
            "objective.alpha": self.objective.alpha,
            "objective.beta": self.objective.beta,
            "training.learning_rate": self.training.learning_rate,
        }

    def _wrong_schedules(self) -> Iterator[str]:
        for key, schedule in self._schedules.items():
            if schedule == []:
                yield f"{key} is an empty list; give one value, or one for each iteration"
        rate = self.training.learning_rate
        ends = [rate.start, rate.end] if isinstance(rate, Linear) else rate
        lowest = min(ends) if isinstance(ends, list) else ends
        if lowest < 0:
            yield f"training.learning_rate is {lowest}: it would train away from the preferences"

    def unread(self) -> Iterator[str]:
        """Which values of schedules stand after the last iteration."""
        iterations = self.loop.iterations
        for key, schedule in self._schedules.items():
            # Without iterations nothing is trained (`given`), and no schedule is read.
            if isinstance(schedule, list) and 0 < iterations < len(schedule):
                yield (
                    f"{key} lists {len(schedule)} values and loop.iterations is {iterations}: only "
                    f"the first {iterations} are used"
                )

    def _wrong_pairs(self) -> Iterator[str]:
        """Why no pair can come of what the recipe asks for."""
        pairs, mode = self.pairs, self.loop.mode
        if pairs.rule == "offline":
            yield "pairs.rule offline is what loop.mode stepwise (or offline) does: set that"
        if mode in ("stepwise", "offline"):
            return
        if pairs.y > self.exploration.samples:
            yield f"pairs.y is {pairs.y}, but exploration.samples draws {self.exploration.samples}"
        drawn = pairs.y + pairs.current + pairs.first
        if drawn + 2 * pairs.offline < 2 or not drawn:
            yield (
                f"pairs names too few candidates (offline {pairs.offline}, y {pairs.y}, current "
                f"{pairs.current}, first {pairs.first}): two are needed, one of them drawn; "
                "loop.mode stepwise takes the labelled pair"
            )
        if pairs.selector and (pairs.offline or drawn < 2):
            yield (
                f"pairs.selector {pairs.selector} chooses two of the drawn answers: set "
                "pairs.offline: false and two or more of y, current and first"
            )
        if pairs.rule == "replace" and not (pairs.offline and pairs.y):
            yield "pairs.rule replace compares y with the labelled pair: set pairs.offline and y"

    def _not_carried(self) -> Iterator[str]:
        """Why one optimiser cannot be carried through the iterations."""
        mode, training = self.loop.mode, self.training
        if mode not in ("online", "offline"):
            return
        if not isinstance(training.learning_rate, float):
            yield (
                f"loop.mode {mode} has one schedule for the whole run (training.scheduler): give "
                "training.learning_rate as one number"
            )
        if training.lora or self.runtime.sharding != "none":
            yield (
                f"loop.mode {mode} carries the optimiser from iteration to iteration: adapters are "
                "merged in between and shards are not kept; leave training.lora and "
                "runtime.sharding out"
            )
        if mode == "offline" and self.loop.reference_policy != "fixed":
            yield "loop.mode offline has one reference: set loop.reference_policy: fixed"
        if mode == "offline" and self.loop.iterations > 1 and training.epochs > 1:
            yield (
                "loop.mode offline goes through all the data before it meets any again: set "
                "training.epochs: 1, and loop.iterations to as many times loop.portions as there "
                "shall be epochs"
            )
