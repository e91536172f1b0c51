"""The ids are those of the stored tokenizer.json, whatever class the checkpoint names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from harness.model import tokenizer as stored_tokenizer
from harness.model.policy import load_tokenizer
from harness.records import HarnessError
from tests import tiny

DEBERTA = Path(__file__).parents[1] / "golden" / "pairrm" / "hf"


def pieces() -> Tokenizer:
    """As Llama 2's file: sentencepiece's normalisation as prepend and replace, byte fallback, no
    pre-tokenizer.
    """
    raw = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    raw.train_from_iterator(
        stored_tokenizer.PROBES,
        trainers.BpeTrainer(vocab_size=600, special_tokens=special, show_progress=False),
    )
    raw.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return raw


def folder(tmp_path: Path, raw: Tokenizer | None, **settings: object) -> Path:
    """A tiny Llama checkpoint with that tokenizer.json (None: byte-level, Llama 3's way) and
    changes to its tokenizer_config.json.
    """
    tiny.checkpoint(tmp_path / "model", "llama", "llama3")
    file = tmp_path / "model" / "tokenizer_config.json"
    if raw is None:
        before = json.loads(file.read_text())
    else:
        before = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        raw.save(str(tmp_path / "model" / "tokenizer.json"))
    file.write_text(json.dumps({**before, **settings}))
    return tmp_path / "model"


def checkpoints(tmp_path: Path) -> dict[str, Path]:
    return {
        "byte-level as Llama": folder(
            tmp_path / "bytes", None, tokenizer_class="LlamaTokenizerFast"
        ),
        "Llama 2": folder(
            tmp_path / "pieces", pieces(), tokenizer_class="LlamaTokenizer", legacy=False
        ),
        "DeBERTa": Path(shutil.copytree(DEBERTA, tmp_path / "deberta")),
    }


@pytest.mark.parametrize("name", ["byte-level as Llama", "Llama 2", "DeBERTa"])
def test_ids_are_the_files_where_the_class_named_gives_others(tmp_path: Path, name: str) -> None:
    path = checkpoints(tmp_path)[name]
    raw, loaded = Tokenizer.from_file(str(path / "tokenizer.json")), load_tokenizer(path)
    raw.no_truncation()
    raw.no_padding()
    for text in (*stored_tokenizer.PROBES, f"Hi{loaded.eos_token}\nthere"):
        assert loaded.encode(text) == raw.encode(text).ids
        ids = raw.encode(text, add_special_tokens=False).ids
        assert loaded.decode(ids) == raw.decode(ids, skip_special_tokens=False)
    named = AutoTokenizer.from_pretrained(path)
    assert (loaded.bos_token, loaded.eos_token, loaded.chat_template) == (
        named.bos_token,
        named.eos_token,
        named.chat_template,
    )
    loaded.save_pretrained(tmp_path / "saved")
    assert (
        Tokenizer.from_file(str(tmp_path / "saved" / "tokenizer.json")).encode(" two  ½").ids
        == raw.encode(" two  ½").ids
    )


def test_some_of_these_classes_do_give_others(tmp_path: Path) -> None:
    """Else the test above would show nothing: transformers' own choice loses spaces, or
    compatibility forms.
    """
    for name in ("Llama 2", "DeBERTa"):
        path = checkpoints(tmp_path / name)[name]
        stored = stored_tokenizer._read(path / "tokenizer.json")
        assert stored_tokenizer.first_difference(
            stored, AutoTokenizer.from_pretrained(path).backend_tokenizer, stored_tokenizer.PROBES
        )


def test_special_tokens_inside_a_text_are_compared_too() -> None:
    """Llama 2's file begins every piece between special tokens with a mark; a class that marks the
    first alone differs only there.
    """
    stored, other = pieces(), pieces()
    other.normalizer = None
    other.pre_tokenizer = pre_tokenizers.Metaspace(
        replacement="▁", prepend_scheme="first", split=False
    )
    text = "Hi</s>there"
    assert stored_tokenizer.first_difference(stored, other, ("Hi there",)) is None
    assert stored_tokenizer.first_difference(stored, other, (text,)) is not None
    assert text in stored_tokenizer._texts(
        stored, PreTrainedTokenizerFast(tokenizer_object=stored, eos_token="</s>")
    )


OWN = """
from transformers import PreTrainedTokenizer

class Own(PreTrainedTokenizer):
    vocab_files_names = {"vocab_file": "tokenizer.model"}
    vocab_size = 256

    def get_vocab(self):
        return {chr(i): i for i in range(256)} | self.added_tokens_encoder

    def _tokenize(self, text, **_):
        return list(text)

    def _convert_token_to_id(self, token):
        return ord(token)
"""


def test_a_sentencepiece_model_without_tokenizer_json_is_refused(tmp_path: Path) -> None:
    """The installed transformers makes other ids of it; a repository's own class reads it."""
    path = folder(tmp_path, None, tokenizer_class="LlamaTokenizer")
    (path / "tokenizer.json").unlink()
    shutil.copy(DEBERTA.parent / "spm.model", path / "tokenizer.model")
    with pytest.raises(HarnessError, match=r"tokenizer\.model but no tokenizer\.json.*Make tok"):
        load_tokenizer(path)
    (path / "own.py").write_text(OWN)
    settings = json.loads((path / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(HarnessError, match=r"tokenizer\.model but no"):
        load_tokenizer(path)
    assert type(load_tokenizer(path, trust_remote_code=str(path))).__name__ == "Own"


def test_a_class_that_agrees_with_its_file_is_kept(tmp_path: Path) -> None:
    path = folder(tmp_path, None, tokenizer_class="Qwen2Tokenizer")
    (path / "tokenizer.json").unlink()
    from transformers import Qwen2Tokenizer

    Qwen2Tokenizer(
        vocab={s: i for i, s in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, merges=[]
    ).save_pretrained(path)
    (path / "config.json").write_text(
        json.dumps({**json.loads((path / "config.json").read_text()), "model_type": "qwen2"})
    )
    assert type(stored_tokenizer.load(path)) is Qwen2Tokenizer


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("kind", ["GPT2Tokenizer", "LlamaTokenizerFast", "PreTrainedTokenizerFast"])
def test_a_prefix_space_set_beside_the_file_is_followed(
    tmp_path: Path, kind: str, asked: bool
) -> None:
    """The file has none; tokenizer_config.json decides, whatever the class."""
    path = folder(tmp_path, None, tokenizer_class=kind, add_prefix_space=asked)
    loaded = load_tokenizer(path)
    assert loaded.convert_ids_to_tokens(loaded.encode("Hi", add_special_tokens=False)) == [
        "Ġ"
    ] * asked + ["H", "i"]


def test_a_class_of_the_repositorys_own_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder(tmp_path, pieces(), tokenizer_class="LlamaTokenizer")

    class Own(PreTrainedTokenizerFast):  # type: ignore[misc]
        pass

    own = Own.from_pretrained(path)
    own.backend_tokenizer.normalizer = normalizers.Lowercase()
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *_, **__: own)
    assert stored_tokenizer.load(path, trust_remote_code=True) is own


def test_a_file_that_is_no_tokenizer_is_named(tmp_path: Path) -> None:
    path = folder(tmp_path, None)
    (path / "tokenizer.json").write_text("{}")
    with pytest.raises(
        HarnessError, match=r"cannot load the tokenizer|cannot be read as a tokenizer"
    ):
        load_tokenizer(path)
