"""Scripts that train: their flags as settings of `glm finetune`, then answers and scores by `glm generate`."""

import math
from pathlib import Path

from glmkit.checkpoint.run_directory import is_run
from glmkit.errors import RequestError

from .command_line import Given
from .prediction import beam_options, device_options, quantize_option
from .prefix_flags import check_prefix_flags
from .translation import Machine, Options, Step, Translation, plain_options

_COLUMNS = {"prompt_column": "prompt", "response_column": "response", "history_column": "history"}
_BELLE = "bellegroup"
_BELLE_SHARE = 0.01  # of the rows for evaluation, as the example's own script divides the sets
# Reporters that stand for the files which every run has.
_LOCAL = ("none", "all", "visualdl")
_FP32 = "--{0}: PyTorch sees no CUDA here, and fp16 is trained on CUDA alone; this run computes in float32"


def tune(given: Given, machine: Machine) -> Translation:
    """Raise RequestError where the flags ask for nothing or contradict each other."""
    translation, script = Translation(), given.script
    trains = script.always_trains or bool(given.values["do_train"])
    if trains:
        translation.steps.append(_finetune(given, machine, translation))
    model = str(given.values["output_dir"] if trains else given.values.get("model_name_or_path"))
    for name in ("do_eval", "do_predict"):
        if given.values[name] and script.always_trains:
            translation.note(f"--{name}: {script.title} only trains; glm generate answers and scores")
        elif given.values[name] and script.loss_alone:
            translation.note(f"--{name}: the loss of the validation rows, as in the original's last version")
        elif given.values[name]:
            translation.steps.append(_score(given, machine, translation, model, name, trained=trains))
    if not translation.steps:
        step = "add --do_train, --do_eval or --do_predict"
        raise RequestError(f"{script.title} has nothing to do", step=step, param="do_train")
    return translation


def _flag_names(given: Given) -> set[str]:
    return {item.name for item in given.script.flags}


def _finetune(given: Given, machine: Machine, translation: Translation) -> Step:
    options = plain_options(given, "finetune")
    recipe = _method(given, options)
    _length(given, options)
    _precision(given, machine, options, translation)
    nproc = _devices(given, machine, options, translation)
    _rhythm(given, options, translation)
    _reporting(given, options, translation)
    _data_options(given, options, translation)
    if given.values.get("ignore_pad_token_for_loss") is False:
        options.set("data.quirks", "counted_padding")
    aside = _resumption(given, options, translation)
    options.by_section()
    words = ["finetune", recipe, *options.words(), *(["--nproc", str(nproc)] if nproc > 1 else []), *given.native]
    return Step(tuple(words), aside=aside)


def _method(given: Given, options: Options) -> str:
    """Set the weights that are trained; the name of the recipe, of which every key that matters is set anyway."""
    flags = _flag_names(given)
    if "pre_seq_len" in flags:
        model = given.text("model_name_or_path")
        options.set("model.base", model)
        bits = given.whole("quantization_bit")
        if bits not in (None, 4, 8):
            raise RequestError(f"--quantization_bit is {bits}", step="give 4 or 8", param="quantization_bit")
        options.set("model.quantization_bit", bits)
        options.set("model.adapter", given.text("ptuning_checkpoint"))
        length = given.whole("pre_seq_len")
        if length is None:
            if bits is not None:
                raise RequestError(
                    f"--quantization_bit {bits} trains a prefix or LoRA alone, not all weights",
                    step="add --pre_seq_len, or leave it out",
                    param="quantization_bit",
                )
            options.set("tuning.method", "full")
            return "full"
        options.set("tuning.method", "prefix")
        options.set("adapter.length", length)
        options.set("adapter.projection", given.values["prefix_projection"])
        return "ptuning"
    if "lora" in flags:
        if not given.values["lora"]:
            options.set("tuning.method", "full")
            if "r" in given.named:
                raise RequestError("--r is the rank of LoRA", step="add --lora True", param="r")
            return "full"
        options.set("tuning.method", "lora")
        options.set("adapter.rank", given.values["r"])
        for name, value in given.script.facts.items():
            if name.startswith("lora "):
                options.set(name.removeprefix("lora "), value)
    return "lora"


def _length(given: Given, options: Options) -> None:
    steps, warmup = given.whole("max_steps") or -1, given.whole("warmup_steps") or 0
    if steps > 0:
        options.set("training.max_steps", steps)
    else:
        options.set("training.num_epochs", given.values["num_train_epochs"])
    if warmup > 0:
        options.set("schedule.warmup_steps", warmup)
    else:
        options.set("schedule.warmup_ratio", given.values["warmup_ratio"])


def _precision(given: Given, machine: Machine, options: Options, translation: Translation) -> None:
    fp16, bf16, level = (given.values[name] for name in ("fp16", "bf16", "fp16_opt_level"))
    if fp16 and bf16:
        raise RequestError("both --fp16 and --bf16 were given", step="leave one out", param="bf16")
    precision = "fp32" if not (fp16 or bf16) or level == "O0" else "fp16" if fp16 else "bf16"
    if precision == "fp16" and not machine.float16:
        translation.note(_FP32.format("fp16"))
        precision = "fp32"
    options.set("training.precision", precision)
    if precision != "fp32":
        options.set("training.opt_level", level)
    if given.values.get("gradient_checkpointing"):
        options.set("training.recompute", True)


def _devices(given: Given, machine: Machine, options: Options, translation: Translation) -> int:
    """Set the accumulation; processes to start. The rows of a step are those that the original's devices took."""
    cpu = bool(given.values["no_cuda"]) or given.values.get("device") == "cpu"
    if cpu:
        options.set("training.device", "cpu")
    asked = given.launch.processes or machine.ranks or 1
    parts = 1
    for name in ("tensor_parallel_degree", "pipeline_parallel_degree"):
        degree = given.whole(name) or 1
        if degree > 1:
            parts *= degree
            translation.note(f"--{name} {degree}: models are not cut over devices yet; each process holds all of it")
    if asked % parts and asked != 1:
        raise RequestError(
            f"{asked} processes cannot hold a model in {parts} parts", step=f"give a multiple of {parts}"
        )
    copies = max(1, asked // parts)
    here = 1 if cpu else max(1, machine.accelerators)
    nproc = copies if machine.ranks else math.gcd(copies, here)
    accumulation = (given.whole("gradient_accumulation_steps") or 1) * (copies // nproc)
    options.set("training.gradient_accumulation_steps", accumulation)
    if copies > nproc:
        device = "one process" if nproc == 1 else f"{nproc} processes"
        translation.note(
            f"{copies} copies of the model were asked for and {device} can run here: a step accumulates "
            f"{copies // nproc} times as much, so it has the same rows"
        )
    return 1 if machine.ranks else nproc


def _rhythm(given: Given, options: Options, translation: Translation) -> None:
    every, strategy = given.whole("eval_steps") or 0, given.values["evaluation_strategy"]
    scored = bool(given.values["do_eval"]) or strategy != "no"
    if (strategy == "steps" or (scored and given.script.loss_alone)) and not every:
        every = given.whole("logging_steps") or 0
    if strategy == "epoch":
        translation.note("--evaluation_strategy epoch: evaluated at the end; --eval_steps N sets a rhythm")
    if every and not scored and not _has_validation(given):
        translation.note(f"--eval_steps {every}: there are no validation rows to evaluate on")
        every = 0
    options.set("evaluation.every", every)
    steps, limit = given.whole("save_steps") or 0, given.whole("save_total_limit") or 0
    options.set("checkpoint.every", 0 if given.values["save_strategy"] == "no" else steps)
    if limit > 0:
        options.set("checkpoint.keep_last", limit)
    elif steps > 0:
        options.set("checkpoint.keep_every", steps)


def _has_validation(given: Given) -> bool:
    names = _flag_names(given)
    return given.values.get("validation_file") is not None or ("task_name" in names)


def _reporting(given: Given, options: Options, translation: Translation) -> None:
    if given.values["disable_tqdm"]:
        options.turn_on("quiet")
    options.set("output.log_every", max(1, given.whole("logging_steps") or 1))
    names = given.values["report_to"] or []
    assert isinstance(names, list)
    local = [name for name in names if name in _LOCAL]
    if local and local != ["none"]:
        translation.note(f"--report_to {' '.join(local)}: metrics.jsonl and loss.png of the run directory")
    options.set("output.report_to", [name for name in names if name not in _LOCAL])
    metric = given.text("metric_for_best_model")
    if given.values["load_best_model_at_end"]:
        options.set("checkpoint.export", "best")
        metric = metric or "loss"
    options.set("checkpoint.best", "null" if metric is None else metric.removeprefix("eval_"))


def _resumption(given: Given, options: Options, translation: Translation) -> Path | None:
    """Set what is gone on with; the directory from which an earlier run is moved away instead."""
    directory = Path(str(given.values["output_dir"])).expanduser()
    checkpoint = given.text("resume_from_checkpoint")
    if checkpoint is not None:
        options.set("resume", checkpoint)
    elif given.values["overwrite_output_dir"]:
        return directory
    elif given.script.resumes:
        options.set("resume", "auto")
        if is_run(directory):
            translation.note(f"{directory} holds a run, which goes on; --overwrite_output_dir moves it aside instead")
    elif is_run(directory):
        raise RequestError(
            f"{directory} holds a run already",
            step="add --overwrite_output_dir, which moves it aside, or --resume_from_checkpoint auto",
            param="output_dir",
        )
    return None


def _score(given: Given, machine: Machine, translation: Translation, model: str, stage: str, *, trained: bool) -> Step:
    """`glm generate` on the validation rows (do_eval) or the test rows (do_predict), with scores."""
    options = plain_options(given, "generate")
    directory = Path(str(given.values["output_dir"]))
    if "train_file" in given.values:
        flag = "validation_file" if stage == "do_eval" else "test_file"
        source = given.text(flag)
        if source is None:
            raise RequestError(f"--{stage} needs --{flag}", param=flag)
        _ptuning_answers(given, options, translation, stage, trained=trained)
    else:
        if stage == "do_predict":
            raise RequestError("--do_predict: these scripts have no test rows", step="leave it out", param=stage)
        source = _published_set(given)
        beam_options(given, options)
    options.set("input", source)
    name = "generated_predictions" if stage == "do_predict" else "eval_predictions"
    options.set("output", directory / f"{name}.jsonl")
    options.turn_on("evaluate")
    options.set("scores", given.script.scores)
    options.set("result_name", stage.removeprefix("do_"))
    device_options(given, machine, options, translation)
    if given.values["disable_tqdm"]:
        options.turn_on("quiet")
    if given.values["overwrite_output_dir"]:
        options.turn_on("overwrite")
    return Step(("generate", model, *options.words()))


def _ptuning_answers(given: Given, options: Options, translation: Translation, stage: str, *, trained: bool) -> None:
    """Set columns, limits and decoding of `main.py`."""
    for flag in _COLUMNS:
        options.set(flag, given.values[flag])
    limit = given.values["val_max_target_length"]
    options.set("max_new_tokens", given.values["max_target_length"] if limit is None else limit)
    options.set("max_rows", given.values["max_eval_samples" if stage == "do_eval" else "max_predict_samples"])
    beams = given.values["num_beams"]
    options.set("num_beams", given.values["generation_num_beams"] if beams is None else beams)
    if not given.values["predict_with_generate"]:
        translation.note("without --predict_with_generate the original gives the loss alone; answers are scored here")
    if not trained:
        options.set("adapter", given.text("ptuning_checkpoint"))
        check_prefix_flags(given, given.text("ptuning_checkpoint") or given.text("model_name_or_path"))
        quantize_option(given, options)


def _data_options(given: Given, options: Options, translation: Translation) -> None:
    """Set the rows of training, and those of evaluation where the run evaluates."""
    evaluates = options.values["evaluation.every"] != "0"
    if "train_file" in given.values:
        options.set("data.train", given.text("train_file"))
        options.set("data.target_length", given.values["max_target_length"])
        if evaluates:
            options.set("data.validation", given.text("validation_file"))
            options.set("evaluation.rows", given.values["max_eval_samples"])
        elif "validation_file" in given.named and not given.values["do_eval"]:
            translation.note("--validation_file: not read without --do_eval or --eval_steps")
        for flag, part in _COLUMNS.items():
            options.set(f"data.columns.{part}", given.values[flag])
    elif "task_name" in given.values:
        options.set("data.train", _published_set(given))
        if "data_name" in given.values and evaluates:
            options.set("data.validation_share", _BELLE_SHARE)
    else:
        source = str(given.values["dataset_path"])
        options.set("data.train", source)
        if source == "alpaca" or source.endswith(".json"):  # Alpaca's list: worded as cover_alpaca2jsonl.py does
            options.set("data.template", "chatglm_tuning")


def _published_set(given: Given) -> str:
    """The set that a PaddleNLP script names; its validation part is found by the reader of rows."""
    task, data = str(given.values["task_name"]), given.text("data_name")
    return task if data is None or (data.lower() == _BELLE and not Path(data).is_dir()) else str(Path(data) / task)
