"""`ptuning/` of ChatGLM-6B and ChatGLM2-6B: `main.py` (train, train_chat, evaluate, ds_train_finetune), `web_demo.py`.

Source: `THUDM/ChatGLM-6B:ptuning/arguments.py`, `main.py`.
"""

from .demos import PLACE
from .script_table import Flag, Script, flag
from .trainer_flags import TRANSFORMERS

_PUBLISHER = "ChatGLM-6B"
_HUB = "names are looked up on this machine and on a hub; see --hub of glm finetune"
_SETS = "give --train_file, --validation_file, --test_file"
_CACHE = "rows are encoded at every start, nothing is cached"

_MODEL: tuple[Flag, ...] = (
    flag("model_name_or_path", "text", None, "finetune model.base; generate MODEL; serve MODEL", "also a checkpoint of "
         "a run, which is its base with its adapter", needed=True, rule=True),
    flag("ptuning_checkpoint", "text", None, "finetune model.adapter; generate adapter; serve adapter",
         "training goes on from it", rule=True),
    flag("config_name", "text", None, "finetune model.config; generate config; serve config"),
    flag("tokenizer_name", "text", None, "finetune model.tokenizer; generate tokenizer; serve tokenizer"),
    flag("cache_dir", "text", None, "", _HUB),
    flag("use_fast_tokenizer", "bool", True, "", "these families have one tokenizer"),
    flag("model_revision", "text", "main", "", _HUB),
    flag("use_auth_token", "bool", False, "", "the token of the hub's own login is used"),
    flag("resize_position_embeddings", "bool", None, "", "these models have no table of positions"),
    flag("quantization_bit", "int", None, "finetune model.quantization_bit; generate quantize; serve quantize",
         "4 or 8", rule=True),
    flag("pre_seq_len", "int", None, "finetune tuning.method prefix; finetune adapter.length", "without it all "
         "weights are trained; for prediction the adapter's own files decide, another value is an error", rule=True),
    flag("prefix_projection", "bool", False, "finetune adapter.projection", "for prediction the adapter's own "
         "files decide", rule=True),
)  # fmt: skip

_DATA: tuple[Flag, ...] = (
    flag("lang", "text", None, "", "the original does not use it either"),
    flag("dataset_name", "text", None, "", f"refused: {_SETS}", values={"": ""}),
    flag("dataset_config_name", "text", None, "", _SETS),
    flag("prompt_column", "text", None, "finetune data.columns; generate prompt_column", rule=True),
    flag("response_column", "text", None, "finetune data.columns; generate response_column", rule=True),
    flag("history_column", "text", None, "finetune data.columns; generate history_column", "an empty history is the "
         "bare question, in training as in prediction", rule=True),
    flag("train_file", "text", None, "finetune data.train", rule=True),
    flag("validation_file", "text", None, "finetune data.validation; generate input", "scored with --do_eval",
         rule=True),
    flag("test_file", "text", None, "generate input", "answered and scored with --do_predict", rule=True),
    flag("overwrite_cache", "bool", False, "", _CACHE),
    flag("preprocessing_num_workers", "int", None, "", _CACHE),
    flag("max_source_length", "int", 1024, "finetune data.source_length; generate src_length"),
    flag("max_target_length", "int", 128, "finetune data.target_length; generate max_new_tokens",
         "the new tokens of an answer, where the original limits prompt and answer together", rule=True),
    flag("val_max_target_length", "int", None, "generate max_new_tokens", "without it --max_target_length", rule=True),
    flag("pad_to_max_length", "bool", False, "", "rows are padded to the longest of a batch, which changes no number"),
    flag("max_train_samples", "int", None, "finetune data.max_train_rows"),
    flag("max_eval_samples", "int", None, "finetune evaluation.rows; generate max_rows", rule=True),
    flag("max_predict_samples", "int", None, "generate max_rows", rule=True),
    flag("num_beams", "int", None, "generate num_beams", "1 without it", rule=True),
    flag("ignore_pad_token_for_loss", "bool", True, "finetune data.quirks", "False: the quirk counted_padding, rows "
         "padded to both limits with padding that counts", rule=True),
    flag("source_prefix", "text", "", "", "refused: write it into a template, --data.template FILE.yaml",
         values={"": ""}),
    flag("forced_bos_token", "text", None, "", "the original does not use it either"),
)  # fmt: skip

MAIN = Script(
    name="main", publisher=_PUBLISHER, homes=("ptuning",), plan="tune", json=True, scores="chatglm",
    flags=(*_MODEL, *_DATA, *TRANSFORMERS),
    facts={
        "finetune schedule.lr_decay_ratio": "0", "finetune training.recompute": "true", "generate temperature": "0.95",
        "generate top_p": "0.7",
    },
    about="P-Tuning v2 or full tuning of ChatGLM-6B and ChatGLM2-6B; with --do_predict answers and scores",
)  # fmt: skip

WEB_DEMO = Script(
    name="web_demo", publisher=_PUBLISHER, homes=("ptuning",), plan="page", json=True, flags=(*_MODEL, *PLACE),
    facts={"serve port": "11001"},
    about="a page for the browser with a tuned prefix",
)  # fmt: skip

SCRIPTS = (MAIN, WEB_DEMO)
