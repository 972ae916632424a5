"""PaddleNLP's GLM example: five scripts.

Source: `PaddleNLP:examples/language_model/glm`, later `llm/glm`. Of its three generations the flags are those of the
first, in which all of them acted.
"""

from .script_table import Flag, Script, flag
from .trainer_flags import PADDLE

_PUBLISHER = "PaddleNLP"
_HOMES = ("glm", "paddlenlp")
_ROWS = (
    "rows are built as the example's later versions build them ([gMASK] behind the source), which is how "
    "predict_generation.py asks"
)

_DECODING: tuple[Flag, ...] = (
    flag("src_length", "int", 608, "finetune data.source_length; generate src_length"),
    flag("tgt_length", "int", 160, "finetune data.target_length; generate max_new_tokens"),
    flag("min_tgt_length", "int", 55, "generate min_new_tokens"),
    flag("length_penalty", "float", 0.7, "generate length_penalty", "with several beams", rule=True),
    flag("no_repeat_ngram_size", "int", 3, "generate no_repeat_ngram_size"),
    flag("num_beams", "int", 5, "generate num_beams"),
    flag("select_topk", "bool", True, "generate temperature 1", "only with False: beams are drawn (multinomial beam "
         "sampling)", rule=True),
    flag("top_p", "float", 0.0, "generate top_p", "with --select_topk False; 0 is off", rule=True),
    flag("top_k", "int", 0, "generate top_k", "with --select_topk False; 0 is off", rule=True),
    flag("no_block_position", "bool", False, "", "refused: tokens of a span are always numbered",
         values={"false": "false"}),
)  # fmt: skip

_MODEL: tuple[Flag, ...] = (
    flag("model_name_or_path", "text", "THUDM/glm-2b", "finetune model.base"),
    flag("label_smoothing", "float", 0.1, "finetune tuning.label_smoothing"),
    flag("lr_decay_ratio", "float", 0.1, "finetune schedule.lr_decay_ratio"),
    flag("lora", "bool", False, "finetune tuning.method lora", "without it all weights are trained", rule=True),
    flag("r", "int", 4, "finetune adapter.rank", "with --lora; alpha stays at 8", rule=True),
)

FINETUNE_GENERATION = Script(
    name="finetune_generation", publisher=_PUBLISHER, homes=_HOMES, plan="tune", json=True, resumes=True,
    scores="paddle",
    flags=(
        flag("task_name", "text", "dureader_qg", "finetune data.train", "name of a set, or a directory with train and "
             "dev", rule=True),
        *_MODEL, *_DECODING, *PADDLE,
    ),
    facts={"lora adapter.alpha": "8", "lora adapter.targets": "[query_key_value]", "lora adapter.dropout": "0"},
    about="fine-tune GLM on DuReaderQG: full or LoRA",
    notes=(_ROWS,),
)  # fmt: skip

FINETUNE_INSTRUCTION_GENERATION = Script(
    name="finetune_instruction_generation", publisher=_PUBLISHER, homes=_HOMES, plan="tune", json=True, resumes=True,
    loss_alone=True,
    flags=(
        flag("task_name", "text", "school_math_0.25M", "finetune data.train", "name of a set of --data_name",
             rule=True),
        flag("data_name", "text", "bellegroup", "finetune data.train", "whose sets: bellegroup, or a directory",
             rule=True),
        *_MODEL, *_DECODING, *PADDLE,
    ),
    facts={"lora adapter.alpha": "8", "lora adapter.targets": "[q_proj, v_proj]", "lora adapter.dropout": "0"},
    about="fine-tune GLM on instructions (BELLE)",
)  # fmt: skip

PREDICT_GENERATION = Script(
    name="predict_generation", publisher=_PUBLISHER, homes=_HOMES, plan="predict",
    flags=(
        flag("model_name_or_path", "text", "THUDM/glm-large-chinese", "generate MODEL", "also a run or its checkpoint, "
             "and a directory of tensor-parallel shards", needed=True, rule=True),
        flag("lora_path", "text", None, "generate adapter", rule=True),
        flag("merge_tensor_parallel_path", "text", None, "convert DST; merge OUTPUT", "the whole model is written "
             "there after the answers, with its tokenizer", rule=True),
        flag("batch_size", "int", 2, "generate batch_size"),
        flag("src_length", "int", 200, "generate src_length"),
        flag("tgt_length", "int", 20, "generate max_new_tokens"),
    ),
    about="answer two built-in prompts of DuReaderQG, or --input FILE",
)  # fmt: skip

EXPORT_GENERATION_MODEL = Script(
    name="export_generation_model", publisher=_PUBLISHER, homes=_HOMES, plan="export",
    flags=(
        flag("model_name_or_path", "text", "THUDM/glm-large-chinese", "convert SRC; merge MODEL", rule=True),
        flag("output_path", "text", "inference/glm", "convert DST; merge OUTPUT", "a model directory of this name "
             "instead of a static graph", rule=True),
        flag("lora_path", "text", None, "merge ADAPTER", rule=True),
        flag("dtype", "text", None, "convert dtype; merge dtype", "float32, float16, bfloat16; without it as stored",
             rule=True, values={name: name for name in ("float32", "float16", "bfloat16")}),
    ),
    about="write the tuned model for infer_generation.py",
    notes=("no static graph is written: the model directory is what infer_generation.py loads here",),
)  # fmt: skip

_BACKENDS = ("onnx_runtime", "paddle", "openvino", "tensorrt", "paddle_tensorrt")
_RUNTIME = "PyTorch computes here"

INFER_GENERATION = Script(
    name="infer_generation", publisher=_PUBLISHER, homes=_HOMES, plan="predict",
    flags=(
        flag("model_dir", "text", None, "generate MODEL", "the folder that export_generation_model.py wrote into",
             rule=True),
        flag("model_path", "text", None, "generate MODEL", "another name of --model_dir", rule=True),
        flag("model_prefix", "text", "model", "generate MODEL", "name of the model in that folder", rule=True),
        flag("device", "text", "gpu", "generate device", "gpu, cpu; gpu is the accelerator where there is one",
             rule=True, values={"gpu": "auto", "cpu": "cpu"}),
        flag("backend", "text", "paddle", "", _RUNTIME, values={name: name for name in _BACKENDS}),
        flag("batch_size", "int", 2, "generate batch_size"),
        flag("max_length", "int", 400, "", "--src_length and --tgt_length are the limits"),
        flag("src_length", "int", 200, "generate src_length"),
        flag("tgt_length", "int", 20, "generate max_new_tokens"),
        flag("use_fp16", "bool", False, "generate dtype float16", "CUDA only, else as --dtype auto", rule=True),
        flag("cpu_threads", "int", 1, "generate threads"),
        flag("device_id", "int", 0, "generate device", "the number of the accelerator", rule=True),
    ),
    about="answer the two prompts with the exported model",
    notes=("no static graph and no C++ runtime: the exported model directory is loaded by glm generate",),
)  # fmt: skip

SCRIPTS = (
    FINETUNE_GENERATION, FINETUNE_INSTRUCTION_GENERATION, PREDICT_GENERATION, EXPORT_GENERATION_MODEL,
    INFER_GENERATION,
)  # fmt: skip
