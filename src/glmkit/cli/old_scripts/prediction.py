"""Scripts that answer: built-in prompts, rows of files, conversations; how answers are decoded; writing a model."""

from pathlib import Path, PurePath

from glmkit.adapters.directory import read_origin
from glmkit.checkpoint.run_directory import model_directory, named_checkpoint
from glmkit.errors import RequestError

from .command_line import Given
from .prefix_flags import check_prefix_flags
from .translation import Machine, Options, Step, Translation, plain_options

GREETING = "欢迎使用 {0} 模型，输入内容即可进行对话，clear 清空对话历史，stop 终止程序"
_HOME = "the page is at {0}"
_POST = 'clients post {{"prompt": ..., "history": []}} to {0}'
PROMPTS, ANSWERS = "prompts.jsonl", "answers.jsonl"
# The two questions of predict_generation.py and infer_generation.py: answers and texts of DuReaderQG, cut as there.
_LOAN = (
    "答案：年基准利率4.35%，上下文：从实际看,贷款的基本条件是: 一是中国大陆居民,年龄在60岁以下; 二是有稳定的"
    "住址和工作或经营地点; 三是有稳定的收入来源; 四是无不良信用记录,贷款用途不能作为炒股,赌博等行为; 五是具有"
    "完全民事行为能力。在已知答案的前提下，问题："
)
_AIR_CONDITIONER = (
    "答案：U系列，上下文：U系列是最好的，采用国际顶尖技术（由格力自主研发）双级变频压缩机，提高压缩机运转效率"
    "，制冷制热能力更强劲；1赫兹变频技术，使空调相当于一个15 W电灯泡，更加节能省电；送风面积广，风力大；生态"
    "风，净化空气。非常不错，现在国美在做活动，可以了解一下。在已知答案的前提下，问题："
)
BUILT_IN_PROMPTS = (_LOAN, _AIR_CONDITIONER)


def predict(given: Given, machine: Machine) -> Translation:
    """`glm generate` with the built-in prompts or rows asked as in training; then the merged model, if asked for."""
    translation = Translation()
    options = plain_options(given, "generate")
    model, adapter = _model(given)
    options.set("adapter", adapter)
    _inputs(given, options, translation)
    device_options(given, machine, options, translation)
    translation.steps.append(Step(("generate", model, *options.words())))
    merged = given.text("merge_tensor_parallel_path")
    if merged is not None:
        translation.steps.append(_written(model, adapter, merged, None))
    asked = given.launch.processes or machine.ranks or 1
    if asked > 1:
        translation.note(
            f"{asked} processes: one answers here; shards of tensor-parallel ranks are joined as they load"
        )
    return translation


def _model(given: Given) -> tuple[str, str | None]:
    """The model and the adapter that the flags name."""
    if "model_prefix" in given.values:
        folder = given.text("model_dir") or given.text("model_path")
        if folder is None:
            raise RequestError(f"{given.script.title} needs --model_dir", param="model_dir")
        return str(PurePath(folder) / str(given.values["model_prefix"])), None
    return given.text("model_name_or_path") or str(given.values["chatglm_path"]), given.text("lora_path")


def _inputs(given: Given, options: Options, translation: Translation) -> None:
    source = given.text("input") or given.text("data_path")
    if source is None:
        translation.note(f"no --input FILE: the script's two built-in prompts are answered ({PROMPTS})")
    else:
        options.set("task", "predict")
    options.set("input", source or PROMPTS)
    options.set("output", given.text("output") or ANSWERS)
    if "data_path" in given.values:
        options.set("max_new_tokens", given.values["max_length"])
        if source is not None and not source.endswith(".jsonl"):  # Alpaca's list, not its lines of context and target
            options.set("data_template", "chatglm_tuning")
    options.turn_on("overwrite")


def device_options(given: Given, machine: Machine, options: Options, translation: Translation) -> None:
    """Set device and precision of `glm generate`."""
    device = given.text("device")
    if given.values.get("no_cuda") or device == "cpu":
        options.set("device", "cpu")
    elif given.whole("device_id"):
        options.set("device", f"cuda:{given.values['device_id']}")
    half = [name for name in ("use_fp16", "fp16_full_eval") if given.values.get(name)]
    if half and machine.float16:
        options.set("dtype", "float16")
    elif half:
        translation.note(f"--{half[0]}: fp16 is computed on CUDA alone; --dtype auto decides here")
    if given.values.get("bf16_full_eval"):
        options.set("dtype", "bfloat16")


def quantize_option(given: Given, options: Options) -> None:
    """Set the integers that the base is put into on the way in."""
    bits = given.whole("quantization_bit")
    if bits not in (None, 4, 8):
        raise RequestError(f"--quantization_bit is {bits}", step="give 4 or 8", param="quantization_bit")
    if bits is not None:
        options.set("quantize", f"int{bits}")


def beam_options(given: Given, options: Options) -> None:
    """Decoding of PaddleNLP's finetune scripts: a beam search, or with --select_topk False one that draws its beams."""
    top_k, top_p, beams = given.values["top_k"], given.number("top_p") or 0.0, given.whole("num_beams") or 1
    if beams > 1:
        options.set("length_penalty", given.values["length_penalty"])
        options.set("beam_length", "answer")
    if not given.values["select_topk"]:
        options.set("temperature", 1.0)
        if top_k:
            options.set("top_k", top_k)
        if 0 < top_p < 1:
            options.set("top_p", top_p)


def export(given: Given, machine: Machine) -> Translation:
    """Write the model directory that infer_generation.py answers with: as it is, or with its LoRA merged in."""
    translation = Translation()
    model, adapter = str(given.values["model_name_or_path"]), given.text("lora_path")
    dtype = given.text("dtype")
    translation.steps.append(_written(model, adapter, str(given.values["output_path"]), dtype))
    return translation


def _written(model: str, adapter: str | None, target: str, dtype: str | None) -> Step:
    """The command that writes one model directory, also where there is one. A run of an adapter knows its base."""
    more = [] if dtype is None else ["--dtype", dtype]
    sources = [Path(source).resolve() for source in (model, adapter) if source is not None]
    inside = any(source.is_relative_to(Path(target).resolve()) for source in sources)
    aside = None if inside else Path(target)
    if adapter is not None:
        return Step(("merge", model, adapter, "--output", target, *more), aside=aside)
    if _is_adapter(Path(model)):
        return Step(("merge", model, "--output", target, *more), aside=aside)
    return Step(("convert", model, target, "--to", "glmkit", *more), aside=aside)


def _is_adapter(path: Path) -> bool:
    """True for an adapter that names its base, and for a run of one."""
    directory = named_checkpoint(path)
    return directory.is_dir() and read_origin(model_directory(directory)[0]) is not None


def demonstrate(given: Given, machine: Machine) -> Translation:
    """`glm chat` or `glm serve`, by the plan of the script."""
    translation = Translation()
    verb = "chat" if given.script.plan == "chat" else "serve"
    options = plain_options(given, verb)
    for name in ("host", "port"):
        options.set(name, given.values.get(name))
    options.set("adapter", given.text("ptuning_checkpoint"))
    quantize_option(given, options)
    check_prefix_flags(given, given.text("ptuning_checkpoint"))
    if verb == "chat":
        name, published = PurePath(str(given.values["model_name_or_path"])).name, given.script.publisher
        translation.note(GREETING.format(published if name.lower() == published.lower() else name))
    else:
        sentence = _POST if given.script.plan == "api" else _HOME
        translation.note(sentence.format(_address(options)))
    translation.steps.append(Step((verb, str(given.values["model_name_or_path"]), *options.words())))
    return translation


def _address(options: Options) -> str:
    port = options.values.get("port") or "8000"
    return "the address that is printed" if port == "0" else f"http://127.0.0.1:{port}"
