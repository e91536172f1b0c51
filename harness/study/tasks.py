"""What each stage is given: one frozen settings type a stage, filled by the plan.

A field has a default only where its section of the recipe has it, or where it came after stages had
been stored: such fields are left out of the key at their default (``LATER``), so that old keys
stay. Fields named ``<name>_fingerprint`` are filled by the plan with the content hash of the file
that ``<name>`` names; a key holds the hash, never the path.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from harness.study.sections import (
    TEMPLATE_DATE,
    Argument,
    Attention,
    Backend,
    CountSettings,
    DataSettings,
    DecodingSettings,
    DiagnosticsSamples,
    Dtype,
    EnsembleSettings,
    JudgeSettings,
    NonNegative,
    Placebo,
    PocketBaseSettings,
    Positive,
    RankerSettings,
    RankerTrainingSettings,
    RulesSettings,
    RuntimeSettings,
    Section,
    Share,
    TrainingSettings,
    Truncation,
    WorldSettings,
)


class Runtime(RuntimeSettings):
    """The recipe's runtime section as a stage sees it, with what an executor adds."""

    device: Literal["auto", "cpu", "cuda"] = "cpu"
    """Resolved before the stage runs: ``cpu`` or ``cuda``."""
    devices: str = ""
    """Accelerators lent to a stage that uses several at once, as CUDA_VISIBLE_DEVICES."""
    judge_dry_run: bool = False
    """Count what a judge would be asked, ask nothing."""
    pocket_judge_url: str = ""
    """A running pocket judge; empty: one is started for the stage."""


class Threads(Section):
    """Stages whose float32 sums follow torch's threads."""

    threads: Positive


class Computing(Threads):
    """Stages that run a model."""

    dtype: Dtype
    attention: Attention

    @property
    def scoring_attention(self) -> str:
        """Of a policy that scores or trains; packed models put their own form in its place."""
        return "eager" if self.attention == "eager" else "sdpa"

    def scoring(self, device: str) -> dict[str, Any]:
        """How `harness.model.policy.load_policy` loads a policy to score with it."""
        return {"dtype": self.dtype, "attention": self.scoring_attention, "device": device}


class Generating(Computing):
    """Stages that draw tokens."""

    later: ClassVar[Mapping[str, Any]] = {"backend": "transformers"}

    generation_batch: Positive
    backend: Backend = "transformers"

    @property
    def by_vllm(self) -> bool:
        """Whether vLLM's engine runs the model, and not transformers."""
        return self.backend == "vllm"

    def sampling(self, device: str) -> dict[str, Any]:
        """How a policy is loaded to sample from it: without weights where vLLM loads them."""
        loaded = {"dtype": self.dtype, "attention": self.attention, "device": device}
        return loaded | {"weights": not self.by_vllm}


class Nothing(Section):
    """Settings of a stage that its inputs alone decide."""


# -- what all runs share --------------------------------------------------------
class PocketDataTask(DataSettings):
    """``data.pocket``."""

    later: ClassVar[Mapping[str, Any]] = {**DataSettings.later, "world": WorldSettings()}

    rows: Positive
    best_style_share: float
    world: WorldSettings


class Fetched(Section):
    """Stages that may read from the hub. commit: what ``revision`` stood for when planned."""

    later: ClassVar[Mapping[str, Any]] = {"commit": ""}

    commit: str = ""


class FileDataTask(DataSettings, Fetched):
    """``data.files``. max_prompt_length: of held-out prompts."""

    later: ClassVar[Mapping[str, Any]] = {**DataSettings.later, **Fetched.later}

    max_prompt_length: Positive


class RulesDataTask(DataSettings):
    """``data.rules``. max_prompt_length: of every prompt."""

    rules: RulesSettings
    max_prompt_length: Positive


class PocketBaseTask(PocketBaseSettings, Threads):
    """``base.pocket``."""


class CheckpointTask(Fetched):
    """``base.checkpoint``. needs_template: False for rankers. adapter_base: what an adapter
    is merged into; adapter_commit: the hub's, of that.
    """

    later: ClassVar[Mapping[str, Any]] = {
        "template_date": TEMPLATE_DATE,
        "template_arguments": {},
        "adapter_base": "",
        "adapter_commit": "",
    }

    source: str
    revision: str
    dtype: Dtype
    attention: Attention
    trust_remote_code: str
    chat_template: str
    pickle_weights: str
    needs_template: bool
    template_date: str
    template_arguments: dict[str, Argument]
    adapter_base: str = ""
    adapter_commit: str = ""
    adapter_base_fingerprint: str = ""
    source_fingerprint: str = ""


class Limit(Section):
    limit: NonNegative


class PocketBenchmarksTask(Section):
    """``benchmarks.pocket``. limits: items of each benchmark that has files, 0 for all."""

    flattened: ClassVar[tuple[str, ...]] = ("limits",)

    seed: NonNegative
    limits: dict[str, Limit]


class FileBenchmarksTask(Section):
    """``benchmarks.files``. sections: ``evaluation.<name>`` of each benchmark that has files."""

    flattened: ClassVar[tuple[str, ...]] = ("sections",)

    benchmarks: list[str]
    sections: dict[str, Any]


class RankerTrainTask(RankerTrainingSettings, Threads):
    """``ranker.train``."""


# -- one iteration --------------------------------------------------------------
class PortionTask(Section):
    """Which prompts an iteration sees. portion: from 0; prompts: in all, 0 for every one."""

    later: ClassVar[Mapping[str, Any]] = {"order": "seed", "max_left_out": 0.5}

    seed: NonNegative
    order: str
    portion: NonNegative
    portions: Positive
    prompts: NonNegative
    prompts_per_iteration: NonNegative
    max_prompt_length: Positive
    max_left_out: Share


class LabelledTask(PortionTask):
    """``pairs.labelled``."""

    overlong_prompts: str


class RolloutTask(DecodingSettings, Generating, PortionTask):
    """``rollout``. first_sample: number of the first sample; those before it are drawn elsewhere,
    and every number has noise of its own.
    """

    later: ClassVar[Mapping[str, Any]] = {
        **Generating.later,
        **PortionTask.later,
        "first_sample": 0,
    }

    iteration: Positive
    first_sample: NonNegative


class RankerTask(RankerSettings):
    """A ranker as a stage is given it."""

    later: ClassVar[Mapping[str, Any]] = {
        **RankerSettings.later,
        "version": 1,
        "world": WorldSettings(),
    }

    version: Positive = 1
    world: WorldSettings
    model_fingerprint: str = ""


class RankTask(RankerTask, Threads):
    """``rank``. judge: only where the ranker is one. offline, y: whether the labelled pair and how
    many of y's samples are candidates (None: its only one); what other rollouts drew is.
    """

    later: ClassVar[Mapping[str, Any]] = {
        **RankerTask.later,
        "truncated_y": "ended",
        "offline": True,
        "y": None,
    }

    truncated_y: Literal["as_drawn", "ended"]
    rule: str
    offline: bool
    y: NonNegative | None
    judge: JudgeSettings | None
    seed: NonNegative
    iteration: Positive
    placebo: Literal["none", "other_prompt"]


class Lengths(Section):
    """How training rows are cut."""

    later: ClassVar[Mapping[str, Any]] = {"truncation": "responses"}

    max_length: Positive
    max_prompt_length: Positive
    truncation: Truncation

    @property
    def limits(self) -> dict[str, Any]:
        """As `harness.train.batching.encode_pair` takes them."""
        return {name: getattr(self, name) for name in Lengths.model_fields}


class SelectTask(Lengths, Computing):
    """``select``. y: how many of y's samples are candidates."""

    selector: str
    entropy_share: float
    margin_share: float
    ensemble: EnsembleSettings | None
    y: NonNegative
    seed: NonNegative
    iteration: Positive


class AverageTask(Computing):
    """``average``. decay: share of the former average."""

    decay: float


class ReferenceTask(Lengths, Computing):
    """``reference``. mixed: in mixed precision over float32 weights, as training the whole model in
    bfloat16 computes the policy's. base: of the adapters that are trained against it.
    """

    later: ClassVar[Mapping[str, Any]] = {**Lengths.later, "mixed": False, "base": "whole"}

    roles: list[str]
    mixed: bool
    base: Literal["whole", "nf4"]


class CountTask(Lengths, Computing):
    """``count``."""

    counts: CountSettings
    seed: NonNegative
    iteration: Positive


class ObjectiveTask(Section):
    """The objective of one iteration, resolved (`harness.train.objectives.resolve`).

    In keys it is what it was when Algorithm 1 was a parameter of selm: ``KEYED`` with that
    parameter at its value.
    """

    name: str
    alpha: float
    beta: float
    placebo: Placebo
    params: dict[str, float]
    given: dict[str, float]
    c: float
    kappa: float
    roles: tuple[str, ...]
    needs_reference: bool

    def keyed(self) -> dict[str, Any]:
        """What enters a key."""
        return {
            "name": self.name,
            "alpha": self.alpha,
            "beta": self.beta,
            "convention": "alpha_beta",
            "placebo": self.placebo,
            "params": self.given,
        }


class MeasuredObjective(ObjectiveTask):
    """The same as diagnostics are given it. Results stored before ``grad_cosine`` had the sign of
    the ``negative`` placebo are of another key.
    """

    def keyed(self) -> dict[str, Any]:
        known = super().keyed()
        return known | {"cosine": "signed"} if self.placebo == "negative" else known


class OptimiserTask(TrainingSettings, Lengths):
    """The recipe's training section at one iteration: its learning rate is a number."""

    later: ClassVar[Mapping[str, Any]] = Lengths.later
    unkeyed: ClassVar[tuple[str, ...]] = ("threads",)

    learning_rate: float


class PartTask(Section):
    """Which part of a run whose optimiser and schedule are carried through: from 0, of so many."""

    part: NonNegative
    parts: Positive


class TrainTask(Computing):
    """``train``. carried: None where optimiser and schedule are the iteration's own."""

    later: ClassVar[Mapping[str, Any]] = {"carried": None, "max_left_out": 0.5}

    carried: PartTask | None
    max_left_out: Share
    objective: ObjectiveTask
    training: OptimiserTask
    seed: NonNegative
    iteration: NonNegative


# -- scores ---------------------------------------------------------------------
class Answers(Section):
    """How a benchmark's answers are drawn; without a temperature the benchmark has its own."""

    later: ClassVar[Mapping[str, Any]] = {"temperature": None}

    max_new_tokens: Positive
    temperature: float | None = Field(default=None, ge=0)


class AnswerTask(Generating):
    """``answer``. sets: benchmarks that are answered; answers: how, but for held-out prompts."""

    flattened: ClassVar[tuple[str, ...]] = ("answers",)

    seed: NonNegative
    iteration: NonNegative
    sets: list[str]
    answers: dict[str, Answers]
    heldout_samples: Positive
    heldout_max_new_tokens: Positive
    max_prompt_length: Positive


class GivenFile(Section):
    """Answers or verdicts that exist. model: its name where the file holds more than one."""

    path: str
    model: str
    path_fingerprint: str = ""


class GivenAnswersTask(Section):
    """``answers.given``. files: by benchmark."""

    flattened: ClassVar[tuple[str, ...]] = ("files",)

    files: dict[str, GivenFile]


class GivenVerdictsTask(GivenFile):
    """``verdicts.given``. own: settings of the benchmark's section that decide what they count."""

    later: ClassVar[Mapping[str, Any]] = {"own": {}}

    benchmark: str
    own: dict[str, Any] = {}


class DiagnosticsTask(DiagnosticsSamples, Lengths, Generating):
    later: ClassVar[Mapping[str, Any]] = {**Generating.later, **Lengths.later}

    seed: NonNegative
    iteration: NonNegative
    objective: MeasuredObjective
    ranker: RankerTask
    pocket: bool
