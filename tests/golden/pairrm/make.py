"""Golden tensors of PairRM: what its authors' package llm-blender computes, on random weights of a
tiny DeBERTa-v3.

Run in an environment of its own (the package imports names that transformers 5 no longer has):

    ENV=$(mktemp -d) && python3.11 -m venv $ENV $ENV/bin/pip install 'torch<2.4' 'numpy<2'
    llm-blender==0.0.2 transformers==4.38.2 sentencepiece protobuf accelerate OMP_NUM_THREADS=1
    $ENV/bin/python tests/golden/pairrm/make.py

The committed files were made with Python 3.11.7, torch 2.3.1, transformers 4.38.2, tokenizers
0.15.2, sentencepiece 0.2.3. Written here:

- ``hf/``: the form of llm-blender/PairRM-hf, ``tokenizer.json`` included; ``spm.model``: the
  pieces that it was made of.
- ``golden.json``: texts, token ids, logits of every ordered pair, scores, ranks, and comparisons of
  conversations.

``Blender.rank`` runs with batches of one prompt: in a larger batch the room of an answer depends on
the longest prompt beside it.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import llm_blender
import numpy as np
import safetensors.torch
import sentencepiece
import tokenizers
import torch
import transformers
from llm_blender.blender.blender_utils import get_pair_from_conv, tokenize_pair
from llm_blender.pair_ranker.config import RankerConfig
from llm_blender.pair_ranker.model_util import build_collator, build_ranker, build_tokenizer
from llm_blender.pair_ranker.pairrm import DebertaV2PairRM

HERE = Path(__file__).resolve().parent
CORPUS = """Which of the two answers is better, and why? The first answer is short and \
to the point; the second one explains more.
Write a function that adds two numbers and returns the sum. def add(a, b): return a + b
List three fruits: apple, banana, cherry. Sort the numbers 10, 9, 8, 7, 6, 5, 4, 3, 2, 1 and 0.
A café in Zürich serves naïve visitors; the señor at the window orders crème brûlée for 12.50 €.
How are you today? I am fine, thank you, and you? The weather is good, the sky is \
blue and the sun shines on the sea.
Explain to a child what a language model is, in one sentence. It is a machine \
that guesses the next word, again and again."""
"""What the tiny sentencepiece model is trained on."""

ENCODER = {
    "model_type": "deberta-v2",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "hidden_act": "gelu",
    "attention_probs_dropout_prob": 0.1,
    "hidden_dropout_prob": 0.1,
    "initializer_range": 0.02,
    "max_position_embeddings": 64,
    "relative_attention": True,
    "position_buckets": 32,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": "p2c|c2p",
    "layer_norm_eps": 1e-7,
    "max_relative_positions": -1,
    "position_biased_input": False,
    "type_vocab_size": 0,
}
"""deberta-v3-large's config.json, with 2 layers of width 32 for 24 of 1024, and 64 positions in 32
buckets for 512 in 256.
"""

RANKER = {
    "ranker_type": "pairranker",
    "model_type": "deberta",
    "model_name": "encoder",
    "source_maxlength": 1224,
    "candidate_maxlength": 412,
    "n_tasks": 1,
    "loss_type": "instructgpt",
    "inference_mode": "bubble",
    "drop_out": 0.05,
    "fp16": True,
}

LONG = " ".join(
    f"The answer to question {i} is {i * 7 % 11}, and the sky is blue." for i in range(90)
)
PROMPTS = [
    (
        "Which answer is better?",
        [
            "The first one.",
            "The second one explains more.",
            "banana",
            "I am fine, thank you, and you?",
        ],
    ),
    (
        "  Write a function\n\n\tthat adds   two numbers.\n",
        [
            "def add(a, b):\n    return a + b\n",
            "\n\nSum:\r\n1. a\r\n2. b",
            "a  +  b",
            "```python\n\tadd = lambda a, b: a + b\n```",
        ],
    ),
    (
        "Où est le café ﬁn? Ｆｕｌｌ ｗｉｄｔｈ, ½ €, 漢字 🍌 e\u0301\u00a0x\u200by",
        ["cafe\u0301", "café", "日本語のテキスト 🍎🍏", "Straße № 5 — “quoted” … \u2003em space"],
    ),
    ("", ["", " ", "Not empty.", "\n"]),
    (LONG, [LONG, LONG[::-1], "Short.", LONG + " More."]),
    (
        "Say [SEP] and [CLS] and [MASK] and [UNK] aloud.",
        ["[SEP][SEP] twice " + LONG, "no marks [SEP]", "a[SEP]b[CLS]c", "[UNK]ab [MASK]"],
    ),
]
"""Plain, blank and multi-line, unicode, empty, everything cut, and the tokenizer's own marks, with
one long answer to a short prompt.
"""

_OPENING = [{"role": "USER", "content": "How are you today?"}]
_REST = [
    {"role": "ASSISTANT", "content": "Fine, and you?"},
    {"role": "USER", "content": "List three\nfruits."},
]
CONVERSATIONS = [
    (
        [*_OPENING, {"role": "ASSISTANT", "content": "I am fine."}],
        [*_OPENING, {"role": "ASSISTANT", "content": ""}],
    ),
    (
        [*_OPENING, *_REST, {"role": "ASSISTANT", "content": "apple, banana"}],
        [*_OPENING, *_REST, {"role": "ASSISTANT", "content": "cherry\n7"}],
    ),
]


def train_pieces(folder: Path) -> None:
    """``spm.model`` with DeBERTa-v3's control pieces, unigram, byte fallback, the default (NFKC)
    normalisation.
    """
    model = io.BytesIO()  # a file would write its path into the model
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS.splitlines()),
        model_writer=model,
        model_type="unigram",
        vocab_size=480,
        hard_vocab_limit=False,
        byte_fallback=True,
        character_coverage=1.0,
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        pad_piece="[PAD]",
        bos_piece="[CLS]",
        eos_piece="[SEP]",
        unk_piece="[UNK]",
        num_threads=1,
    )
    (folder / "spm.model").write_bytes(model.getvalue())


def write_encoder(folder: Path) -> None:
    folder.mkdir(parents=True)
    train_pieces(folder)
    pieces = sentencepiece.SentencePieceProcessor(
        model_file=str(folder / "spm.model")
    ).get_piece_size()
    _write(
        folder / "config.json", ENCODER | {"vocab_size": pieces + 100}
    )  # as published, wider than the tokenizer: 128100 for 128001
    _write(folder / "tokenizer_config.json", {"do_lower_case": False, "vocab_type": "spm"})


def write_weights(folder: Path) -> None:
    """Random weights of the authors' ranker, drawn from one generator in the order of its state
    dict.
    """
    tokenizer = build_tokenizer(RANKER["model_name"])
    build_collator(
        "pairranker", tokenizer, RANKER["source_maxlength"], RANKER["candidate_maxlength"]
    )  # adds the marks to the tokenizer
    with tempfile.TemporaryDirectory() as base:
        transformers.AutoModel.from_config(
            transformers.AutoConfig.from_pretrained("encoder")
        ).save_pretrained(base)
        ranker = build_ranker(
            "pairranker", "deberta", base, None, RankerConfig.from_dict(RANKER), tokenizer
        )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in ranker.state_dict().items():
            if tensor.is_floating_point():
                spread = 1.0 if "embeddings.weight" in name else 0.3
                tensor.copy_(
                    torch.randn(tensor.shape, generator=generator) * spread
                    + (1.0 if "LayerNorm.weight" in name else 0.0)
                )
    safetensors.torch.save_model(ranker, str(folder / "model.safetensors"))


def load_blender() -> llm_blender.Blender:
    """The authors' ``Blender`` with the checkpoint of the working folder, float32 on the CPU.

    ``build_ranker`` wants the encoder's own weights, which the checkpoint then overwrites: the
    encoder's folder gets some for as long.
    """
    temporary = Path("encoder/model.safetensors")
    transformers.AutoModel.from_config(
        transformers.AutoConfig.from_pretrained("encoder")
    ).save_pretrained("encoder_weights")
    shutil.move("encoder_weights/model.safetensors", temporary)
    shutil.rmtree("encoder_weights")
    blender = llm_blender.Blender()
    blender.loadranker(".", device="cpu")
    temporary.unlink()
    return blender


def write_hf(blender: llm_blender.Blender, folder: Path) -> DebertaV2PairRM:
    """The same ranker as the authors' transformers model."""
    tokenizer = blender.ranker_tokenizer
    config = transformers.DebertaV2Config(
        **{name: value for name, value in ENCODER.items() if name != "model_type"},
        vocab_size=len(tokenizer),
        n_tasks=1,
        drop_out=0.05,
        sep_token_id=tokenizer.sep_token_id,
        source_prefix_id=tokenizer.source_prefix_id,
        cand_prefix_id=tokenizer.cand_prefix_id,
        cand1_prefix_id=tokenizer.cand1_prefix_id,
        cand2_prefix_id=tokenizer.cand2_prefix_id,
    )
    model = DebertaV2PairRM(config)
    model.load_state_dict(blender.ranker.state_dict())
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "spm.model").unlink(missing_ok=True)  # tokenizer.json holds all of it
    return model


def rank_prompt(blender: llm_blender.Blender, source: str, candidates: list[str]) -> dict[str, Any]:
    """Token ids as the collator makes them, the matrix of logits, scores and ranks, of all
    candidates and of the first three.
    """
    seen: list[list[int]] = []

    def see(_module: Any, _args: Any, kwargs: dict[str, torch.Tensor]) -> None:
        seen.append(kwargs["input_ids"][0, kwargs["attention_mask"][0].bool()].tolist())

    batch = blender.ranker_collator([{"source": source, "candidates": candidates}])
    hook = blender.ranker.pretrained_model.register_forward_pre_hook(see, with_kwargs=True)
    with torch.no_grad():
        logits = blender.ranker._full_predict(**batch)["logits"][0]
    hook.remove()
    source_ids = batch["source_ids"][0][batch["source_attention_mask"][0].bool()].tolist()
    masked = zip(batch["candidate_ids"][0], batch["candidate_attention_mask"][0], strict=True)
    parts = [ids[mask.bool()].tolist() for ids, mask in masked]
    pairs = [(i, j) for i in range(len(parts)) for j in range(len(parts)) if i != j]
    assert seen == [
        source_ids + _marked(blender, parts[i], 1) + _marked(blender, parts[j], 2) for i, j in pairs
    ]

    def ranked(texts: list[str], **settings: Any) -> list[Any]:
        return blender.rank([source], [list(texts)], batch_size=1, disable_tqdm=True, **settings)[
            0
        ].tolist()

    return {
        "source": source,
        "candidates": candidates,
        "source_ids": source_ids,
        "candidate_ids": parts,
        "logits": logits.tolist(),
        "scores": ranked(candidates, return_scores=True),
        "ranks": ranked(candidates),
        "ranks_of_three": ranked(candidates[:3]),
    }


def _marked(blender: llm_blender.Blender, ids: list[int], place: int) -> list[int]:
    tokenizer = blender.ranker_tokenizer
    mark = tokenizer.cand1_prefix_id if place == 1 else tokenizer.cand2_prefix_id
    return [mark if i == tokenizer.cand_prefix_id else i for i in ids]


def hf_difference(
    blender: llm_blender.Blender, model: DebertaV2PairRM, row: dict[str, Any]
) -> float:
    """Largest difference between the two forms of the model. Their tokenisations agree where no
    text holds [SEP].
    """
    texts, worst = row["candidates"], 0.0
    for i in range(len(texts)):
        for j in range(len(texts)):
            if i != j:
                encoded = tokenize_pair(
                    blender.ranker_tokenizer, [row["source"]], [texts[i]], [texts[j]]
                )
                with torch.no_grad():
                    logit = model(encoded["input_ids"], encoded["attention_mask"]).logits.item()
                worst = max(worst, abs(logit - row["logits"][i][j]))
    return worst


def compare_conversations(
    blender: llm_blender.Blender, first: list[dict[str, str]], second: list[dict[str, str]]
) -> dict[str, Any]:
    sources, firsts, seconds = get_pair_from_conv([first], [second])
    modes = ("[A,B]", "[B,A]", "[A,B]+[B,A]")
    logits = {
        mode: float(
            blender.compare_conversations([first], [second], return_logits=True, mode=mode)[0]
        )
        for mode in modes
    }
    return {
        "a": first,
        "b": second,
        "source": sources[0],
        "texts": [firsts[0], seconds[0]],
        "logits": logits,
    }


def _write(file: Path, content: Any) -> None:
    file.write_text(
        json.dumps(content, indent=None if file.name == "golden.json" else 2, ensure_ascii=True)
        + "\n",
        encoding="utf-8",
    )


def main() -> None:
    authors, hf = Path(tempfile.mkdtemp()), HERE / "hf"
    for folder in (authors, hf):
        shutil.rmtree(folder, ignore_errors=True)
    write_encoder(authors / "encoder")
    shutil.copy(authors / "encoder" / "spm.model", HERE)
    _write(authors / "config.json", RANKER)
    os.chdir(authors)  # model_name is relative
    write_weights(authors)
    blender = load_blender()
    blender.blender_config.use_tqdm = False
    model = write_hf(blender, hf)
    rows = [rank_prompt(blender, source, candidates) for source, candidates in PROMPTS]
    differences = [hf_difference(blender, model, row) for row in rows[:-1]]
    assert max(differences) < 1e-5, differences
    golden = {
        "made_with": {
            module.__name__: module.__version__
            for module in (np, safetensors, sentencepiece, tokenizers, torch, transformers)
        }
        | {"llm_blender": "0.0.2", "python": sys.version.split()[0]},
        "prompts": rows,
        "conversations": [compare_conversations(blender, *pair) for pair in CONVERSATIONS],
    }
    _write(HERE / "golden.json", golden)
    print("differences between the two forms:", differences)
    print(
        "ranks:",
        [row["ranks"] for row in rows],
        "lengths:",
        [(len(r["source_ids"]), [len(p) for p in r["candidate_ids"]]) for r in rows],
    )


if __name__ == "__main__":
    main()
