"""The benchmark libraries, imported late and apart: nothing they read, write or set at import
reaches beyond them.

alpaca_eval reads keys and endpoints from the environment when imported, loads any ``.env`` above
its folder and sets the root logger's level. FastChat's judging code imports every model adapter
(torch, transformers, anthropic) for one template.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import logging
import os
import sys
import threading
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from harness.records import HarnessError

_HIDDEN_PREFIXES = (
    *("OPENAI_", "ANTHROPIC_", "GOOGLE_", "COHERE_", "DATASETS_"),
    *("HUGGINGFACEHUB_", "API_MAX_", "IS_ALPACA_EVAL"),
)
_LOCK = threading.RLock()


@contextlib.contextmanager
def _isolated() -> Iterator[None]:
    """Environment, root logger and dotenv as they were, whatever an import does to them."""
    import dotenv

    kept = dict(os.environ)
    root = logging.getLogger()
    level = root.level
    load_dotenv = dotenv.load_dotenv
    for name in [name for name in os.environ if name.startswith(_HIDDEN_PREFIXES)]:
        del os.environ[name]
    os.environ.setdefault("LOGNAME", "selm")  # getpass.getuser() fails for a user id without a name
    dotenv.load_dotenv = lambda *_args, **_kwargs: False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        dotenv.load_dotenv = load_dotenv
        root.setLevel(level)
        for name in set(os.environ) - set(kept):
            del os.environ[name]
        os.environ.update(kept)


def _not_alpaca_evals(record: logging.LogRecord) -> bool:
    """Drops what alpaca_eval logs straight on the root logger (it prints whole answers there)."""
    theirs = f"{os.sep}alpaca_eval{os.sep}" in record.pathname
    return not theirs or f"{os.sep}harness{os.sep}" in record.pathname


@functools.cache
def alpaca_eval() -> Any:
    """The alpaca_eval package, imported without credentials, log messages and progress bars."""
    with _LOCK, _isolated():
        module = importlib.import_module("alpaca_eval")
        importlib.import_module("alpaca_eval.annotators")
        importlib.import_module("alpaca_eval.metrics.glm_winrate")
    logging.getLogger().addFilter(_not_alpaca_evals)
    # Its progress bars have no switch: one a chunk would fill the terminal of a study.
    quiet: Any = types.SimpleNamespace(tqdm=lambda iterable, **_kwargs: iterable)
    vars(sys.modules["alpaca_eval.utils"])["tqdm"] = quiet
    return module


@functools.cache
def ifeval() -> Any:
    """lm-eval's IFEval checkers by id (``INSTRUCTION_DICT``), with its ``utils`` as an attribute.

    Its import fetches NLTK's punkt_tab where that is not there, which only the kinds that count
    sentences or capital words need: nothing is fetched here. Language detection draws at random
    unless it is seeded, and an answer's score must not.
    """
    import langdetect

    with _LOCK, _fetching_nothing():
        registry: Any = importlib.import_module("lm_eval.tasks.ifeval.instructions_registry")
        registry.utils = importlib.import_module("lm_eval.tasks.ifeval.utils")
    langdetect.DetectorFactory.seed = 0
    return registry


@functools.cache
def ifbench() -> Any:
    """if-verifiable's IFBench checkers by id; its ``common`` checks an answer. May be absent."""
    with _LOCK, _fetching_nothing():
        try:
            registry: Any = importlib.import_module("if_verifiable.ifbench.instructions_registry")
            registry.common = importlib.import_module("if_verifiable.common")
        except ImportError as error:
            raise HarnessError(
                f"ifbench needs the package if-verifiable ({error}): pip install "
                "'selm-harness[ifbench]', or leave ifbench out of evaluation.benchmarks"
            ) from None
    return registry


@contextlib.contextmanager
def _fetching_nothing() -> Iterator[None]:
    """NLTK without a network and without its prints."""
    import nltk

    download, nltk.download = nltk.download, lambda *_args, **_kwargs: False
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        nltk.download = download


def _stub(name: str, **attributes: Any) -> types.ModuleType:
    module = types.ModuleType(name)
    vars(module).update(attributes)
    return module


@functools.cache
def fastchat() -> Any:
    """``fastchat.llm_judge.gen_judgment`` with its ``common`` module as attribute ``common``:
    FastChat's own code, imported in 0.3 s.

    The network clients (openai, anthropic) are never called by us, and of the model adapters only
    the conversation template is used, which for every OpenAI-style judge is ``chatgpt``: those
    modules are replaced while the import lasts. Ours is a private copy; ``import
    fastchat.llm_judge.common`` elsewhere still gives the full one.
    """
    with _LOCK, _isolated():
        conversation = importlib.import_module("fastchat.conversation")

        def template(_judge: str) -> Any:
            return conversation.get_conv_template("chatgpt")

        adapter = {"get_conversation_template": template, "load_model": None}
        lists: dict[str, Any] = {"ANTHROPIC_MODEL_LIST": (), "OPENAI_MODEL_LIST": ()}
        ours = ("fastchat.llm_judge.common", "fastchat.llm_judge.gen_judgment")
        stubs = {name: _stub(name) for name in ("openai", "anthropic")}
        models = ("fastchat.model", "fastchat.model.model_adapter")
        stubs |= {name: _stub(name, **adapter, **lists) for name in models}
        before = {name: sys.modules.pop(name, None) for name in (*stubs, *ours)}
        sys.modules.update(stubs)
        try:
            common = importlib.import_module(ours[0])
            module: Any = importlib.import_module(ours[1])
        finally:
            package = sys.modules.get("fastchat.llm_judge")
            for name in before:
                sys.modules.pop(name, None)
            for name, old in before.items():
                leaf = name.rpartition(".")[2]
                if old is not None:
                    sys.modules[name] = old
                if name in ours and package is not None and hasattr(package, leaf):
                    delattr(package, leaf) if old is None else setattr(package, leaf, old)
    module.common = common
    return module


@contextlib.contextmanager
def fastchat_completions(
    complete: Callable[[list[dict[str, str]]], str], judge: str
) -> Iterator[Any]:
    """FastChat's module while ``complete(messages)`` is its call of ``judge``; prints nothing."""
    module = fastchat()

    def chat_completion_openai(
        _model: str, conv: Any, temperature: float, max_tokens: int, api_dict: Any = None
    ) -> str:
        del temperature, max_tokens, api_dict
        return complete(conv.to_openai_api_messages())

    with _LOCK:
        old = (module.common.chat_completion_openai, module.common.OPENAI_MODEL_LIST)
        module.common.chat_completion_openai = chat_completion_openai
        module.common.OPENAI_MODEL_LIST = (judge,)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                yield module
        finally:
            module.common.chat_completion_openai, module.common.OPENAI_MODEL_LIST = old


def library_length_controlled(annotations: Any, gamed_csv: Path) -> dict[str, float]:
    """alpaca_eval's unmodified ``get_length_controlled_winrate`` with ``df_gamed.csv`` from a local
    file. Nothing is written.

    annotations: DataFrame with preference (1..2), output_1, output_2, generator_1, generator_2;
    gets a column ``glm_preference``. The difficulty is looked up by its **index label**: give the
    position in the file, or leave 0..n-1 for the library's join by position.
    """
    import sklearn

    library = alpaca_eval()
    glm = sys.modules["alpaca_eval.metrics.glm_winrate"]
    # The library switches metadata routing on for the whole process.
    with _LOCK, warnings.catch_warnings(), sklearn.config_context():
        warnings.simplefilter("ignore")
        old = glm.hf_hub_download  # type: ignore[attr-defined]
        glm.hf_hub_download = lambda *_args, **_kwargs: str(gamed_csv)  # type: ignore[attr-defined]
        try:
            fit = library.metrics.get_length_controlled_winrate
            return dict(fit(annotations, save_weights_dir=None))
        finally:
            glm.hf_hub_download = old  # type: ignore[attr-defined]
