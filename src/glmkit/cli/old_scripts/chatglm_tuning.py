"""ChatGLM-Tuning: LoRA on Alpaca with an 8-bit base, its two data scripts and its inference.

Source: `mymusise/ChatGLM-Tuning`.
"""

from .script_table import Script, flag
from .trainer_flags import TRANSFORMERS

_PUBLISHER = "ChatGLM-Tuning"
_HOMES = ("ChatGLM-Tuning",)
_VERSION = {"v1": "v1", "v2": "v2"}
_BASE = "THUDM/chatglm-6b"  # the original's own default names a directory of its author

COVER = Script(
    name="cover_alpaca2jsonl", publisher=_PUBLISHER, homes=_HOMES, plan="cover",
    flags=(
        flag("data_path", "text", "data/alpaca_data.json", "", "the file that is read", rule=True),
        flag("save_path", "text", "data/alpaca_data.jsonl", "", "JSON lines of context and target, ASCII-escaped",
             rule=True),
    ),
    about="Alpaca's JSON list -> JSON lines of context and target",
    notes=("glm finetune reads Alpaca's file as it is; this step is for those who want the lines",),
)  # fmt: skip

TOKENIZE = Script(
    name="tokenize_dataset_rows", publisher=_PUBLISHER, homes=_HOMES, plan="tokenize",
    flags=(
        flag("jsonl_path", "text", "data/alpaca_data.jsonl", "", "the file that is read", rule=True),
        flag("save_path", "text", "data/alpaca", "", "a folder of the package datasets with input_ids and seq_len",
             rule=True),
        flag("max_seq_length", "int", 384, "", "longest prompt, longest target, and longest row, as there", rule=True),
        flag("skip_overlength", "truthy", False, "", "False means False: longer rows are cut; the original took every "
             "word, False too, for true and left them out", rule=True),
        flag("chatglm_path", "text", _BASE, "", "whose tokenizer; the original's default is model_path/chatglm",
             rule=True),
        flag("version", "text", "v1", "", "the family of --chatglm_path decides; another version is an error",
             rule=True, values=_VERSION),
    ),
    about="JSON lines of context and target -> a datasets folder of ids",
)  # fmt: skip

FINETUNE = Script(
    name="finetune", publisher=_PUBLISHER, homes=_HOMES, plan="tune", always_trains=True,
    flags=(
        flag("dataset_path", "text", "data/alpaca", "finetune data.train", "a datasets folder of ids, or any file that "
             "glm finetune reads", rule=True),
        flag("model_path", "text", "output", "", "the original does not use it either"),
        flag("lora_rank", "int", 8, "finetune adapter.rank"),
        flag("chatglm_path", "text", _BASE, "finetune model.base", "the original's default is model_path/chatglm"),
        *TRANSFORMERS,
    ),
    facts={
        "finetune tuning.method": "lora", "finetune adapter.alpha": "32", "finetune adapter.dropout": "0.1",
        "finetune adapter.targets": "[query_key_value]", "finetune model.quantization_bit": "8",
        "finetune schedule.lr_decay_ratio": "0", "finetune training.recompute": "true",
    },
    about="LoRA on a base in 8 bits; trains without --do_train",
)  # fmt: skip

INFER = Script(
    name="infer", publisher=_PUBLISHER, homes=_HOMES, plan="predict",
    flags=(
        flag("chatglm_path", "text", _BASE, "generate MODEL", "the original has no flags: its notebook names the base",
             rule=True),
        flag("lora_path", "text", "output", "generate adapter", "the same: its notebook names the folder", rule=True),
        flag("data_path", "text", "data/alpaca_data.json", "generate input", "rows that are answered", rule=True),
        flag("max_length", "int", 150, "generate max_new_tokens", "new tokens; the original counts the prompt, too",
             rule=True),
    ),
    facts={"generate quantize": "int8"},
    about="answer rows with the base in 8 bits and the LoRA of finetune.py",
)  # fmt: skip

SCRIPTS = (COVER, TOKENIZE, FINETUNE, INFER)
