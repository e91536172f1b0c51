"""Stage ``base.pocket``: a small Llama and its tokenizer, trained by TRL's SFTTrainer on the pocket
world's conversations. The same settings and data give the same bytes.
"""

from __future__ import annotations

import re
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.model.isolated_rng import isolated_rng
from harness.pocket import language, wordings
from harness.pocket.language import Rng
from harness.records import HarnessError, StageOutcome, StageTask, read_jsonl
from harness.study.tasks import PocketBaseTask

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# -- its tokenizer ---------------------------------------------------------------------------------
BOS, PAD, UNK, END = "<s>", "<pad>", "<unk>", "<|end|>"
SPECIAL = (PAD, BOS, UNK, END, "<|user|>", "<|assistant|>", "<|system|>")
"""END closes a turn and ends generation; BOS opens the text once."""
MARKS = (".", ",", ":", "?", "!", ";")
EXTRA_WORDS = ("Question", "Answer", "Q", "A", "No", "no", "yes")

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<|assistant|>{% generation %}{{ message['content'] "
    "}}<|end|>{% endgeneration %}"
    "{% else %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endif %}{% "
    "endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def vocabulary() -> list[str]:
    """Special tokens, then every word, number and mark the language can write, sorted."""
    texts = [text for rows in wordings.WORDINGS.values() for _, text in rows]
    texts += [text for _, text in wordings.COMPOSED_WORDINGS]
    texts += [style.template for style in wordings.STYLES]
    texts += [*wordings.FOLLOW_UPS.values(), *wordings.PHRASES.values(), *wordings.EVENTS]
    words = {word for text in texts for word in re.findall(r"\w+", re.sub(r"\{\w+\}", " ", text))}
    words |= {*wordings.NAMES, *wordings.WORDS, *wordings.CLASSES, *wordings.MOODS}
    words |= {*wordings.ORDINALS, *EXTRA_WORDS, *map(str, range(100)), *MARKS}
    return [*SPECIAL, *sorted(words)]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A token for every word, number or punctuation mark, with a chat template.

    White space carries no meaning: text is cut into words and marks, and decoding joins them with
    single spaces, marks attached to the word before. So ``encode(decode(ids)) == ids`` for every
    sequence of ordinary tokens.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    numbered = {token: i for i, token in enumerate(vocabulary())}
    core = Tokenizer(models.WordLevel(numbered, unk_token=UNK))
    words = pre_tokenizers.Split(Regex(r"\w+|[^\w\s]"), behavior="isolated")
    core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), words])
    core.add_special_tokens(list(SPECIAL))
    attached = [decoders.Replace(f" {mark}", mark) for mark in MARKS]
    core.decoder = decoders.Sequence([decoders.WordPiece(prefix="##", cleanup=False), *attached])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=BOS,
        eos_token=END,
        pad_token=PAD,
        unk_token=UNK,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.padding_side = "left"
    return tokenizer


# -- its model -------------------------------------------------------------------------------------
MAX_LENGTH = 128
"""Longest supervised conversation in tokens; the language's longest has about 100."""

INITIAL_SPREAD = 0.05
"""Of the weights: with the usual 0.02 so small a model learns more slowly."""
ROPE_THETA = 100.0
"""Conversations are short, so positions must differ within tens of tokens."""
COPY_GAIN = 0.7
"""Of the identity in the value and output projections, so that an attended word can be copied at
once ("mimetic" initialisation, Trockman and Kolter 2023, arXiv 2305.09828)."""
KEY_SPREAD = 1.0
"""Of the query and key biases, which let attention go by position from the first step."""
BATCHES_PER_BUCKET = 50
COPYING = frozenset({"echo", "first", "last", "reverse", "rotate", "drop", "swap", "pick", "moods"})
COPYING_STEPS = 180
"""Of the first lesson. Without lessons copying takes some ten times longer to appear."""
SINGLE_TURN_SHARE = 0.45
"""Share of the steps before which no conversation has several turns."""


def build_model(settings: PocketBaseTask, tokenizer: Any) -> Any:
    """A fresh Llama of the settings' size; its weights come from torch's global generator."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden, heads = settings.hidden_size, settings.heads
    if hidden % heads or (hidden // heads) % 2:
        raise HarnessError(
            f"pocket.hidden_size {hidden} must be an even multiple of pocket.heads {heads}"
        )
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=hidden,
        num_hidden_layers=settings.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        attention_bias=True,
        initializer_range=INITIAL_SPREAD,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for layer in model.model.layers:
            for projection in (layer.self_attn.v_proj, layer.self_attn.o_proj):
                projection.weight.add_(COPY_GAIN * torch.eye(hidden))
            for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj):
                projection.bias.normal_(0.0, KEY_SPREAD)
    return model


def lesson_of(messages: Sequence[Mapping[str, str]]) -> int:
    """0: one turn that copies words of a list. 1: any other single turn. 2: several turns."""
    task = language.parse(messages[0]["content"])
    if len(messages) > 2 or task is None:
        return 2
    return 0 if len(task.ops) == 1 and task.ops[0] in COPYING else 1


def batch_order(
    lengths: Sequence[int], lessons: Sequence[int], batch_size: int, steps: int, rng: Rng
) -> list[int]:
    """Row numbers of ``steps`` batches, easy lessons first.

    The first COPYING_STEPS see lesson 0 only, up to SINGLE_TURN_SHARE of the steps lessons 0 and 1,
    the rest everything. Rows are shuffled, sorted by length within buckets of 50 batches, and the
    batches shuffled: little padding.
    """
    order: list[int] = []
    first = min(COPYING_STEPS, steps // 2)
    for lesson, end in enumerate((first, max(first, round(SINGLE_TURN_SHARE * steps)), steps)):
        rows = [i for i, own in enumerate(lessons) if own <= lesson] or list(range(len(lengths)))
        while len(order) < end * batch_size:
            order += _one_pass(rows, lengths, batch_size, rng)
        del order[end * batch_size :]
    return order


def _one_pass(rows: Sequence[int], lengths: Sequence[int], batch_size: int, rng: Rng) -> list[int]:
    """Every row once, in batches of like length; fewer than a batch are left out or repeated."""
    shuffled = [rows[int(i)] for i in rng.permutation(len(rows))]
    while len(shuffled) < batch_size:
        shuffled += shuffled
    shuffled = shuffled[: len(shuffled) // batch_size * batch_size]
    batches: list[list[int]] = []
    for start in range(0, len(shuffled), BATCHES_PER_BUCKET * batch_size):
        bucket = shuffled[start : start + BATCHES_PER_BUCKET * batch_size]
        bucket.sort(key=lambda i: (lengths[i], i))
        batches += [bucket[i : i + batch_size] for i in range(0, len(bucket), batch_size)]
    return [row for i in rng.permutation(len(batches)) for row in batches[int(i)]]


def run(task: StageTask[PocketBaseTask]) -> StageOutcome:
    """Train on ``inputs["data"]/sft.jsonl`` and write ``model/`` with its tokenizer."""
    settings = task.settings
    rows = islice(read_jsonl(task.inputs["data"] / "sft.jsonl"), settings.rows)
    conversations = [row["messages"] for row in rows]
    tokenizer = build_tokenizer()
    with isolated_rng(settings.seed), tempfile.TemporaryDirectory() as scratch:
        model = build_model(settings, tokenizer)
        with warnings.catch_warnings():
            # of the name of a setting that this TRL still needs
            said = ".*gradient_checkpointing.*is deprecated"
            warnings.filterwarnings("ignore", message=said, category=FutureWarning)
            loss = _fit(model, tokenizer, conversations, settings, scratch)
    folder = task.out / "model"
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    summary = {"loss": round(loss, 6), "parameters": int(model.num_parameters())}
    costs = {"steps": float(settings.steps)}
    return StageOutcome(rows=len(conversations), costs=costs, summary=summary)


def _fit(
    model: Any, tokenizer: Any, conversations: list[Any], settings: PocketBaseTask, scratch: str
) -> float:
    """Train the model; the mean training loss."""
    from datasets import Dataset, disable_progress_bars
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    steps, batch_size, seed = settings.steps, settings.batch_size, settings.seed
    lessons = [lesson_of(messages) for messages in conversations]

    class LessonTrainer(SFTTrainer):
        """SFTTrainer that draws rows in the order of ``batch_order``."""

        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            tokenised: Any = train_dataset or self.train_dataset
            lengths = [len(ids) for ids in tokenised["input_ids"]]
            assert len(lengths) == len(lessons), "TRL left out conversations"
            return batch_order(lengths, lessons, batch_size, steps, np.random.default_rng(seed))

    arguments = SFTConfig(
        output_dir=scratch,
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, steps // 20),
        weight_decay=0.0,
        max_grad_norm=1.0,
        optim="adamw_torch",
        max_length=MAX_LENGTH,
        assistant_only_loss=True,
        seed=seed,
        data_seed=seed,
        use_cpu=True,
        bf16=False,
        fp16=False,
        gradient_checkpointing=False,
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_num_workers=0,
    )
    disable_progress_bars()
    rows = Dataset.from_dict({"messages": conversations})
    trainer = LessonTrainer(
        model=model, args=arguments, train_dataset=rows, processing_class=tokenizer
    )
    return float(trainer.train().training_loss)
