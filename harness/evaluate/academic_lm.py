"""lm-eval's Hugging Face model around a loaded policy: batches by length, checked tokens, and
fences for what lm-eval does globally.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
from collections.abc import Callable, Iterator
from typing import Any

from harness.evaluate.academic_files import AcademicTask
from harness.records import HarnessError

LOGIT_BUDGET = {"cpu": 2**26, "cuda": 2**29}
"""Logits (rows × tokens × vocabulary) of one scoring batch; 4 bytes each, held twice."""
ROWS = 256
"""Most rows of one scoring batch."""


def language_model(policy: Any, settings: AcademicTask) -> Any:
    """lm-eval's HFLM around a loaded policy, with batches sized by length. Raises HarnessError if
    it would see other tokens.
    """
    from lm_eval.models.huggingface import HFLM

    budget = LOGIT_BUDGET["cuda" if policy.device.startswith("cuda") else "cpu"]

    class LengthBatchedLM(HFLM):  # type: ignore[misc]
        """HFLM whose batches follow the requests' lengths; it repeats no encoding of a context and
        counts the ones cut to fit.
        """

        shrink = 1
        cut = 0
        _last: tuple[str, list[int]] = ("", [])

        def tok_encode(
            self,
            string: str,
            add_special_tokens: bool | None = None,
            left_truncate_len: int | None = None,
            **kwargs: Any,
        ) -> list[int]:
            if add_special_tokens is not None or left_truncate_len:
                return list(
                    super().tok_encode(string, add_special_tokens, left_truncate_len, **kwargs)
                )
            if string != self._last[0]:
                self._last = (string, list(super().tok_encode(string)))
            return list(self._last[1])

        def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
            spaces = len(context) - len(context.rstrip())
            if spaces:
                context, continuation = context[:-spaces], context[-spaces:] + continuation
            start = self.tok_encode(context)
            whole = list(super().tok_encode(context + continuation))
            return start, whole[len(start) :]

        def _detect_batch_size(self, requests: Any = None, pos: int = 0) -> int:  # noqa: ARG002
            return max(1, settings.generation_batch // self.shrink)

        def _batch_scheduler(self, pos: int, n_reordered_requests: Any) -> int:
            _, context, continuation = n_reordered_requests[pos]
            logits = (len(context) + len(continuation)) * self.model.config.vocab_size
            return int(max(1, min(ROWS, budget // logits) // self.shrink))

        def _loglikelihood_tokens(self, requests: Any, *args: Any, **kwargs: Any) -> Any:
            self.cut += sum(
                len(context) + len(continuation) > self.max_length + 1
                for _, context, continuation in requests
            )
            return super()._loglikelihood_tokens(requests, *args, **kwargs)

        def tok_batch_encode(
            self, strings: Any, *args: Any, left_truncate_len: int | None = None, **kwargs: Any
        ) -> Any:
            if left_truncate_len:
                _, mask = super().tok_batch_encode(strings, *args, **kwargs)
                self.cut += int((mask.sum(1) > left_truncate_len).sum())
            return super().tok_batch_encode(
                strings, *args, left_truncate_len=left_truncate_len, **kwargs
            )

    lm = LengthBatchedLM(pretrained=policy.model, tokenizer=policy.tokenizer, batch_size="auto")
    if settings.chat_template:
        check_tokens(lm, policy.tokenizer)
    return lm


def check_tokens(lm: Any, tokenizer: Any) -> None:
    """lm-eval must feed the tokens that training and sampling use: same special tokens, one BOS at
    most, in both of its encoders.
    """
    from harness.model.policy import encode_prompt

    for turns in (1, 3):
        messages = [
            {"role": role, "content": "Hello there"}
            for role in ("user", "assistant", "user")[:turns]
        ]
        text = lm.apply_chat_template(messages)
        expected = encode_prompt(tokenizer, messages)
        batched, _ = lm.tok_batch_encode([text])
        for found in (lm.tok_encode(text), batched[0].tolist()):
            if found != expected:
                shown = " ".join(map(repr, tokenizer.convert_ids_to_tokens(found)))
                wanted = " ".join(map(repr, tokenizer.convert_ids_to_tokens(expected)))
                raise HarnessError(
                    "lm-eval would read other tokens than the policy was trained on. lm-eval: "
                    f"{shown}. Training: {wanted}"
                )


@contextlib.contextmanager
def compiled_templates() -> Iterator[None]:
    """Compile each prompt template once: lm-eval compiles it again for every document, which costs
    more than a small model.
    """
    from lm_eval import utils

    environment = utils.env
    original = environment.from_string
    environment.from_string = functools.lru_cache(maxsize=256)(original)
    try:
        yield
    finally:
        environment.from_string = original


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars, prints or warnings of the libraries; errors still show."""
    import datasets
    from transformers.utils import logging as transformers_logging

    undo: list[Callable[[], object]] = []
    for name in ("lm_eval", "datasets"):
        logger = logging.getLogger(name)
        undo.append(functools.partial(logger.setLevel, logger.level))
        logger.setLevel(logging.ERROR)
    verbosity = transformers_logging.get_verbosity()
    undo.append(functools.partial(transformers_logging.set_verbosity, verbosity))
    transformers_logging.set_verbosity_error()
    if datasets.is_progress_bar_enabled():
        datasets.disable_progress_bars()
        undo.append(datasets.enable_progress_bars)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        for step in undo:
            step()
