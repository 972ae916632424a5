"""The commands of the original documents, word for word, by their publisher."""

GENERATION = (
    "finetune_generation.py --model_name_or_path THUDM/glm-large-chinese --num_train_epochs 4 --learning_rate 3e-5 "
    "--warmup_ratio 0.06 --weight_decay 0.1 --label_smoothing 0.1 --save_steps 100 --logging_steps 1 --eval_steps 100 "
    "--output_dir ./checkpoints/glm-large-chinese --src_length 608 --tgt_length 160 --min_tgt_length 55 "
    "--length_penalty 0.7 --no_repeat_ngram_size 3 --num_beams 5 --select_topk True --per_device_eval_batch_size 2 "
    "--per_device_train_batch_size 2 --max_grad_norm 1.0 --lr_scheduler_type linear --fp16 --fp16_opt_level O2 "
    "--recompute --do_train --do_eval"
)
# The flags of the commands on eight cards.
_ON_EIGHT = (
    "--model_name_or_path THUDM/glm-large-chinese --num_train_epochs 4 --learning_rate 3e-5 --warmup_ratio 0.06 "
    "--weight_decay 0.1 --label_smoothing 0.1 --save_steps 10000 --logging_steps 1 --eval_steps 4 --output_dir "
    "./checkpoints/glm-large-chinese --src_length 608 --tgt_length 160 --min_tgt_length 55 --length_penalty 0.7 "
    "--no_repeat_ngram_size 3 --num_beams 5 --select_topk True --per_device_eval_batch_size 2 "
    "--per_device_train_batch_size 2 --max_grad_norm 1.0 --lr_scheduler_type linear --fp16 --recompute --do_train "
    "--do_eval --tensor_parallel_degree 8"
)
_PADDLE = 'python -m paddle.distributed.launch --gpus "{0}"'
_EIGHT = "0,1,2,3,4,5,6,7"

PADDLENLP = {
    "full": f"python {GENERATION}",
    "lora": f"python {GENERATION} --lora True",
    "lora-r": f"python {GENERATION} --lora True --r 8",
    "four-cards": f"{_PADDLE.format('0,1,2,3')} {GENERATION}",
    "tensor-parallel": f"{_PADDLE.format(_EIGHT)} finetune_generation.py {_ON_EIGHT}",
    "instructions": f"{_PADDLE.format(_EIGHT)} finetune_instruction_generation.py --task_name school_math_0.25M "
    f"--data_name bellegroup {_ON_EIGHT}",
    "export": "python export_generation_model.py --model_name_or_path ./checkpoints/glm-large-chinese --output_path "
    "./checkpoints/infer/glm",
    "export-lora": "python export_generation_model.py --model_name_or_path THUDM/glm-large-chinese --output_path "
    "./checkpoints/infer/glm --lora_path ./checkpoints/glm-large-chinese",
    "infer": "python infer_generation.py --model_path ./checkpoints/infer --model_prefix glm",
    "predict": "python predict_generation.py --model_name_or_path ./checkpoints/glm-large-chinese",
    "predict-name": "python predict_generation.py --model_name_or_path THUDM/glm-large-chinese",
    "predict-shards": "python -m paddle.distributed.launch --gpus 0,1,2,3 predict_generation.py --model_name_or_path "
    "./checkpoints/glm-large-chinese/checkpoint-100/ --merge_tensor_parallel_path ./checkpoints/glm-merged",
    "predict-lora": "python predict_generation.py --model_name_or_path THUDM/glm-large-chinese --lora_path "
    "./checkpoints/glm-large-chinese",
}

DEMOS = {
    "cli": "python cli_demo.py",
    "web": "python web_demo.py",
    "web2": "streamlit run web_demo2.py",
    "api": "python api.py",
}

_PTUNING_DATA = "--prompt_column content --response_column summary --overwrite_cache"
_TRAIN = (
    "CUDA_VISIBLE_DEVICES=0 python3 main.py --do_train --train_file {train} --validation_file {dev} {columns} "
    "--overwrite_cache --model_name_or_path THUDM/chatglm-6b --output_dir {output} --overwrite_output_dir "
    "--max_source_length {length} --max_target_length {length} --per_device_train_batch_size 1 "
    "--per_device_eval_batch_size 1 --gradient_accumulation_steps 16 --predict_with_generate --max_steps 3000 "
    "--logging_steps 10 --save_steps 1000 --learning_rate {rate} --pre_seq_len 128 --quantization_bit 4"
)
PTUNING = {
    "train": _TRAIN.format(
        train="AdvertiseGen/train.json", dev="AdvertiseGen/dev.json", length=64, rate="2e-2",
        columns="--prompt_column content --response_column summary", output="output/adgen-chatglm-6b-pt-128-2e-2",
    ),
    "train_chat": _TRAIN.format(
        train="chat/train.json", dev="chat/dev.json", length=256, rate="1e-2", output="output/chat",
        columns="--prompt_column prompt --response_column response --history_column history",
    ),
    "evaluate": "CUDA_VISIBLE_DEVICES=0 python3 main.py --do_predict --validation_file AdvertiseGen/dev.json "
    f"--test_file AdvertiseGen/dev.json {_PTUNING_DATA} --model_name_or_path THUDM/chatglm-6b --ptuning_checkpoint "
    "./output/adgen-chatglm-6b-pt-128-2e-2/checkpoint-3000 --output_dir ./output/adgen-chatglm-6b-pt-128-2e-2 "
    "--overwrite_output_dir --max_source_length 64 --max_target_length 64 --per_device_eval_batch_size 1 "
    "--predict_with_generate --pre_seq_len 128 --quantization_bit 4",
    "ds_train_finetune": "deepspeed --num_gpus=4 --master_port 50003 main.py --deepspeed deepspeed.json --do_train "
    f"--train_file AdvertiseGen/train.json --test_file AdvertiseGen/dev.json {_PTUNING_DATA} --model_name_or_path "
    "THUDM/chatglm-6b --output_dir ./output/adgen-chatglm-6b-ft-1e-4 --overwrite_output_dir --max_source_length 64 "
    "--max_target_length 64 --per_device_train_batch_size 4 --per_device_eval_batch_size 1 "
    "--gradient_accumulation_steps 1 --predict_with_generate --max_steps 5000 --logging_steps 10 --save_steps 1000 "
    "--learning_rate 1e-4 --fp16",
    "evaluate_finetune": f"CUDA_VISIBLE_DEVICES=0 python3 main.py --do_predict --validation_file AdvertiseGen/dev.json "
    f"--test_file AdvertiseGen/dev.json {_PTUNING_DATA} --model_name_or_path "
    "./output/adgen-chatglm-6b-ft-1e-4/checkpoint-5000 --output_dir ./output/adgen-chatglm-6b-ft-1e-4 "
    "--overwrite_output_dir --max_source_length 256 --max_target_length 256 --per_device_eval_batch_size 1 "
    "--predict_with_generate --fp16_full_eval",
    "web_demo": "CUDA_VISIBLE_DEVICES=0 python3 web_demo.py --model_name_or_path THUDM/chatglm-6b --ptuning_checkpoint "
    "output/adgen-chatglm-6b-pt-128-2e-2/checkpoint-3000 --pre_seq_len 128",
}  # fmt: skip

CHATGLM_TUNING = {
    "cover": "python cover_alpaca2jsonl.py --data_path data/alpaca_data.json --save_path data/alpaca_data.jsonl",
    "tokenize": "python tokenize_dataset_rows.py --jsonl_path data/alpaca_data.jsonl --save_path data/alpaca "
    "--max_seq_length 200 --skip_overlength False",
    "finetune": "python finetune.py --dataset_path data/alpaca --lora_rank 8 --per_device_train_batch_size 6 "
    "--gradient_accumulation_steps 1 --max_steps 52000 --save_steps 1000 --save_total_limit 2 --learning_rate 1e-4 "
    "--fp16 --remove_unused_columns false --logging_steps 50 --output_dir output",
}

ALL = {
    f"{whose}-{name}": command
    for whose, commands in (
        ("paddlenlp", PADDLENLP), ("demo", DEMOS), ("ptuning", PTUNING), ("chatglm-tuning", CHATGLM_TUNING),
    )
    for name, command in commands.items()
}  # fmt: skip
