"""The recipes of `glm finetune`: what their keys are called in the original scripts and in other trainers."""

from dataclasses import replace

from glmkit.adapters.adapter import all_kinds

from .finetune_config import FinetuneConfig
from .recipe import ALIASES, EITHER, FOREIGN, SWITCHES, Recipes, Whole
from .schema import Leaf, leaves

_ALIASES = {
    **ALIASES,
    "model_name_or_path": "model.base",
    "tokenizer_name": "model.tokenizer",
    "tokenizer_name_or_path": "model.tokenizer",
    "config_name": "model.config",
    "quantization_bit": "model.quantization_bit",
    "adapter_name_or_path": "model.adapter",
    "ptuning_checkpoint": "model.adapter",
    "finetuning_type": "tuning.method",
    "label_smoothing": "tuning.label_smoothing",
    "label_smoothing_factor": "tuning.label_smoothing",
    "r": "adapter.rank",
    "lora_r": "adapter.rank",
    "lora_rank": "adapter.rank",
    "lora_alpha": "adapter.alpha",
    "lora_dropout": "adapter.dropout",
    "lora_target": "adapter.targets",
    "target_modules": "adapter.targets",
    "pre_seq_len": "adapter.length",
    "num_virtual_tokens": "adapter.length",
    "prefix_projection": "adapter.projection",
    "train_file": "data.train",
    "dataset": "data.train",
    "dataset_path": "data.train",
    "validation_file": "data.validation",
    "data_dir": "data.data_dir",
    "dataset_dir": "data.data_dir",
    "prompt_column": "data.columns.prompt",
    "response_column": "data.columns.response",
    "history_column": "data.columns.history",
    "template": "data.template",
    "encoding": "data.encoding",
    "on_bad_row": "data.on_bad_row",
    "source_length": "data.source_length",
    "target_length": "data.target_length",
    "max_source_length": "data.source_length",
    "src_length": "data.source_length",
    "max_target_length": "data.target_length",
    "tgt_length": "data.target_length",
    "max_train_samples": "data.max_train_rows",
    "max_eval_samples": "data.max_validation_rows",
    "val_size": "data.validation_share",
    "preprocessing_num_workers": "data.workers",
    "fp16_opt_level": "training.opt_level",
    "per_device_eval_batch_size": "evaluation.batch_size",
    "metric_for_best_model": "checkpoint.best",
    "greater_is_better": "checkpoint.higher_is_better",
    "early_stopping_patience": "evaluation.patience",
    "early_stopping_threshold": "evaluation.threshold",
    "logging_steps": "output.log_every",
    "log_interval": "output.log_every",
    "report_to": "output.report_to",
}
_SWITCHES = {
    **SWITCHES,
    "lora": ("tuning.method", "lora"),
    "packing": ("data.layout", "packed"),
    "load_in_8bit": ("model.quantization_bit", "8"),
    "load_in_4bit": ("model.quantization_bit", "4"),
    "load_best_model_at_end": ("checkpoint.export", "best"),
}
_FOREIGN = {
    **FOREIGN,
    "do_predict": "glm generate --input FILE --adapter RUN answers rows with what was trained",
    "test_file": "glm generate --input FILE --adapter RUN answers rows with what was trained",
    "predict_with_generate": "--evaluation.metrics rouge-l,bleu-4 scores generated answers",
    "logging_dir": "metrics.jsonl and the events of --output.report_to tensorboard lie in the run directory",
    "tensorboard_dir": "metrics.jsonl and the events of --output.report_to tensorboard lie in the run directory",
    "load": "--resume auto or DIR continues a run, --model DIR starts from weights",
    "cutoff_len": "--data.source_length N and --data.target_length N",
    "max_seq_length": "--data.source_length N and --data.target_length N",
    "seq_length": "--data.source_length N and --data.target_length N",
    "pad_to_max_length": "leave it out: rows are padded to the longest of a batch, which changes no loss",
    "ignore_pad_token_for_loss": "leave it out: padding is never counted, but by --data.quirks counted_padding",
    "overwrite_cache": "leave it out: rows are encoded at every start",
    "remove_unused_columns": "leave it out: columns that are not used are named and left aside",
    "task_name": "--data NAME, such as dureader_qg or school_math_0.25M",
    "data_name": "--data NAME, such as school_math_0.25M",
    "split": "--data.validation_share X",
    "stage": "leave it out: glm finetune trains on dialogues",
    "tensor_parallel_degree": "leave it out: --nproc N, or torchrun, trains replicas",
    "device_map": "leave it out: --training.device names one",
    "init_from": "--model DIR",
}


def _leaves() -> list[Leaf]:
    """Every dotted key that the command line may set, those of each kind of adapter among them."""
    own = [leaf for leaf in leaves(FinetuneConfig) if leaf.name != "adapter"]
    adapter: dict[str, Leaf] = {}
    for kind in all_kinds().values():
        for leaf in leaves(kind.options, "adapter"):
            first = adapter.get(leaf.name)
            about = ": ".join(word for word in (kind.kind, leaf.help) if word)
            adapter[leaf.name] = replace(leaf, help=about if first is None else f"{first.help}; {about}")
    first_ones = ("model.", "tuning.")
    return [
        *(leaf for leaf in own if leaf.name.startswith(first_ones)),
        *adapter.values(),
        *(leaf for leaf in own if leaf.name.startswith("data.")),
        *(leaf for leaf in own if not leaf.name.startswith((*first_ones, "data."))),
    ]


FINETUNING = Recipes(
    folder="finetune",
    config=FinetuneConfig,
    leaves=_leaves,
    aliases=_ALIASES,
    switches=_SWITCHES,
    foreign=_FOREIGN,
    either=(*EITHER, ("data.validation", "data.validation_share")),
    whole={"tuning.method": Whole("adapter", by_change=True)},
)
