"""PairRM: a DeBERTa-v3 that reads the prompt and two answers together and says which is better.

Jiang, Ren and Lin, "LLM-Blender", arXiv 2306.02561; weights llm-blender/PairRM-hf (0.4 B);
behaviour that of their package llm-blender 0.0.2 (``Blender.rank``), held by
``tests/golden/pairrm``. The input is
``<|source|>prompt[SEP]<|candidate1|>answer[SEP]<|candidate2|>answer[SEP]``, each part with its own
[CLS]; the last hidden states at the three marks s, a, b go through one head: logit = mean over
tasks of head([s, a]) - head([s, b]). All ordered pairs are compared, and with L_ij the logit of i
shown first, the score of i is mean_j(L_ij - L_ji) over all candidates, itself included (0): the
order in which two answers are shown cancels.

Two differences, both so that a score depends on its own prompt only: in the package the room of an
answer shrinks with the longest prompt of its batch (here, as there with batches of one, with its
own prompt), and on a GPU it computes in float16 (here float32).

The tokenizer is read with the tokenizers library, as stored: transformers 5 builds DeBERTa-v2
tokenizers anew with a normalisation of its own, and gives other ids than the authors' where
sentencepiece's compatibility normalisation changes a text (½, ﬁ, full width).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.model.checkpoint import check_fit, check_values, plain_fit
from harness.model.checkpoint_files import (
    CheckpointError,
    Stored,
    WeightFiles,
    location,
    model_folder,
    settings_of,
    weight_files,
)
from harness.rankers.ranker import Messages, RankContext, Ranked, Ranker, RankItem, padded_batches
from harness.records import HarnessError
from harness.study.sections import DataSettings, RankerSettings
from harness.study.work import Lengths, Work

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor

PARAMETERS = 0.435e9
MARKS = ("<|source|>", "<|candidate1|>", "<|candidate2|>")
SOURCE_TOKENS, CANDIDATE_TOKENS = 1224, 412
INSTRUCTION = (
    "Finish the following coversation in each i-th turn "
    "by filling in <Response i> with your response."
)
"""What the package writes before a conversation, letter by letter: the model was trained on it."""
EMBEDDINGS = "pretrained_model.embeddings.word_embeddings.weight"
PROMPTS_AT_ONCE = 256
"""Prompts encoded and sorted by length together; bounds the memory that token ids take."""
TOKENS_PER_BATCH = 8192
"""Four of the longest comparisons: attention takes memory with the square of their length."""

Ids = tuple[int, ...]
Row = tuple[Ids, Ids, Ids]
"""One comparison: token ids of the prompt, of the answer shown first and of the other."""


def rank(items: Sequence[RankItem], context: RankContext) -> list[Ranked]:
    """Aggregate score of every text against its prompt's other texts; a single text scores 0."""
    assert context.folder is not None
    model, files = load(str(context.folder), context.runtime.device)
    found = []
    for start in range(0, len(items), PROMPTS_AT_ONCE):
        portion = items[start : start + PROMPTS_AT_ONCE]
        duels = [encode_duels(files, item) for item in portion]
        # Answers cut to the same tokens tie exactly.
        rows = list(dict.fromkeys(row for one in duels for row in one.values()))
        context.add_cost("ranker_texts", len(rows))
        logits = dict(zip(rows, compare(model, rows), strict=True))
        for one, item in zip(duels, portion, strict=True):
            matrix = [[0.0] * len(item.texts) for _ in item.texts]
            for (a, b), row in one.items():
                matrix[a][b] = logits[row]
            found.append(Ranked(aggregate(matrix)))
    return found


def aggregate(logits: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """score_i = mean_j (L_ij - L_ji) over a square matrix whose diagonal is 0."""
    n = len(logits)
    return tuple(sum(logits[i][j] - logits[j][i] for j in range(n)) / n for i in range(n))


# -- its files -------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint, weights not read. marks: ids of source, first and second answer."""

    source: str
    weights: WeightFiles
    config: dict[str, Any]
    tokenizer: Tokenizer
    marks: tuple[int, ...]
    source_tokens: int
    total_tokens: int


def is_pairrm(config: Mapping[str, Any]) -> bool:
    """Whether a ``config.json`` is of either form of PairRM."""
    return "ranker_type" in config or "cand1_prefix_id" in config


def open_checkpoint(folder: Path) -> Checkpoint:
    """Everything but the weights. Raises HarnessError saying what is missing."""
    path = model_folder(folder)
    source = str(location(folder).get("source", path))
    config = settings_of(path / "config.json", source)
    weights = weight_files(path, source)
    if "ranker_type" in config:
        raise HarnessError(
            f"{source}: the form of the package llm-blender, which stores no tokenizer; give "
            "llm-blender/PairRM-hf, the same weights"
        )
    tokenizer = _tokenizer(path / "tokenizer.json", source)
    ids = tokenizer.get_vocab(with_added_tokens=True)
    marks = tuple(ids.get(mark, -1) for mark in MARKS)
    named = [config.get(f"{name}_prefix_id") for name in ("source", "cand1", "cand2")]
    wrong = ""
    if -1 in marks:
        wrong = f"the tokenizer has no {MARKS[marks.index(-1)]}"
    elif "hidden_size" not in config:
        wrong = "config.json describes no DeBERTa (no hidden_size)"
    elif tuple(tokenizer.encode(f"{mark}a").ids[1] for mark in MARKS) != marks:
        wrong = "the tokenizer does not begin a text with [CLS] and its mark"
    elif any(number is not None for number in named) and named != list(marks):
        wrong = f"config.json gives the marks the ids {named}, the tokenizer {list(marks)}"
    if wrong:
        raise HarnessError(f"{source}: {wrong}; this is not a PairRM checkpoint")
    source_tokens = int(config.get("source_maxlength") or SOURCE_TOKENS)
    total = source_tokens + 2 * int(config.get("candidate_maxlength") or CANDIDATE_TOKENS)
    unread = ("architectures", "transformers_version", "torch_dtype", "dtype")
    kept = {name: value for name, value in config.items() if name not in unread}
    return Checkpoint(source, weights, kept, tokenizer, marks, source_tokens, total)


def _tokenizer(path: Path, source: str) -> Tokenizer:
    from tokenizers import Tokenizer

    if not path.is_file():
        raise HarnessError(f"{source}: {path.parent} holds no tokenizer (tokenizer.json)")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:
        raise HarnessError(f"{source}: cannot read {path} ({str(error)[:200]})") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


@lru_cache(maxsize=1)
def load(folder: str, device: str) -> tuple[Any, Checkpoint]:
    """PairRM (evaluation mode, float32), and what encodes its texts."""
    files = open_checkpoint(Path(folder))
    stored, config = check(files, values=False)
    model = network(config)
    read = stored.values(model.state_dict())
    model.load_state_dict({name: tensor.float() for name, tensor in read})
    check_values(files.source, model.named_parameters(), {EMBEDDINGS})
    return model.to(device).eval(), files


def check(files: Checkpoint, *, values: bool = True) -> tuple[Stored, Any]:
    """The stored tensors, which are those of a PairRM, and its configuration. Raises
    CheckpointError for others, and with ``values`` for weights that are not finite.
    """
    import torch
    from transformers import DebertaV2Config

    stored = Stored(files.weights, files.source)
    # The package resizes the embedding to its tokens.
    rows = len(stored.headers[EMBEDDINGS]) if EMBEDDINGS in stored.headers else 0
    if rows <= max(files.marks):
        raise CheckpointError(
            f"{files.source}: the weights have {rows} embeddings, but the marks have the ids "
            f"{list(files.marks)}"
        )
    config = DebertaV2Config(**files.config | {"vocab_size": rows})
    with torch.device("meta"):
        model = network(config)
    # Positions are tensors of other releases of DeBERTa; without positions of its own none is read.
    check_fit(plain_fit(model, stored, r"position_(ids|embeddings)"), stored.headers, files.source)
    if values:
        check_values(files.source, stored.values(stored.headers), {EMBEDDINGS})
    return stored, config


# -- the network -----------------------------------------------------------------------------------
def network(config: Any) -> Any:
    """The published network: an encoder without its own head, and a two-layer head over a pair of
    marks. It is defined here so that the record is read without torch.
    """
    import torch
    from torch import nn
    from transformers import DebertaV2Model

    class PairRM(nn.Module):
        base_model_prefix = "pretrained_model"

        def __init__(self) -> None:
            super().__init__()
            self.pretrained_model = DebertaV2Model(config)
            width, drop = config.hidden_size, float(getattr(config, "drop_out", 0.05))
            self.head_layer = nn.Sequential(
                nn.Dropout(drop),
                nn.Linear(2 * width, width),
                nn.Tanh(),
                nn.Dropout(drop),
                nn.Linear(width, int(getattr(config, "n_tasks", 1))),
            )

        def forward(self, ids_BT: Tensor, mask_BT: Tensor, marks_B3: Tensor) -> Tensor:
            """Logits (B,), above 0 where the first answer is better; marks_B3 are places."""
            encoded = self.pretrained_model(input_ids=ids_BT, attention_mask=mask_BT)
            rows = torch.arange(len(ids_BT), device=ids_BT.device)
            source_BD, first_BD, second_BD = (
                encoded.last_hidden_state[rows, marks_B3[:, mark]] for mark in range(3)
            )
            first_BK = self.head_layer(torch.cat([source_BD, first_BD], -1))
            second_BK = self.head_layer(torch.cat([source_BD, second_BD], -1))
            logits: Tensor = (first_BK - second_BK).mean(-1)
            return logits

    return PairRM()


def compare(model: Any, rows: Sequence[Row]) -> list[float]:
    """Logit of every comparison, in the order given; batches are of like length."""
    logits = [0.0] * len(rows)
    for batch in padded_batches([sum(map(len, row)) for row in rows], TOKENS_PER_BATCH):
        found = _logits(model, [rows[place] for place in batch])
        for place, logit in zip(batch, found, strict=True):
            logits[place] = logit
    return logits


def _logits(model: Any, rows: Sequence[Row]) -> list[float]:
    import torch
    from torch.nn.utils.rnn import pad_sequence

    whole = [torch.tensor([*source, *first, *second]) for source, first, second in rows]
    ids_BT = pad_sequence(whole, True, model.pretrained_model.config.pad_token_id)
    mask_BT = pad_sequence([torch.ones_like(row) for row in whole], True)
    marks = [[1, len(source) + 1, len(source) + len(first) + 1] for source, first, _ in rows]
    device = next(model.parameters()).device
    with torch.inference_mode():
        given = (tensor.to(device) for tensor in (ids_BT, mask_BT, torch.tensor(marks)))
        logits: list[float] = model(*given).double().tolist()
    return logits


# -- its texts -------------------------------------------------------------------------------------
def as_read(messages: Messages, answers: Sequence[str]) -> tuple[str, list[str]]:
    """(prompt, answers) as PairRM reads them: one user turn as it is; several in the package's form
    of a conversation.

    There every turn of the assistant is a ``<Response i>`` that the answer fills in, the earlier
    turns included. A system turn stands before the prompt, on a line of its own (the package knows
    none).
    """
    system = "".join(m["content"] + "\n" for m in messages if m["role"] == "system")
    turns = [m for m in messages if m["role"] != "system"]
    if len(turns) == 1:
        return system + turns[0]["content"], list(answers)
    lines, given = [], 0
    for turn in [*turns, {"role": "assistant", "content": ""}]:
        if turn["role"] == "assistant":
            given += 1
            lines.append(f"Assistant: <Response {given}>")
        else:
            lines.append("USER: " + turn["content"])
    earlier = [m["content"] for m in turns if m["role"] == "assistant"]
    filled = [
        "\n".join(f"<Response {i}>: {text}" for i, text in enumerate([*earlier, answer], 1))
        for answer in answers
    ]
    return system + INSTRUCTION + "\n".join(lines), filled


def encode_duels(files: Checkpoint, item: RankItem) -> dict[tuple[int, int], Row]:
    """Token ids of every ordered pair of an item's texts.

    The prompt is cut to ``source_tokens``; half of what it leaves of ``total_tokens`` is each
    answer's.
    """
    prompt, answers = as_read(item.messages, item.texts)
    source = _part(files.tokenizer, MARKS[0], prompt, files.source_tokens)
    room = (files.total_tokens - len(source)) // 2
    firsts = [_part(files.tokenizer, MARKS[1], text, room) for text in answers]
    seconds = [(ids[0], files.marks[2], *ids[2:]) for ids in firsts]
    places = permutations(range(len(answers)), 2)
    return {(a, b): (source, firsts[a], seconds[b]) for a, b in places}


def _part(tokenizer: Tokenizer, mark: str, text: str, limit: int) -> Ids:
    """[CLS] mark text [SEP], at most ``limit`` ids; a separator in the text is read as a space."""
    ids = tokenizer.encode(mark + text.replace("[SEP]", " ")).ids
    return tuple(ids if len(ids) <= limit else [*ids[: limit - 1], ids[-1]])


def _missing(ranker: RankerSettings, _data: DataSettings) -> str:
    return (
        "" if ranker.model else "give ranker.model: llm-blender/PairRM-hf or a folder that holds it"
    )


def _work(lengths: Lengths, prompts: int, texts: int) -> Work:
    pairs, both = texts * (texts - 1), lengths.prompt + 2 * lengths.answer
    read = float(prompts * pairs * both)
    how = f"{prompts:,} prompts × {pairs} ordered pairs × {both} tokens through PairRM's 0.435 B"
    return Work(prompts * texts, read, how=how, parameters=PARAMETERS)


RANKER = Ranker(
    "pairrm", rank, version=2, pairwise=True, checkpoint="given", missing=_missing, work=_work
)
