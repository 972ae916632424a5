"""Flags of the two trainers that the scripts share: transformers' (4.27) and PaddleNLP's, with their defaults.

Sources: `transformers:training_args.py`, `training_args_seq2seq.py`; `PaddleNLP:paddlenlp/trainer/training_args.py`.
"""

from .script_table import Flag, flag

_LOG = "every step is logged, in metrics.jsonl of the run directory"
_RANKS = "processes are counted from the launcher's own options, or started by torchrun"
_LENGTHS = "rows are shuffled from the seed alone; --data.layout packed wastes no tokens on padding"
_HUB = "nothing is sent anywhere; a run is a directory"
_MEMORY = "the whole optimizer state lies in every process; --recompute and LoRA need less memory"
_COLUMNS = "the columns that are read are those of the row's format"
_PRECISION = "--fp16 or --bf16 alone decide; the loss scale is found while training"
_PROFILE = "times are in throughput.jsonl of the run directory"
_PARTS = "this many processes hold one model there; here every process holds all of it until models can be cut"

# In both trainers, with the same default.
_SHARED: tuple[Flag, ...] = (
    flag("output_dir", "text", None, "finetune output.directory", "the run, and what later commands load", needed=True),
    flag("overwrite_output_dir", "bool", False, "", "an earlier run there is moved aside, not deleted", rule=True),
    flag("do_train", "bool", False, "finetune", "trains", rule=True),
    flag("do_eval", "bool", False, "finetune evaluation.every; generate --evaluate", "scores the validation rows at "
         "the end, and their loss every --eval_steps", rule=True),
    flag("do_predict", "bool", False, "generate --input", "answers and scores the test rows at the end", rule=True),
    flag("evaluation_strategy", "text", "no", "finetune evaluation.every", "no, steps or epoch", rule=True,
         values={"no": "no", "steps": "steps", "epoch": "epoch"}),
    flag("prediction_loss_only", "bool", False, "", "the loss alone is computed during training anyway"),
    flag("per_device_train_batch_size", "int", 8, "finetune training.micro_batch_size"),
    flag("per_device_eval_batch_size", "int", 8, "finetune evaluation.batch_size; generate batch_size"),
    flag("gradient_accumulation_steps", "int", 1, "finetune training.gradient_accumulation_steps",
         "times the devices that the command asks for and this machine does not have", rule=True),
    flag("eval_accumulation_steps", "int", None, "", "evaluation keeps no logits"),
    flag("learning_rate", "float", 5e-5, "finetune optimizer.learning_rate"),
    flag("weight_decay", "float", 0.0, "finetune optimizer.weight_decay", "not on biases and norms, as there"),
    flag("adam_beta1", "float", 0.9, "finetune optimizer.adam_beta1"),
    flag("adam_beta2", "float", 0.999, "finetune optimizer.adam_beta2"),
    flag("adam_epsilon", "float", 1e-8, "finetune optimizer.adam_eps"),
    flag("max_grad_norm", "float", 1.0, "finetune training.clip_grad"),
    flag("num_train_epochs", "float", 3.0, "finetune training.num_epochs", "unless --max_steps is above 0", rule=True),
    flag("max_steps", "int", -1, "finetune training.max_steps", "-1: --num_train_epochs decides", rule=True),
    flag("warmup_ratio", "float", 0.0, "finetune schedule.warmup_ratio", "unless --warmup_steps is above 0", rule=True),
    flag("warmup_steps", "int", 0, "finetune schedule.warmup_steps", "0: --warmup_ratio decides", rule=True),
    flag("log_on_each_node", "bool", True, "", _LOG),
    flag("logging_dir", "text", None, "", _LOG),
    flag("logging_strategy", "text", "steps", "", _LOG),
    flag("logging_first_step", "bool", False, "", _LOG),
    flag("logging_steps", "int", 500, "finetune output.log_every", "lines of progress; metrics.jsonl has every step",
         rule=True),
    flag("save_strategy", "text", "steps", "finetune checkpoint.every", "no: at the end alone; epoch is refused: give "
         "--save_steps", rule=True, values={"no": "no", "steps": "steps"}),
    flag("save_steps", "int", 500, "finetune checkpoint.every", rule=True),
    flag("save_total_limit", "int", None, "finetune checkpoint.keep_last", "without it all are kept "
         "(checkpoint.keep_every)", rule=True),
    flag("save_on_each_node", "bool", False, "", "the first process writes"),
    flag("no_cuda", "bool", False, "finetune training.device cpu; generate device cpu", rule=True),
    flag("seed", "int", 42, "finetune training.seed; generate seed", "of new weights, order and dropout; the numbers "
         "drawn differ from those there"),
    flag("bf16", "bool", False, "finetune training.precision bf16", rule=True),
    flag("fp16", "bool", False, "finetune training.precision fp16", "on CUDA (untested on GPU); without CUDA training "
         "is in fp32, which is said", rule=True),
    flag("fp16_opt_level", "text", "O1", "finetune training.opt_level", "O1, O2; O0 is fp32", rule=True,
         values={"O0": "O0", "O1": "O1", "O2": "O2"}),
    flag("bf16_full_eval", "bool", False, "generate dtype bfloat16", rule=True),
    flag("fp16_full_eval", "bool", False, "generate dtype float16", "CUDA only, else as --dtype auto", rule=True),
    flag("local_rank", "int", -1, "", _RANKS),
    flag("dataloader_drop_last", "bool", False, "", "the last rows of an epoch are a smaller step, never dropped"),
    flag("eval_steps", "int", None, "finetune evaluation.every", "with --do_eval or a strategy; without a value "
         "--logging_steps", rule=True),
    flag("dataloader_num_workers", "int", 0, "finetune data.workers"),
    flag("past_index", "int", -1, "", "these models have no such state"),
    flag("run_name", "text", None, "", _LOG),
    flag("disable_tqdm", "bool", None, "finetune --quiet; generate --quiet", "no progress on stderr", rule=True),
    flag("remove_unused_columns", "bool", True, "", _COLUMNS),
    flag("label_names", "texts", None, "", _COLUMNS),
    flag("load_best_model_at_end", "bool", False, "finetune checkpoint.export best", "RUN/model is the best checkpoint",
         rule=True),
    flag("metric_for_best_model", "text", None, "finetune checkpoint.best", "loss, or a score of evaluation.metrics",
         rule=True),
    flag("greater_is_better", "bool", None, "finetune checkpoint.higher_is_better", "without it by the metric's name"),
    flag("ignore_data_skip", "bool", False, "", "a resumed run goes on at the row where it stopped"),
    flag("report_to", "texts", None, "finetune output.report_to", "tensorboard; all, visualdl: the files of the run "
         "alone, which are always written", rule=True),
    flag("resume_from_checkpoint", "text", None, "finetune --resume", "a checkpoint of a run of glm finetune",
         rule=True),
    flag("skip_memory_metrics", "bool", True, "", _PROFILE),
)  # fmt: skip

_OPTIMIZERS = dict.fromkeys(("adamw", "adamw_hf", "adamw_torch", "adamw_torch_fused"), "adamw")

TRANSFORMERS: tuple[Flag, ...] = (
    *_SHARED,
    flag("lr_scheduler_type", "text", "linear", "finetune schedule.lr_decay_style", "down to 0", values={
        "linear": "linear", "cosine": "cosine", "constant": "constant", "constant_with_warmup": "constant"}),
    flag("optim", "text", "adamw_hf", "finetune optimizer.name", "AdamW alone", values=_OPTIMIZERS),
    flag("optim_args", "text", None, "", "AdamW has its own flags"),
    flag("adafactor", "bool", False, "", "refused: AdamW alone is here", values={"false": "false"}),
    flag("label_smoothing_factor", "float", 0.0, "finetune tuning.label_smoothing"),
    flag("gradient_checkpointing", "bool", False, "finetune training.recompute true", "always on in these scripts",
         rule=True),
    flag("data_seed", "int", None, "", "the order comes from --seed"),
    flag("full_determinism", "bool", False, "finetune training.deterministic"),
    flag("torch_compile", "bool", False, "finetune training.compile"),
    flag("torch_compile_backend", "text", None, "", "--training.compile true compiles with inductor"),
    flag("torch_compile_mode", "text", None, "", "--training.compile true compiles in the default mode"),
    flag("torchdynamo", "text", None, "", "--training.compile true compiles with inductor"),
    flag("per_gpu_train_batch_size", "int", None, "", "refused: give --per_device_train_batch_size", values={"": ""}),
    flag("per_gpu_eval_batch_size", "int", None, "", "refused: give --per_device_eval_batch_size", values={"": ""}),
    flag("auto_find_batch_size", "bool", False, "", "the forecast of memory is made before the start"),
    flag("eval_delay", "float", 0, "", "evaluations begin with the first --eval_steps"),
    flag("group_by_length", "bool", False, "", _LENGTHS),
    flag("length_column_name", "text", "length", "", _LENGTHS),
    flag("sortish_sampler", "bool", False, "", _LENGTHS),
    flag("predict_with_generate", "bool", False, "generate --evaluate", "scores from generated answers; without it "
         "the loss alone", rule=True),
    flag("generation_max_length", "int", None, "", "the scripts set the length from --max_target_length"),
    flag("generation_num_beams", "int", None, "generate num_beams", "unless --num_beams is given", rule=True),
    flag("generation_config", "text", None, "", "the scripts set the decoding themselves"),
    flag("log_level", "text", "passive", "", _LOG),
    flag("log_level_replica", "text", "warning", "", _LOG),
    flag("logging_nan_inf_filter", "bool", True, "", "a loss that is not finite is told and never written as a number"),
    flag("fp16_backend", "text", "auto", "", _PRECISION),
    flag("half_precision_backend", "text", "auto", "", _PRECISION),
    flag("tf32", "bool", None, "", "PyTorch's own setting is kept"),
    flag("use_ipex", "bool", False, "", "PyTorch's own kernels are used"),
    flag("jit_mode_eval", "bool", False, "", "PyTorch's own kernels are used"),
    flag("use_mps_device", "bool", False, "", "the accelerator that is there is taken anyway (untested)"),
    flag("use_legacy_prediction_loop", "bool", False, "", "evaluation keeps no logits"),
    flag("include_inputs_for_metrics", "bool", False, "", "generated_predictions.jsonl has the rows"),
    flag("deepspeed", "text", None, "", "the file is not read, its batch, rate and precision flags are those of the "
         "command; " + _MEMORY),
    flag("sharded_ddp", "text", "", "", _MEMORY),
    flag("fsdp", "text", "", "", _MEMORY),
    flag("fsdp_min_num_params", "int", 0, "", _MEMORY),
    flag("fsdp_config", "text", None, "", _MEMORY),
    flag("fsdp_transformer_layer_cls_to_wrap", "text", None, "", _MEMORY),
    flag("mp_parameters", "text", "", "", _MEMORY),
    flag("xpu_backend", "text", None, "", _RANKS),
    flag("ddp_backend", "text", None, "", _RANKS),
    flag("ddp_find_unused_parameters", "bool", None, "", _RANKS),
    flag("ddp_bucket_cap_mb", "int", None, "", _RANKS),
    flag("ddp_timeout", "int", 1800, "", _RANKS),
    flag("tpu_num_cores", "int", None, "", "there is no TPU backend"),
    flag("tpu_metrics_debug", "bool", False, "", "there is no TPU backend"),
    flag("ray_scope", "text", "last", "", "there is no hyper-parameter search"),
    flag("debug", "texts", "", "", _PROFILE),
    flag("dataloader_pin_memory", "bool", True, "", "batches are copied as PyTorch does it best"),
    flag("push_to_hub", "bool", False, "", _HUB),
    flag("push_to_hub_model_id", "text", None, "", _HUB),
    flag("push_to_hub_organization", "text", None, "", _HUB),
    flag("push_to_hub_token", "text", None, "", _HUB),
    flag("hub_model_id", "text", None, "", _HUB),
    flag("hub_strategy", "text", "every_save", "", _HUB),
    flag("hub_token", "text", None, "", _HUB),
    flag("hub_private_repo", "bool", False, "", _HUB),
)  # fmt: skip

PADDLE: tuple[Flag, ...] = (
    *_SHARED,
    flag("do_export", "bool", False, "", "glm script export_generation_model.py writes the model"),
    flag("lr_scheduler_type", "text", "linear", "finetune schedule.lr_decay_style", "down to --lr_decay_ratio of the "
         "rate", values={"linear": "linear", "cosine": "cosine", "constant": "constant",
                         "constant_with_warmup": "constant"}),
    flag("lr_end", "float", 1e-7, "", "of the polynomial schedule, which is not known here"),
    flag("power", "float", 1.0, "", "of the polynomial schedule, which is not known here"),
    flag("num_cycles", "float", 0.5, "", "the cosine falls once, as with 0.5"),
    flag("optim", "text", "adamw", "finetune optimizer.name", "AdamW alone", values=_OPTIMIZERS),
    flag("recompute", "bool", False, "finetune training.recompute"),
    flag("scale_loss", "float", 32768.0, "", _PRECISION),
    flag("amp_master_grad", "bool", False, "", "what is trained is float32 always, its gradients too"),
    flag("amp_custom_black_list", "texts", None, "", _PRECISION),
    flag("amp_custom_white_list", "texts", None, "", _PRECISION),
    flag("tensor_parallel_degree", "int", -1, "", _PARTS, rule=True),
    flag("pipeline_parallel_degree", "int", -1, "", _PARTS, rule=True),
    flag("pipeline_parallel_config", "text", "", "", "of --pipeline_parallel_degree"),
    flag("sharding", "text", "", "", _MEMORY),
    flag("sharding_degree", "int", -1, "", _MEMORY),
    flag("sharding_parallel_degree", "int", -1, "", _MEMORY),
    flag("sharding_parallel_config", "text", "", "", _MEMORY),
    flag("hybrid_parallel_topo_order", "text", None, "", _MEMORY),
    flag("save_sharded_model", "bool", False, "", "a checkpoint is one directory"),
    flag("load_sharded_model", "bool", False, "", "a checkpoint is one directory"),
    flag("max_evaluate_steps", "int", -1, "", "--evaluation.generate_rows caps what is answered during training"),
    flag("minimum_eval_times", "int", None, "", "--eval_steps decides"),
    flag("device", "text", "gpu", "finetune training.device; generate device", "gpu, cpu; gpu is the accelerator where "
         "there is one", rule=True, values={"gpu": "auto", "cpu": "cpu"}),
    flag("flatten_param_grads", "bool", False, "", "of another device"),
    flag("lazy_data_processing", "bool", True, "", "rows are encoded once, at the start"),
    flag("skip_profile_timer", "bool", True, "", _PROFILE),
)  # fmt: skip
