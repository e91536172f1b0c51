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
from unittest import mock

from harness.records import HarnessError

_HIDDEN_PREFIXES = (
    *("OPENAI_", "ANTHROPIC_", "GOOGLE_", "COHERE_", "DATASETS_"),
    *("HUGGINGFACEHUB_", "API_MAX_", "IS_ALPACA_EVAL"),
)
_LOCK = threading.RLock()
_FETCHING_NOTHING = mock.patch("nltk.download", return_value=False)


@contextlib.contextmanager
def _isolated() -> Iterator[None]:
    """Environment, root logger and dotenv as they were, whatever an import does to them."""
    root = logging.getLogger()
    level = root.level
    with (
        mock.patch.dict(os.environ),
        mock.patch("dotenv.load_dotenv", return_value=False),
        warnings.catch_warnings(action="ignore"),
    ):
        for name in [name for name in os.environ if name.startswith(_HIDDEN_PREFIXES)]:
            del os.environ[name]
        os.environ.setdefault("LOGNAME", "selm")  # getpass.getuser() fails for an id without a name
        try:
            yield
        finally:
            root.setLevel(level)


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

    with _LOCK, _FETCHING_NOTHING, contextlib.redirect_stdout(io.StringIO()):
        registry: Any = importlib.import_module("lm_eval.tasks.ifeval.instructions_registry")
        registry.utils = importlib.import_module("lm_eval.tasks.ifeval.utils")
    langdetect.DetectorFactory.seed = 0
    return registry


@functools.cache
def ifbench() -> Any:
    """if-verifiable's IFBench checkers by id; its ``common`` checks an answer. May be absent."""
    with _LOCK, _FETCHING_NOTHING, contextlib.redirect_stdout(io.StringIO()):
        try:
            registry: Any = importlib.import_module("if_verifiable.ifbench.instructions_registry")
            registry.common = importlib.import_module("if_verifiable.common")
        except ImportError as error:
            raise HarnessError(
                f"ifbench needs the package if-verifiable ({error}): pip install "
                "'selm-harness[ifbench]', or leave ifbench out of evaluation.benchmarks"
            ) from None
    return registry


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
        template = importlib.import_module("fastchat.conversation").get_conv_template
        ours = ("fastchat.llm_judge.common", "fastchat.llm_judge.gen_judgment")
        stubs = {name: types.ModuleType(name) for name in ("openai", "anthropic")}
        for name in ("fastchat.model", "fastchat.model.model_adapter"):
            stubs[name] = stub = types.ModuleType(name)
            vars(stub).update(load_model=None, ANTHROPIC_MODEL_LIST=(), OPENAI_MODEL_LIST=())
            vars(stub)["get_conversation_template"] = lambda _judge: template("chatgpt")
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

    def chat_completion_openai(_model: str, conv: Any, **_sampling: Any) -> str:
        return complete(conv.to_openai_api_messages())

    asking = mock.patch.multiple(
        module.common, chat_completion_openai=chat_completion_openai, OPENAI_MODEL_LIST=(judge,)
    )
    with _LOCK, asking, contextlib.redirect_stdout(io.StringIO()):
        yield module


def library_length_controlled(annotations: Any, gamed_csv: Path) -> dict[str, float]:
    """alpaca_eval's unmodified ``get_length_controlled_winrate`` with ``df_gamed.csv`` from a local
    file. Nothing is written.

    annotations: DataFrame with preference (1..2), output_1, output_2, generator_1, generator_2;
    gets a column ``glm_preference``. The difficulty is looked up by its **index label**: give the
    position in the file, or leave 0..n-1 for the library's join by position.
    """
    import sklearn

    fit = alpaca_eval().metrics.get_length_controlled_winrate
    place = "alpaca_eval.metrics.glm_winrate.hf_hub_download"
    file = mock.patch(place, return_value=str(gamed_csv))
    # The library switches metadata routing on for the whole process.
    with _LOCK, file, warnings.catch_warnings(action="ignore"), sklearn.config_context():
        return dict(fit(annotations, save_weights_dir=None))
