"""The recipes of `glm pretrain`: what their keys are called elsewhere, and the keys that stand for a section."""

from dataclasses import MISSING
from typing import get_type_hints

from glmkit.config import GLMConfig
from glmkit.objective.options import PRESETS

from .continued import DROPOUTS
from .recipe import ALIASES, FOREIGN, SWITCHES, Recipes, Whole
from .recipe_config import TrainConfig
from .schema import Leaf, leaves, readable

_ALIASES = {
    **ALIASES,
    "train_iters": "training.max_steps",
    "seq_length": "data.sequence_length",
    "max_seq_length": "data.sequence_length",
    "block_size": "data.sequence_length",
}
_FOREIGN = {
    **FOREIGN,
    "model_name_or_path": "--init-from DIR starts from weights, --model.preset NAME from a published size",
    "config_name": "--model.preset takes a published size, a model directory or a config.json",
    "tokenizer_name": "the tokenizer is that of the data: glm prepare --tokenizer DIR",
    "tokenizer": "the tokenizer is that of the data: glm prepare --tokenizer DIR",
    "tokenizer_name_or_path": "the tokenizer is that of the data: glm prepare --tokenizer DIR",
    "train_file": "glm prepare FILE --output DIR, then --data DIR",
    "validation_file": "glm prepare --validation-share takes validation documents out of the data",
    "validation_split_percentage": "glm prepare --validation-share takes validation documents out of the data",
    "dataset_name": "glm prepare NAME --output DIR, then --data DIR",
    "data_path": "--data DIR; several: --data DIR=WEIGHT for each",
    "data_dir": "--data DIR",
    "split": "glm prepare --validation-share takes validation documents out of the data",
    "logging_steps": "every step is logged, in metrics.jsonl of the run directory",
    "log_interval": "every step is logged, in metrics.jsonl of the run directory",
    "logging_dir": "metrics.jsonl and TensorBoard's events (--output.tensorboard true) lie in the run directory",
    "tensorboard_dir": "metrics.jsonl and TensorBoard's events (--output.tensorboard true) lie in the run directory",
    "report_to": "metrics.jsonl is always written, TensorBoard's events with --output.tensorboard true",
    "eval_iters": "--evaluation.rows N sets the rows of an evaluation",
    "per_device_eval_batch_size": "leave it out: rows of an evaluation depend on --evaluation.rows alone",
    "load": "--resume auto or DIR continues a run, --init-from DIR starts from weights",
    "cutoff_len": "--seq_length N",
    "mlm_probability": "--objective.bert_ratio X is the share of masked tokens",
    "noise_density": "--objective.bert_ratio X is the share of masked tokens",
    "stage": "leave it out: glm pretrain fills blanks; glm finetune trains on dialogues",
    "finetuning_type": "leave it out: glm pretrain trains all weights; adapters are trained by glm finetune",
    "lora_rank": "glm pretrain trains all weights; adapters are trained by glm finetune",
    "lora_alpha": "glm pretrain trains all weights; adapters are trained by glm finetune",
    "pre_seq_len": "glm pretrain trains all weights; adapters are trained by glm finetune",
    "quantization_bit": "weights in integers cannot be trained; leave it out",
    "num_layers": "--model.num_layers N",
    "hidden_size": "--model.hidden_size N",
    "vocab_size": "--model.vocab_size N; without it the tokenizer's",
}


def _leaves() -> list[Leaf]:
    """Every dotted key that the command line may set."""
    model = [leaf for leaf in leaves(TrainConfig) if leaf.name.startswith("model.") and leaf.name != "model.fields"]
    hints = get_type_hints(GLMConfig)
    model += [
        Leaf(f"model.{name}", readable(hint), getattr(GLMConfig, name, MISSING), "field of GLMConfig")
        for name, hint in hints.items()
        if name != "special"
    ]
    presets = ", ".join(PRESETS)
    objective = Leaf("objective.preset", "text or null", None, f"a published mixture to start from: {presets}")
    others = [leaf for leaf in leaves(TrainConfig) if not leaf.name.startswith("model.")]
    others.sort(key=lambda leaf: not leaf.name.startswith(("data.", "objective.")))  # the task's own come first
    return [*model, objective, *others]


PRETRAINING = Recipes(
    folder="pretrain",
    config=TrainConfig,
    leaves=_leaves,
    aliases=_ALIASES,
    switches=SWITCHES,
    foreign=_FOREIGN,
    whole={
        "model.preset": Whole("model", ("vocab_multiple",)),
        "model.init_from": Whole("model", ("vocab_multiple", *DROPOUTS)),
        "objective.preset": Whole("objective"),
    },
    exclusive={
        ("model.preset", "model.init_from"): "give one of model.preset (a shape) and model.init_from (weights and "
        "their shape)"
    },
)
