"""The sections of a recipe: every setting with its type, its default, its unit and what is allowed.

A default stands here and nowhere else. Types are strict: text where a number is wanted is an error,
unknown keys are errors. What only changes speed lives under ``runtime`` and never enters a key.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import date, timedelta
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from harness.study import optimizers

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]


def _different(names: list[str]) -> list[str]:
    twice = next((name for name in names if names.count(name) > 1), "")
    if twice:
        raise ValueError(f"{twice!r} stands twice and would count twice")
    return names


Different = Annotated[list[str], AfterValidator(_different)]
"""Names, none of them twice."""
Share = Annotated[float, Field(ge=0.0, le=1.0)]


Dtype = Literal["float32", "bfloat16"]
ATTENTIONS = ("sdpa", "eager", "flash_attention_2", "flex_attention")
KERNELS = "kernels-community/"
"""Owner of the hub's attention kernels: compiled code, which transformers loads from nobody else.
"""
Backend = Literal["transformers", "vllm"]
Placebo = Literal["none", "negative", "other_prompt"]
Truncation = Literal["responses", "prompt_first"]


def _an_attention(name: str) -> str:
    kernel = re.fullmatch(rf"{KERNELS}[\w.-]+(@[\w.-]+)?(:\w+)?", name)
    if name not in ATTENTIONS and not kernel:
        raise ValueError(f"allowed: {', '.join(ATTENTIONS)}, or a kernel {KERNELS}NAME[@REVISION]")
    return name


Attention = Annotated[str, AfterValidator(_an_attention)]

TEMPLATE_DATE = "2024-07-26"
"""The day that Llama-3.2's authors name for where there is no clock."""


TOLD_OTHERWISE = {
    *("messages", "add_generation_prompt", "tools", "documents", "date_string", "strftime_now"),
    *("bos_token", "eos_token", "pad_token", "unk_token"),
}
"""Variables of chat templates that conversations, tokenizer and ``template_date`` decide."""
SWITCHES = ("on", "off", "yes", "no", "true", "false")
Argument = bool | int | float | str
"""A value that a chat template is given."""


class Section(BaseModel):
    """Strict, frozen, no unknown keys; an integer stands for a float, nothing else is converted."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    later: ClassVar[Mapping[str, Any]] = {}
    """Fields added after stages were stored, with the value at which a key leaves them out."""

    flattened: ClassVar[tuple[str, ...]] = ()
    """Mappings whose entries stand in a key as if they were fields."""

    unkeyed: ClassVar[tuple[str, ...]] = ()
    """Fields on which no number depends: they are in no key."""


def keys_of(section: Any, above: str = "") -> Iterator[str]:
    """Every key of a section and of those in it, dotted."""
    for name, field in section.model_fields.items():
        yield above + name
        for one in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if hasattr(one, "model_fields"):
                yield from keys_of(one, f"{above}{name}.")


def a_day(value: str) -> str:
    """``value`` where it is a date, YYYY-MM-DD. Raises ValueError."""
    date.fromisoformat(value)
    return value


Day = Annotated[str, AfterValidator(a_day)]


class Linear(Section):
    """Linear interpolation from ``start`` (first iteration) to ``end`` (last iteration)."""

    start: float
    """Value in iteration 1."""
    end: float
    """Value in the last iteration."""


Schedule = float | list[float] | Linear
"""A value over iterations: one number, one number per iteration, or {start, end}."""


class ModelSettings(Section):
    source: str = "pocket"
    """``pocket``, a checkpoint folder, a GGUF file (extra ``gguf``), or a hub id."""
    revision: str = ""
    """Branch, tag or commit of a hub id; its commit is what is in the key."""
    dtype: Dtype = "float32"
    """In which models compute and are stored."""
    attention: Attention = "sdpa"
    """How transformers' loop samples and lm-eval reads: sdpa, eager, flash_attention_2,
    flex_attention, or a kernel of the hub by name (``kernels-community/flash-attn2``, with the
    package kernels); vLLM has its own. Scoring and training
    attend to packed batches in a form of their own, on a GPU by FlashAttention from torch; models
    that cannot be packed, by eager where that is named, else by sdpa.
    """
    generation_batch: Positive = 128
    """Rows generated at once. Equal batches repeat exactly, so this is part of the key of every
    stage that generates.
    """
    generation_backend: Backend = "transformers"
    """What draws every sample and answer. Another backend draws other samples, so this is in the
    key of every stage that generates.
    """
    trust_remote_code: str = ""
    """Name of the repository whose code may run; must equal ``source``. Empty: none."""
    chat_template: str = ""
    """File with a Jinja chat template in place of the checkpoint's, or the name of one of several
    that it brings.
    """
    template_date: Day = TEMPLATE_DATE
    """The day that the chat template is told (Llama-3.2's and Granite's ask for it); no clock is
    read.
    """
    template_arguments: dict[str, Argument] = {}
    """Variables of the chat template's own, in training, sampling and evaluation alike:
    ``{enable_thinking: false}`` (Qwen3 thinks unless told).
    """
    pickle_weights: str = ""
    """Name of the one checkpoint whose pickle weights may be loaded; must equal its source. Empty:
    safetensors only.
    """

    @field_validator("template_arguments")
    @classmethod
    def _are_its_own(cls, value: dict[str, Argument]) -> dict[str, Argument]:
        for name in value:
            if not re.fullmatch(r"[A-Za-z_]\w*", name) or name in TOLD_OTHERWISE:
                raise ValueError(f"{name!r} is no variable of a chat template's own")
            said = value[name]
            if str(said).lower() in SWITCHES and isinstance(said, str):
                raise ValueError(f"{name} is the text {said!r}; write true or false")
        return value


class PocketBaseSettings(Section):
    """The pocket world's supervised base (ignored for other models)."""

    steps: Positive = 1500
    """Steps of supervised training."""
    batch_size: Positive = 32
    """Rows a step."""
    learning_rate: float = 3e-3
    """Of AdamW, at its highest."""
    hidden_size: Positive = 128
    """Width of the Llama that is trained."""
    layers: Positive = 2
    """Its layers."""
    heads: Positive = 8
    """Its attention heads."""
    rows: Positive = 20_000
    """Rows of supervised data."""
    best_style_share: Share = 0.02
    """Share of their answers in the style that is worth most ("checked")."""
    seed: NonNegative = 0
    """Of weights and data."""


class WorldSettings(Section):
    """What is true of the pocket world: the two knobs that decide whether exploration can matter
    (ignored for other data).
    """

    offline_best_style_share: Share | None = None
    """Share of the best style ("checked") among the offline answers; empty: as in the base's
    (``pocket.best_style_share``). 0: only exploration finds it.
    """
    best_style_worth: Share = 1.0
    """Reward of a right answer in that style. 1: optimism about what was never seen pays; 0: it
    costs, and the best reward is then another style's 0.70.
    """

    @property
    def unseen(self) -> bool:
        """Whether no offline answer is in the best style."""
        return self.offline_best_style_share == 0


class RulesSettings(Section):
    """What is true of questions with constraints that can be checked (ignored for other data)."""

    most: Positive = 3
    """Largest number of constraints in a prompt; the smallest is 1."""
    kinds: list[str] = []
    """Kinds of constraints by IFEval's ids (`harness.rules.constraints`); empty: every one."""
    unmet_offline: list[str] = []
    """Kinds that no offline answer meets: only exploration finds answers that do."""


class DataSettings(Section):
    later: ClassVar[Mapping[str, Any]] = {
        "columns": {},
        "max_left_out": 0.5,
        "system_turns": "join",
    }

    source: Literal["pocket", "files", "hub", "rules"] = "pocket"
    """Prompts and labelled pairs: the pocket world's, a file's, the hub's, or questions with
    constraints that can be checked.
    """
    path: str = ""
    """JSON (one object a line or one list, .gz too) or Parquet in a form that `harness.data.rows`
    reads (``files``), the dataset's hub id (``hub``), or rows of question and answer (``rules``;
    empty: ours).
    """
    revision: str = ""
    """Branch, tag or commit of the dataset on the hub."""
    train_split: str = "train_prefs"
    """Split that is trained on (``hub``)."""
    heldout_split: str = "test_prefs"
    """Split that is held out (``hub``)."""
    heldout_path: str = ""
    """Held-out rows; empty: the last ``heldout`` rows of ``path``."""
    prompts: NonNegative = 0
    """Training prompts used in all; 0 means every one."""
    heldout: Positive = 64
    """Held-out prompts."""
    ood: NonNegative = 0
    """Out-of-distribution prompts (pocket world: held-out compositions; ``rules``: constraints of
    ``rules.unmet_offline`` alone).
    """
    ranker_pairs: NonNegative = 0
    """Pairs set aside to train a reward model on (not in the pocket world): the policy never trains
    on them.
    """
    seed: NonNegative = 0
    """What is drawn; the order in which a run sees it follows the run's own seed."""
    columns: dict[str, str] = {}
    """The data's own names of columns, by ours: ``{prompt: question, chosen: answer_a}``."""
    max_left_out: Share = 0.5
    """Largest share of the rows that may be left out, for whatever reason; above it is an error."""
    system_turns: Literal["join", "refuse"] = "join"
    """System turns under a chat template that has no place for them (Gemma's, Phi-3-mini's): their
    text stands before the first user's, or the rows are an error.
    """


class ObjectiveSettings(Section):
    name: str = "selm"
    """Which loss (`harness.train.objectives`)."""
    alpha: Schedule = 0.0
    """Coefficient of the exploration term; 0 is DPO. What multiplies log π(y) follows from it and
    the objective (`harness.train.objectives`).
    """
    beta: Schedule = 0.1
    """β of the KL to the reference."""
    placebo: Placebo = "none"
    """A control in place of the exploration term: its sign turned, or y of another prompt."""
    params: dict[str, float] = {}
    """Further parameters of the objective by name (gamma, epsilon, lambda, …); unknown names are
    refused by the plan.
    """


class DecodingSettings(Section):
    """How answers of a rollout are drawn."""

    decoding: Literal["greedy", "sample"] = "sample"
    """The likeliest token each time, or drawn."""
    samples: Positive = 1
    """Answers a prompt. Of y: the exploration term reads the mean over them."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Of what is drawn."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Least probability mass that is drawn from."""
    max_new_tokens: Positive = 24
    """Tokens of an answer; one that is longer is cut and counted."""
    overlong_prompts: Literal["drop", "truncate", "refuse", "keep"] = "drop"
    """Prompts over training.max_prompt_length tokens: left out and counted, cut at their beginning,
    an error, or kept whole (training then cuts them: ``training.truncation: prompt_first``).
    """


class ExplorationSettings(DecodingSettings):
    """Who writes y, the response that the exploration term reads."""

    policy: Literal["current", "reference", "first", "checkpoint"] = "current"
    """``current``: the model at the start of the iteration. ``reference``: the iteration's π_ref.
    ``first``: the model that the method starts from. ``checkpoint``: the one named there.
    """
    checkpoint: str = ""
    """With policy ``checkpoint``: a folder or hub id."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.policy == "checkpoint") != bool(self.checkpoint):
            raise ValueError(
                f"policy is {self.policy!r} and checkpoint {self.checkpoint!r}: set both "
                "policy: checkpoint and the checkpoint, or neither"
            )
        if self.decoding == "greedy" and self.samples > 1:
            raise ValueError(
                f"{self.samples} greedy answers of one prompt are the same answer; set samples: 1 "
                "or decoding: sample"
            )
        return self


class RankerSettings(Section):
    later: ClassVar[Mapping[str, Any]] = {"off_support_error": 0.0}

    kind: str = "oracle"
    """Which ranker (`harness.rankers`)."""
    model: str = ""
    """Checkpoint of the ranker. Empty with kind reward_model: one is trained in place on
    ``data.ranker_pairs`` held-aside pairs.
    """
    revision: str = ""
    """Branch, tag or commit of a hub id."""
    max_length: Positive = 1024
    """Tokens of prompt and answer that its model reads; a longer prompt loses its beginning."""
    off_support_error: float = 0.0
    """With kind misgeneralising: what is added to the reward of an answer that nothing in the
    offline data is like.
    """


class RankerTrainingSettings(Section):
    """How a reward model is trained in place (``ranker.kind: reward_model`` without a model)."""

    learning_rate: float = 1e-5
    """At its highest."""
    batch_size: Positive = 16
    """Pairs a step."""
    epochs: Positive = 1
    """Passes over the pairs."""
    max_length: Positive = 1024
    """Tokens of prompt and answer; longer pairs are left out and counted."""
    seed: NonNegative = 0
    """Of the head and the order of the pairs."""


class PairSettings(Section):
    """What a pair is chosen from, and how. Modes ``offline`` and ``stepwise`` take the labelled
    pair instead.
    """

    truncated_y: Literal["as_drawn", "ended"] = "as_drawn"
    """A sample that ran into ``max_new_tokens``: the tokens that were drawn, which have no end of
    turn, or its text encoded anew with one.
    """

    rule: str = "best_worst"
    """How the ranker's scores of the candidates become a pair (`harness.rankers.pairs`)."""
    offline: bool = True
    """The labelled pair is among the candidates."""
    y: NonNegative = 1
    """How many of y's samples are."""
    current: NonNegative = 0
    """Further samples of the model at the start of the iteration."""
    first: NonNegative = 0
    """Further samples of the model that the method starts from."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Of the further samples; their length is limited as y's is."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Of the further samples."""
    selector: str = ""
    """Which prompts and which two of their drawn answers the ranker is asked about
    (`harness.rankers.pairs`); empty: all.
    """
    entropy_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """With selector ``apl``: share of the prompts that is kept by predictive entropy."""
    margin_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """With selector ``apl``: shares of the prompts that are kept by predictive entropy, and of
    these by the implicit reward's margin.
    """
    accumulate: bool = False
    """Train on the pairs of every iteration of the method so far instead of this one's."""


class ProbeSettings(Section):
    """How small networks on frozen states are fitted."""

    learning_rate: float = 1e-4
    """Of Adam."""
    epochs: Positive = 1
    """Passes over the states."""
    batch_size: Positive = 8
    """States a step."""


class CountSettings(ProbeSettings):
    """COPO's coin-flip head, fitted anew in every iteration (defaults: the released code's)."""


class EnsembleSettings(ProbeSettings):
    """The reward heads of ``pairs.selector: thompson``, fitted in every iteration to the pairs of
    all before. heads, hidden, learning_rate, batch_size, prior_weight: as released.
    """

    heads: Annotated[int, Field(ge=2)] = 20
    """Reward heads, of which one is drawn for each prompt."""
    hidden: Positive = 128
    """Width of a head's hidden layers."""
    learning_rate: float = 1e-3
    """Of Adam."""
    epochs: Positive = 10
    """Passes over the pairs."""
    batch_size: Positive = 128
    """Pairs a step."""
    prior_weight: Annotated[float, Field(ge=0)] = 0.5
    """λ of the squared distance from a head's first weights, against the sum of the pairs' losses.
    """


class LoraSettings(Section):
    later: ClassVar[Mapping[str, Any]] = {"base": "whole"}

    base: Literal["whole", "nf4"] = "whole"
    """The frozen weights: as they are, or in 4 bits (NF4 with double quantisation)."""
    r: Positive = 16
    """Rank."""
    alpha: Positive = 32
    """Scale of the update, times 1/r."""
    dropout: Share = 0.0
    """On an adapter's input."""
    target_modules: list[str] | str = "all-linear"
    """Names of the linear layers that get one, or all."""


class TrainingSettings(Section):
    learning_rate: Schedule = 3e-5
    """At its highest."""
    batch_size: Positive = 64
    """Global batch in rows; independent of device count and micro-batch."""
    epochs: Positive = 1
    """Passes over an iteration's pairs."""
    warmup_ratio: Share = 0.1
    """Share of an iteration's steps over which the rate rises."""
    scheduler: Literal["cosine", "linear", "constant"] = "cosine"
    """How the rate falls after that."""
    optimizer: Annotated[str, AfterValidator(optimizers.known)] = "adamw_torch"
    """Any of transformers' Trainer that needs no further settings (its ``optim``): adamw_torch,
    sgd, adafactor, adamw_8bit, …
    """
    weight_decay: float = 0.0
    """Of the optimiser, not on biases and norms."""
    max_grad_norm: float = 1.0
    """Largest norm of a step's gradient; 0: as it is."""
    max_length: Positive = 256
    """Tokens of a prompt and a response together."""
    max_prompt_length: Positive = 128
    """Tokens of a prompt (``exploration.overlong_prompts``)."""
    truncation: Truncation = "responses"
    """Rows over ``max_length`` tokens. ``responses``: each response loses its end. ``prompt_first``
    (the rule of TRL's DPOTrainer when SELM was released): where the prompt and the longest response
    are over it, the prompt loses its beginning down to ``max_prompt_length``; where they still are,
    all responses are cut to ``max_length - max_prompt_length``.
    """
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, the same numbers."""
    lora: LoraSettings | None = None
    """Adapters in place of all weights. ``base: nf4`` freezes those in 4 bits (QLoRA; extra
    ``quantised``): π_ref is then the same 4-bit model, and stored is the whole policy that was
    trained, its 4-bit values in the model's dtype with the adapters merged.
    """
    threads: Positive = 1
    """Torch threads: they change float32 sums, so they are part of the key."""


class LoopSettings(Section):
    iterations: NonNegative = 3
    """Iterations of the method, counted from 1. The base before them is iteration 0; with a warm-up
    that is iteration 0 and the base -1.
    """
    warmup_dpo: bool = False
    """One iteration of plain DPO on the first portion as labelled before the counted ones (SELM's
    Zephyr recipe). It takes β and learning rate of iteration 1; schedules are over the counted.
    """
    portions: NonNegative = 0
    """Into how many parts the prompts are cut; 0: as many as iterations (with the warm-up)."""
    prompts_per_iteration: NonNegative = 0
    """0: the whole portion."""
    order: Literal["seed", "data"] = "seed"
    """In which the training prompts are cut into portions: shuffled by the run's seed, or as the
    data have them.
    """
    reference_policy: Literal["previous", "fixed", "ema"] = "previous"
    """π_ref: the model at the start of the iteration; the one that the method starts from; or the
    average π_ref := d π_ref + (1 - d) π of their parameters, renewed before every iteration, with
    d = ``ema_decay``.
    """
    ema_decay: Share = 0.9
    """d of ``reference_policy: ema``."""
    mode: Literal["iterative", "stepwise", "offline", "online"] = "iterative"
    """``iterative``: pairs of the policy's own answers, a new optimiser and schedule each
    iteration. ``stepwise``: the same with the labelled pairs. ``online``: as iterative, but
    optimiser and schedule are carried through all iterations, which may be as small as one step.
    ``offline``: the same with the labelled pairs and a fixed reference, one run over all data
    whose iterations are where checkpoints are scored. A portion of own answers without a pair (all
    tie) is told and trains nothing: the policy passes through, and in ``online`` the optimiser's
    state, while the schedule goes on to the next iteration's place.
    """


class JudgeFacts(Section):
    """What is known of a judge beside how it is asked. Prices in USD per million tokens."""

    about: str
    licence: str
    price_prompt: Annotated[float, Field(ge=0)]
    price_completion: Annotated[float, Field(ge=0)]
    end_of_life: Day | None = None
    """The day on which its maker shuts it down; empty: none is announced."""
    instead: str = ""
    """The profile to use when it is gone."""
    sources: Annotated[dict[str, str], Field(min_length=1)]
    """Where each fact stands, and when it was read."""

    @model_validator(mode="after")
    def _says_what_to_use(self) -> Self:
        if self.end_of_life and not self.instead:
            raise ValueError("end_of_life needs instead: the profile that takes its place")
        return self


OF_THE_CLIENT = frozenset(
    {
        *("model", "messages", "stream", "n", "seed", "temperature", "reasoning_effort"),
        *("max_tokens", "max_completion_tokens", "logprobs", "top_logprobs"),
    }
)
"""Parameters of a request that have settings of their own."""
NEAR = timedelta(days=90)
"""How long before its end a judge is spoken of: a study with seeds takes weeks."""
BATCH_SHARE = 0.5
"""Of the price, for what is asked in a batch: the same at OpenAI, Anthropic, Google and Mistral."""


class JudgeSettings(Section):
    later: ClassVar[Mapping[str, Any]] = {
        "best_style_worth": None,
        "verdict": "",
        "annotator": "",
        "samples": 1,
        "max_tokens_as": "max_tokens",
        "reasoning_effort": "",
        "extra_body": {},
    }
    unkeyed: ClassVar[tuple[str, ...]] = ("profile", "facts", "transport")

    profile: str = ""
    """The file in ``judges/`` that these settings began as; the keys beside it change them."""
    kind: Literal["pocket", "openai"] = "pocket"
    """The pocket world's own judge, or a server with OpenAI's interface."""
    model: str = "pocket-judge"
    """Its name at the server."""
    base_url: str = ""
    """OpenAI-compatible endpoint (https or loopback). Empty with kind openai: the OPENAI_BASE_URL
    variable.
    """
    allow_insecure_url: str = ""
    """Name the plain-http host here to allow it."""
    transport: Literal["direct", "batch"] = "direct"
    """batch: through the endpoint's /files and /batches, at half the price, within a day. What is
    not back by ``runtime.judge_deadline_s`` is taken up by the next run.
    """
    temperature: float | None = 0.0
    """null: not sent, whatever a benchmark asks for, to a judge that takes none; its verdicts are
    drawn then.
    """
    max_tokens: Positive = 2048
    """Of a reply, its thinking included. One that is cut off is asked for again with twice as
    many, and has no verdict if it is cut off again.
    """
    repeats: Positive = 1
    """Judgments of every item, each in the report: their spread is the judge's noise."""
    verdict: Literal["", "logprobs", "text"] = ""
    """How it says which of two answers is better: by the log-probabilities of one token, or in
    words. Empty: as the annotator has it.
    """
    annotator: str = ""
    """alpaca_eval's annotator that asks it; empty: ``evaluation.alpaca_eval.annotator``, and with
    verdict text the library's deterministic one."""
    samples: Positive = 1
    """Verdicts drawn for one judgment, whose mean it is."""
    max_tokens_as: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """The name under which the endpoint takes a reply's limit."""
    reasoning_effort: str = ""
    """Sent where it is given."""
    extra_body: dict[str, Any] = {}
    """Further parameters of every request (vLLM: ``{chat_template_kwargs: {enable_thinking:
    false}}``; ``{structured_outputs: {choice: [m, M]}}`` holds it to these verdicts).
    """
    facts: JudgeFacts | None = None
    """Prices, end of life, licence and sources."""
    noise: float = 0.3
    """Of the pocket judge: standard deviation, in log-odds or rating points."""
    position_bias: float = 0.05
    """Of the pocket judge: what the second place is worth to it."""
    length_bias: float = 0.0
    """Of the pocket judge: what length is worth to it."""
    seed: NonNegative = 0
    """noise, position_bias, length_bias, seed: the pocket judge's (log-odds or rating points)."""
    best_style_worth: Share | None = None
    """What the pocket judge thinks ``world.best_style_worth`` is; empty: the truth."""

    @model_validator(mode="after")
    def _can_be_asked(self) -> Self:
        double = sorted(OF_THE_CLIENT & set(self.extra_body))
        if double:
            raise ValueError(f"extra_body holds {', '.join(double)}, which the client sets itself")
        if self.samples > 1 and (self.verdict == "logprobs" or self.temperature == 0):
            raise ValueError(
                f"samples is {self.samples}, but verdicts by log-probabilities or at temperature 0 "
                "are one verdict: set verdict: text and a temperature (null: the endpoint's own)"
            )
        return self

    def prices(self, runtime: RuntimeSettings, transport: str = "") -> tuple[float, float]:
        """USD per million tokens of prompt and of reply: the profile's, else the recipe's."""
        full = runtime.price_prompt_usd_per_million, runtime.price_completion_usd_per_million
        if self.facts:
            full = self.facts.price_prompt, self.facts.price_completion
        share = BATCH_SHARE if (transport or self.transport) == "batch" else 1.0
        return share * full[0], share * full[1]

    def sunset(self, today: date) -> str:
        """What is to be said of a judge whose end is past or near; nothing of another."""
        if self.facts is None or self.facts.end_of_life is None:
            return ""
        end, name = self.facts.end_of_life, self.profile or self.model
        left = date.fromisoformat(end) - today
        if left > NEAR:
            return ""
        when = f"will be shut down on {end}, in {left.days} days"
        if left.days <= 0:
            when = f"was shut down on {end}"
        return (
            f"{name} {when}: use {self.facts.instead} instead (`selm bridge` says how the two "
            "compare)"
        )

    @property
    def opinion(self) -> dict[str, Any]:
        """What decides the pocket judge's verdicts."""
        names = ("noise", "position_bias", "length_bias", "seed", "best_style_worth")
        opinion = {name: getattr(self, name) for name in names}
        return {name: value for name, value in opinion.items() if value is not None}

    def within(self, world: WorldSettings) -> JudgeSettings:
        """These settings where the pocket judge knows what is true of ``world``."""
        if self.best_style_worth is not None or world.best_style_worth == 1:
            return self
        return self.model_copy(update={"best_style_worth": world.best_style_worth})


class DiagnosticsSamples(Section):
    """How much a checkpoint's diagnostics draw."""

    prompts: Positive = 64
    """The last so many training pairs, and the first held-out and out-of-distribution prompts."""
    samples: Annotated[int, Field(ge=4)] = 4
    """Temperature-1 samples a prompt."""
    max_new_tokens: Positive = 24
    """Tokens of a sample."""


class DiagnosticsSettings(DiagnosticsSamples):
    enabled: bool = True
    """Whether checkpoints are diagnosed at all."""


class RuntimeSettings(Section):
    """Speed only; in no key."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU where one is seen."""
    micro_batch: Positive = 64
    """Most rows of a training micro-batch."""
    token_budget: NonNegative = 8192
    """Tokens in one training micro-batch; 0: ``micro_batch`` rows."""
    checkpoint_seconds: Annotated[float, Field(gt=0)] = 600.0
    """Time between two mid-iteration checkpoints of a training stage."""
    processes: Positive = 1
    """Training processes of one stage, one per device (on a CPU: gloo processes of one machine)."""
    sharding: Literal["none", "fsdp", "deepspeed_zero3"] = "none"
    """What several processes divide: only the rows (every process holds the whole model), or
    weights, gradients and optimiser too (FSDP2, or DeepSpeed ZeRO-3 where it is installed,
    unmeasured).
    """
    memory: Literal["fit", "off"] = "fit"
    """fit: a run whose weights, gradients and optimiser do not fit the smallest device is refused
    before it starts. off: no look. (Rows are fitted while training: ``token_budget`` is halved
    whenever a device runs out of memory.)
    """
    vllm_memory_share: Annotated[float, Field(gt=0, le=1)] | None = None
    """With ``model.generation_backend: vllm``: share of a device's memory that an engine takes; on
    a CPU of main memory. Empty: 0.9 of a GPU, 0.2 of main memory (every worker has an engine).
    """
    vllm_tensor_parallel: Positive = 1
    """Devices over which an engine divides the model."""
    vllm_data_parallel: Positive = 1
    """Engines at once, each with devices of its own and its part of the prompts."""

    @property
    def vllm_devices(self) -> int:
        """Devices of a stage that samples by vLLM."""
        return self.vllm_tensor_parallel * self.vllm_data_parallel

    report_to: str = "none"
    """Where the trainer logs (transformers' ``report_to``): none, tensorboard, wandb, …"""
    judge_concurrency: Positive = 8
    """Requests under way at once."""
    judge_timeout_s: float = 300.0
    """Time for one reply, more than a judge that thinks first takes: after it the judge is asked
    again (and paid again, should both answer).
    """
    judge_deadline_s: float = 1800.0
    """Time for one judgment with all its further attempts, counted anew with every reply that
    comes: a judge that gives none for so long ends the run.
    """
    judge_requests_per_minute: NonNegative = 0
    """0: no limit."""
    judge_backoff_s: Annotated[float, Field(gt=0)] = 0.5
    """First wait after a failed attempt; doubled (with jitter) up to 30 s. Retry-After goes before
    it.
    """
    price_prompt_usd_per_million: Annotated[float, Field(ge=0)] = 0.0
    """The judge's price for a prompt's tokens; a profile's own goes before it."""
    price_completion_usd_per_million: Annotated[float, Field(ge=0)] = 0.0
    """The judge's prices per million tokens, for ``max_cost_usd`` and the dry run; a profile's own
    go before them.
    """
    max_cost_usd: float = 0.0
    """0: no limit."""


def at_iteration(schedule: Schedule, iteration: int, iterations: int) -> float:
    """A schedule's value at ``iteration`` (1-based); a short list repeats its last value."""
    if isinstance(schedule, Linear):
        share = 0.0 if iterations <= 1 else (iteration - 1) / (iterations - 1)
        return schedule.start + (schedule.end - schedule.start) * share
    if isinstance(schedule, list):
        return float(schedule[min(iteration, len(schedule)) - 1])
    return float(schedule)
