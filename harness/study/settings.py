"""The recipe: every setting of one run but its seed. A recipe YAML is exactly this tree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import create_model, model_validator

from harness.evaluate.registry import BENCHMARKS
from harness.rankers.pairs import PAIR_RULES, SELECTORS
from harness.rankers.registry import RANKERS
from harness.study import sections
from harness.study.sections import Different, JudgeSettings, Linear, Positive, Section


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

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if self.model.trust_remote_code and self.model.trust_remote_code != self.model.source:
            raise ValueError(
                f"model.trust_remote_code names {self.model.trust_remote_code!r}, but "
                f"model.source is {self.model.source!r}"
            )
        if self.data.source in ("files", "hub") and not self.data.path:
            raise ValueError(f"data.path is empty; data.source {self.data.source!r} needs one")
        named = (
            ("pairs.rule", self.pairs.rule, PAIR_RULES),
            ("pairs.selector", self.pairs.selector, SELECTORS if self.pairs.selector else [""]),
            ("ranker.kind", self.ranker.kind, RANKERS),
        )
        for key, name, known in named:
            if name not in known:
                raise ValueError(f"{key} is {name!r}; known: {', '.join(known)}")
        keeps = self.exploration.overlong_prompts == "keep"
        if keeps and self.training.truncation != "prompt_first":
            raise ValueError(
                "exploration.overlong_prompts keep gives training prompts over "
                "training.max_prompt_length: set training.truncation: prompt_first"
            )
        if self.training.max_prompt_length >= self.training.max_length:
            raise ValueError(
                f"training.max_prompt_length {self.training.max_prompt_length} leaves a response "
                f"no room within training.max_length {self.training.max_length}"
            )
        reason = self._no_schedule() or self._no_pair() or self._not_carried()
        if reason:
            raise ValueError(reason)
        missing = RANKERS[self.ranker.kind].missing(self.ranker, self.data)
        if missing:
            raise ValueError(f"ranker.kind is {self.ranker.kind}: {missing}")
        if self.runtime.sharding != "none" and self.runtime.processes < 2:
            raise ValueError(
                f"runtime.sharding {self.runtime.sharding!r} divides the model over processes; "
                "set runtime.processes to 2 or more"
            )
        quantised = self.training.lora and self.training.lora.base != "whole"
        if quantised and self.runtime.sharding != "none":
            raise ValueError(
                "training.lora.base nf4 is not divided: set runtime.sharding: none, or base: whole"
            )
        if (self.model.source == "pocket") != (self.data.source == "pocket"):
            raise ValueError("model.source and data.source must both be 'pocket' or neither")
        return self

    def _no_schedule(self) -> str:
        """What is wrong with a value over iterations; empty where nothing is."""
        schedules = {
            "objective.alpha": self.objective.alpha,
            "objective.beta": self.objective.beta,
            "training.learning_rate": self.training.learning_rate,
        }
        empty = [name for name, schedule in schedules.items() if schedule == []]
        if empty:
            return f"{empty[0]} is an empty list; give one value, or one for each iteration"
        rate = self.training.learning_rate
        ends = [rate.start, rate.end] if isinstance(rate, Linear) else rate
        lowest = min(ends) if isinstance(ends, list) else ends
        if lowest < 0:
            return f"training.learning_rate is {lowest}: it would train away from the preferences"
        return ""

    def _no_pair(self) -> str:
        """Why no pair can come of what the recipe asks for; empty where one can."""
        pairs, mode = self.pairs, self.loop.mode
        if pairs.rule == "offline":
            return "pairs.rule offline is what loop.mode stepwise (or offline) does: set that"
        if mode in ("stepwise", "offline"):
            return ""
        if pairs.y > self.exploration.samples:
            return f"pairs.y is {pairs.y}, but exploration.samples draws {self.exploration.samples}"
        drawn = pairs.y + pairs.current + pairs.first
        if drawn + 2 * pairs.offline < 2 or not drawn:
            return (
                f"pairs names too few candidates (offline {pairs.offline}, y {pairs.y}, current "
                f"{pairs.current}, first {pairs.first}): two are needed, one of them drawn; "
                "loop.mode stepwise takes the labelled pair"
            )
        if pairs.selector and (pairs.offline or drawn < 2):
            return (
                f"pairs.selector {pairs.selector} chooses two of the drawn answers: set "
                "pairs.offline: false and two or more of y, current and first"
            )
        if pairs.rule == "replace" and not (pairs.offline and pairs.y):
            return "pairs.rule replace compares y with the labelled pair: set pairs.offline and y"
        return ""

    def _not_carried(self) -> str:
        """Why one optimiser cannot be carried through the iterations; empty where it can."""
        mode, training = self.loop.mode, self.training
        if mode not in ("online", "offline"):
            return ""
        if not isinstance(training.learning_rate, float):
            return (
                f"loop.mode {mode} has one schedule for the whole run (training.scheduler): give "
                "training.learning_rate as one number"
            )
        if training.lora or self.runtime.sharding != "none":
            return (
                f"loop.mode {mode} carries the optimiser from iteration to iteration: adapters are "
                "merged in between and shards are not kept; leave training.lora and "
                "runtime.sharding out"
            )
        if mode == "offline" and self.loop.reference_policy != "fixed":
            return "loop.mode offline has one reference: set loop.reference_policy: fixed"
        if mode == "offline" and self.loop.iterations > 1 and training.epochs > 1:
            return (
                "loop.mode offline goes through all the data before it meets any again: set "
                "training.epochs: 1, and loop.iterations to as many times loop.portions as there "
                "shall be epochs"
            )
        return ""
