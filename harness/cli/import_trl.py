"""``selm import-trl``: a TRL configuration as a study and its recipe.

What a file sets is read over the defaults of TRL's own dataclasses, so that a default of TRL's that
is not ours is written out. A field is read by one of the functions below, which write our keys, or
it is listed with its line: nothing is dropped.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from harness.cli.options import lazily
from harness.records import HarnessError

with lazily():
    import yaml

    from harness.cli import console as shown
    from harness.cli import trl_fields
    from harness.cli.trl_fields import Configuration, Note
    from harness.study import optimizers
    from harness.study import study as studies
    from harness.train import objectives

# -- our sections ----------------------------------------------------------------------------------
Section = dict[str, Any]
SAME = ("learning_rate", "weight_decay", "max_grad_norm", "gradient_checkpointing")
"""Fields that are keys of ``training`` by the same name."""
DTYPES = ("auto", "bfloat16", "float16", "float32")
PAIRRM = "llm-blender/PairRM-hf"


def recipe_of(given: Configuration, processes: int, draws: int) -> Section:
    """The recipe as a mapping. processes: that train at once. draws: how often new pairs are drawn
    in one pass over the prompts (online methods).
    """
    recipe: Section = {"title": f"{given.method}, from {given.path.name} of TRL"}
    training = _training(given, processes) | _lengths(given)
    recipe["model"] = _model(given)
    recipe["data"] = _data(given)
    steps = given.take("max_steps")
    if steps > 0:
        training["epochs"] = 1
        recipe["data"]["prompts"] = steps * training["batch_size"]
        given.note("max_steps", f"data.prompts: so many rows are {steps} steps of one pass")
    training |= _lora(given)
    answer = training["max_length"] - training["max_prompt_length"]
    if given.offline:
        recipe |= _offline(given)
        answer = answer if answer > 1 else training["max_length"] // 2
    else:
        recipe |= _online(given, training, draws)
        answer = recipe["exploration"]["max_new_tokens"]
    recipe["training"] = training
    recipe["evaluation"] = {"benchmarks": ["heldout"], "heldout_max_new_tokens": answer}
    recipe["diagnostics"] = {"max_new_tokens": answer}
    recipe["runtime"] = _runtime(given, processes)
    return recipe


def _model(given: Configuration) -> Section:
    source = given.take("model_name_or_path")
    if source is None:
        raise given.refuse("model_name_or_path", "a study needs the model to start from")
    made: Section = {"source": source, "dtype": _dtype(given)}
    if given.take("model_revision") != "main":
        made["revision"] = given.take("model_revision")
    if given.take("trust_remote_code"):
        made["trust_remote_code"] = source
    attention = given.take("attn_implementation")
    if given.take("use_flash_attention_2"):
        attention = "flash_attention_2"
    own = ("sdpa", "eager", "flash_attention_2", "flex_attention")
    if attention in own or str(attention).startswith("kernels-community/"):
        made["attention"] = attention
    elif attention:
        given.note("attn_implementation", "model.attention has no such form: its default")
    if not given.offline and given.take("use_vllm"):
        made["generation_backend"] = "vllm"
    return made


def _dtype(given: Configuration) -> str:
    """``bfloat16`` here is TRL's bf16: mixed precision over float32 weights."""
    half, stored = given.take("fp16"), given.take("dtype")
    field = "torch_dtype" if given.values.get("torch_dtype") else "dtype"
    stored = given.take("torch_dtype") or stored
    if stored not in DTYPES:
        raise given.refuse(field, f"{stored} is none of {', '.join(DTYPES)}")
    mixed = given.values.get("bf16")
    given.read.add("bf16")
    if half or stored == "float16":
        given.note("fp16" if half else field, "there is no float16: model.dtype bfloat16")
        return "bfloat16"
    if stored == "bfloat16" and not given.take("use_peft"):
        given.note(field, "weights in training stay float32, and compute in bfloat16")
        return "bfloat16"
    return "float32" if mixed is False and stored != "bfloat16" else "bfloat16"


def _data(given: Configuration) -> Section:
    """``datasets``, the handbook's ``dataset_mixture`` or ``dataset_mixer``, ``dataset_name``."""
    listed = [dataclasses.asdict(one) for one in given.take("datasets")]
    mixture = given.take("dataset_mixture") or {"datasets": []}
    if "datasets" not in mixture:
        raise given.refuse("dataset_mixture", "it holds no list named datasets")
    parts = listed or mixture["datasets"]
    if parts:
        return _first_part(given, "datasets" if listed else "dataset_mixture", parts)
    mixer = given.take("dataset_mixer") or {}
    if mixer:
        name, splits = next(iter(mixer)), given.take("dataset_splits")
        if len(mixer) > 1 or mixer[name] != 1:
            given.differs("dataset_mixer", "all of the first is read; join them in a file")
        if len(splits) > 2:
            given.differs("dataset_splits", "the first is trained on, the last is held out")
        return _hub(name, splits[0], splits[-1])
    name = given.take("dataset_name")
    if not name:
        raise given.refuse("dataset_name", "a study needs data: dataset_name or datasets")
    return _hub(name, given.take("dataset_train_split"), given.take("dataset_test_split"))


def _hub(name: str, split: str, heldout: str) -> Section:
    return {"source": "hub", "path": name, "train_split": split, "heldout_split": heldout}


def _first_part(given: Configuration, field: str, parts: list[Section]) -> Section:
    """The first of a mixture; the first after it that is a test split is held out."""
    first, others = parts[0], parts[1:]
    held = [one.get("split") for one in others if "test" in str(one.get("split"))]
    keys = ("name", "config", "data_dir", "fraction", "weight")
    odd = [key for key in keys if first.get(key) not in (None, "default", 1.0)]
    if others:
        given.differs(field, "the first is trained on; join them in a file")
    if odd:
        given.differs(field, f"{', '.join(odd)}: data has no such key")
    files = first.get("data_files")
    if files:
        named = files if isinstance(files, dict) else {"": files}
        path = named.get(first.get("split") or "train", next(iter(named.values())))
        listed = [path] if isinstance(path, str) else path
        if len(named) > 1 or len(listed) > 1:
            given.differs(field, f"of data_files {listed[0]} is read; data.path is one file")
        return {"source": "files", "path": listed[0]}
    name = first.get("path") or first.get("id")
    return _hub(str(name), first.get("split") or "train", str(next(iter(held), "test")))


def _training(given: Configuration, processes: int) -> Section:
    made = {name: given.take(name) for name in SAME}
    if given.values.get("max_grad_norm", 1.0) is None:
        made["max_grad_norm"] = 0.0  # null and 0 are no clipping
    checkpointing = given.take("activation_checkpointing")
    if checkpointing is not None:
        made["gradient_checkpointing"] = checkpointing
    rows = given.take("per_device_train_batch_size")
    steps = given.take("gradient_accumulation_steps")
    made["batch_size"] = rows * steps * processes
    said = f"training.batch_size: {rows} × {steps} × {processes} processes (--processes)"
    given.note("per_device_train_batch_size", said)
    epochs = given.take("num_train_epochs")
    made["epochs"] = max(1, round(epochs))
    if epochs != made["epochs"]:
        given.differs("num_train_epochs", f"training.epochs: {made['epochs']}")
    made["warmup_ratio"] = _warmup(given)
    made["scheduler"] = _scheduler(given, made["warmup_ratio"])
    made["optimizer"] = given.take("optim")
    try:
        optimizers.known(made["optimizer"])
    except ValueError as error:
        raise given.refuse("optim", str(error)) from None
    return made


def _warmup(given: Configuration) -> float:
    """A share of the steps; transformers reads ``warmup_steps`` below 1 as one."""
    steps, whole = given.take("warmup_steps"), given.take("max_steps")
    if 0 < steps < 1:
        return float(steps)
    if steps and whole > 0:
        return float(min(1.0, steps / whole))
    if steps:
        given.differs("warmup_steps", "set training.warmup_ratio to its share")
    return float(given.take("warmup_ratio") or 0.0)


def _scheduler(given: Configuration, warmup: float) -> str:
    name = given.take("lr_scheduler_type")
    if name == "constant_with_warmup" and not warmup:
        return "constant"
    if name in ("cosine", "linear", "constant"):
        return str(name)
    given.differs("lr_scheduler_type", "no such schedule here; cosine is written")
    return "cosine"


def _lengths(given: Configuration) -> Section:
    """TRL cuts a row at ``max_length``; with ``max_prompt_length`` it cut the prompt first."""
    longest, prompt = given.take("max_length"), given.take("max_prompt_length")
    if given.values.get("max_length", longest) is None:
        raise given.refuse("max_length", "give a number of tokens: rows need a limit here")
    if prompt is not None:
        if prompt >= longest:
            raise given.refuse("max_prompt_length", f"leaves no room within max_length {longest}")
        made = {"max_length": longest, "max_prompt_length": prompt}
        if given.offline:
            made["truncation"] = "prompt_first"
            told = "cut as before TRL 0.12 (truncation); it then cut each longer prompt to it"
            given.note("max_prompt_length", told)
        return made
    if given.offline:
        room = longest - 1
        given.note("max_length", "training.max_prompt_length: one token less, as TRL has no limit")
    else:
        room = longest - given.take("max_new_tokens")
        if room < 1:
            raise given.refuse("max_new_tokens", f"leaves no room within max_length {longest}")
    return {"max_length": longest, "max_prompt_length": room}


def _lora(given: Configuration) -> Section:
    if not given.take("use_peft"):
        for field in given.values:
            if field.startswith("lora_"):
                given.take(field)
                given.note(field, "nothing: use_peft is off")
        return {}
    modules = given.take("lora_target_modules")
    if not modules:
        modules = ["q_proj", "v_proj"]
        given.note(
            "lora_target_modules",
            "peft's own for Llama, Mistral, Qwen and Gemma are written; other models: check",
        )
    one = modules if isinstance(modules, str) else modules[0]
    dropout, off = given.take("lora_dropout"), given.take("disable_dropout")
    if off:
        given.note("lora_dropout", "0: TRL's disable_dropout switches the adapters' off too")
    else:
        given.differs("disable_dropout", "the adapters keep theirs; the model's own is off")
    lora = {
        "r": given.take("lora_r"),
        "alpha": given.take("lora_alpha"),
        "dropout": 0.0 if off else dropout,
        "target_modules": one if one == "all-linear" else modules,
    }
    return {"lora": _four_bits(given) | lora}


def _four_bits(given: Configuration) -> Section:
    """QLoRA: NF4 with double quantisation is the one form here."""
    if not given.take("load_in_4bit"):
        return {}
    form = given.take("bnb_4bit_quant_type")
    if form != "nf4":
        given.differs("bnb_4bit_quant_type", "training.lora.base is nf4")
    if not given.take("use_bnb_nested_quant"):
        given.differs("use_bnb_nested_quant", "training.lora.base nf4 quantises its scales too")
    return {"base": "nf4"}


def _offline(given: Configuration) -> Section:
    """Labelled pairs: one iteration from the start model, which is the reference where one is."""
    sources = ("datasets", "dataset_mixture", "dataset_mixer", "dataset_name")
    source = next(field for field in sources if given.values.get(field))
    given.note(source, "rows of text get the chat template; TRL trains such rows as they stand")
    if "router_aux_loss_coef" in given.fields and "router_aux_loss_coef" not in given.values:
        told = "for a mixture of experts TRL adds its balancing loss; there is none here"
        given.note("router_aux_loss_coef", told)
    made: Section = {"objective": {"name": "orpo", "beta": given.take("beta")}}
    if given.method == "dpo":
        made["objective"] = _dpo(given)
    else:
        told = "NLL of the answer's tokens, a mean over rows; TRL's: the prompt's too, over tokens"
        given.differs("beta", f"objective orpo: {told}")
    made["loop"] = {"mode": "stepwise", "iterations": 1, "reference_policy": "fixed"}
    if given.take("max_prompt_length") is not None:
        made["exploration"] = {"overlong_prompts": "keep"}
    return made | {"ranker": {"kind": "pairrm", "model": PAIRRM}}


def _dpo(given: Configuration) -> Section:
    """The objective of ``loss_type`` and what goes with it."""
    params: dict[str, float] = {}
    losses, weight = given.take("loss_type"), None
    if set(losses) == {"sigmoid", "sft"} and len(losses) == 2:
        pair = dict(zip(losses, given.take("loss_weights") or [1.0, 1.0], strict=True))
        if pair["sigmoid"] == 1:
            losses, weight = ["sigmoid"], pair["sft"]
    known = {
        one.trl.split()[1]: name
        for name, one in objectives.OBJECTIVES.items()
        if one.trl.startswith("DPOTrainer ")
    }
    if len(losses) > 1 or losses[0] not in known:
        there = f"there are {', '.join(known)}, and sigmoid (weight 1) + sft"
        raise given.refuse("loss_type", f"{' + '.join(losses)} is no objective here; {there}")
    if given.take("f_divergence_type") != "reverse_kl":
        raise given.refuse("f_divergence_type", "objectives here have reverse_kl alone")
    name = known[losses[0]]
    if name == "dpo":
        weight = weight or given.take("rpo_alpha")
        if weight:
            name, params = "rpo", {"weight": weight}
            given.note("loss_type", "objective rpo: NLL per token, a mean over rows, not tokens")
        elif given.take("use_weighting"):
            name = "wpo"
            given.note("use_weighting", "objective wpo: without TRL's alignment of the weights")
    if "epsilon" in objectives.OBJECTIVES[name].parameters:
        params["epsilon"] = given.take("label_smoothing")
    made: Section = {"name": name, "beta": given.take("beta")}
    return made | ({"params": params} if params else {})


def _online(given: Configuration, training: Section, draws: int) -> Section:
    """Pairs of own samples, drawn anew ``draws`` times in every pass over the prompts."""
    passes, training["epochs"] = training["epochs"], 1
    loss, betas = given.take("loss_type"), given.take("beta")
    known = {"sigmoid": "xpo"} if given.method == "xpo" else {"sigmoid": "dpo", "ipo": "ipo"}
    if loss not in known:
        raise given.refuse("loss_type", f"{loss} is no objective here; there are {[*known]}")
    objective: Section = {"name": known[loss]}
    if given.method == "xpo":
        alphas = _per_iteration(given.take("alpha"), draws)
        objective |= {"alpha": alphas, "params": {"clip": 1e6}}
    objective["beta"] = _per_iteration(betas, draws)
    carried = "iterative" if "lora" in training else "online"
    if carried == "iterative":
        given.differs("use_peft", "each iteration has a new optimiser (loop.mode)")
    given.note(
        "num_train_epochs",
        f"loop: {passes} passes, new pairs {draws} times in each (--draws); TRL: at every step",
    )
    drawn = {"temperature": given.take("temperature"), "top_p": given.take("top_p")}
    first = given.method == "xpo"
    loop = {"mode": carried, "iterations": passes * draws, "portions": draws}
    exploration = {
        "policy": "first" if first else "current",
        "max_new_tokens": given.take("max_new_tokens"),
        "overlong_prompts": "truncate",
    }
    pairs = {"rule": "best_worst", "offline": False, "y": int(first), "current": 2 - int(first)}
    return {
        "objective": objective,
        "loop": loop | {"reference_policy": "fixed"},
        "exploration": exploration | drawn,
        "pairs": pairs | drawn,
        "ranker": _ranker(given),
    }


def _per_iteration(values: Any, draws: int) -> Any:
    """One number, or one for each pass of ``draws`` iterations."""
    listed = values if isinstance(values, list) else [values]
    repeated = [value for value in listed for _ in range(draws)]
    return listed[0] if len(listed) == 1 else repeated


def _ranker(given: Configuration) -> Section:
    path = given.take("reward_model_path")
    if path:
        return {"kind": "reward_model", "model": path}
    judge = given.take("judge")
    if judge in ("pair_rm", None):
        field = "judge" if judge else "reward_model_path"
        given.note(field, f"ranker: PairRM ({PAIRRM}) says which answer is better")
        return {"kind": "pairrm", "model": PAIRRM}
    raise given.refuse("judge", "write ranker: {kind: judge} and a judge's profile by hand")


def _runtime(given: Configuration, processes: int) -> Section:
    rows, loggers = given.take("per_device_train_batch_size"), given.take("report_to")
    loggers = [loggers] if isinstance(loggers, str) else loggers or ["none"]
    made: Section = {"processes": processes, "micro_batch": rows, "report_to": loggers[0]}
    if not given.offline and given.take("use_vllm"):
        made["vllm_memory_share"] = given.take("vllm_gpu_memory_utilization")
        made["vllm_tensor_parallel"] = given.take("vllm_tensor_parallel_size")
    if len(loggers) > 1:
        given.note("report_to", f"runtime.report_to: {loggers[0]}")
    return made


# -- the command -----------------------------------------------------------------------------------
def import_trl(
    config: Annotated[
        Path, typer.Argument(help="YAML that TRL's script, or the alignment handbook's, reads.")
    ],
    method: Annotated[
        Literal["dpo", "orpo", "online-dpo", "xpo"], typer.Option(help="Whose configuration it is.")
    ] = "dpo",
    name: Annotated[str, typer.Option(help="The study's name; empty: the file's.")] = "",
    out: Annotated[Path, typer.Option(help="Folder of the two files.")] = Path(),
    processes: Annotated[
        int, typer.Option(min=1, help="Processes that accelerate starts: in no TRL file.")
    ] = 1,
    draws: Annotated[
        int, typer.Option(min=1, help="Online: how often a pass over the prompts draws new pairs.")
    ] = 1,
) -> None:
    """Write a study and its recipe from a configuration of TRL's DPO, ORPO, Online DPO or XPO.

    TRL's own defaults are written out. What has no counterpart is listed here and at the end of the
    study, with its line; fields that TRL does not have are errors.

    Example: selm import-trl dpo.yaml --processes 8
    """
    given = trl_fields.Configuration(config, method)
    name = name or f"{config.stem}_study"
    recipe = recipe_of(given, processes, draws)
    study = out / f"{name}.yaml"
    beside = out / f"{name}.recipe.yaml"
    there = [path for path in (study, beside) if path.exists()]
    if there:
        raise HarnessError(f"{there[0]} is there already; give another --name or --out")
    seed, notes = given.take("seed"), given.told()
    out.mkdir(parents=True, exist_ok=True)
    beside.write_text(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True))
    study.write_text(_study_text(given, name, beside.name, seed, notes))
    try:
        studies.load_study(study)
    except HarnessError:
        study.unlink()
        beside.unlink()
        raise
    shown.say(f"Wrote {shown.relative(study)} and {shown.relative(beside)}.")
    shown.table("", ("field", "value", "here"), notes, range(3))
    shown.say(f"Next: selm plan {shown.relative(study)} --cost")


def _study_text(given: Configuration, name: str, recipe: str, seed: int, notes: list[Note]) -> str:
    asked: Section = {
        "name": name,
        "question": f"How far does one run of {given.path.name} reach, over seeds?",
        "recipe": recipe,
        "seeds": [seed],
    }
    lines = [
        f"# From {given.path.name} of TRL ({given.method}), by selm import-trl.",
        "",
        yaml.safe_dump(asked, sort_keys=False, allow_unicode=True, width=1000),
        "# More seeds: seeds: [0, 1, 2, 3, 4]. Arms: axes: {objective.beta: [0.05, 0.1]}.",
        "",
        "# What became of fields that are not simply a key of the recipe:",
        *(f"#   {field}: {value}: {why}" for field, value, why in notes),
    ]
    return "\n".join(lines) + "\n"
