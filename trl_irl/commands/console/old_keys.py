"""Keys that recipes in circulation have and that TRL and transformers took once, with what does the same today."""

# By old key: the key that replaced it and, where its value changes too, how to set it. `None`: it is gone.
REPLACED: dict[str, tuple[str | None, str]] = {
    # transformers
    "evaluation_strategy": ("eval_strategy", ""),
    "no_cuda": ("use_cpu", ""),
    "per_gpu_train_batch_size": ("per_device_train_batch_size", ""),
    "per_gpu_eval_batch_size": ("per_device_eval_batch_size", ""),
    "warmup_ratio": ("warmup_steps", "a number below 1, such as `warmup_steps: 0.1`, is a share of all steps"),
    "group_by_length": ("train_sampling_strategy", "`train_sampling_strategy: group_by_length`"),
    "push_to_hub_model_id": ("hub_model_id", ""),
    "push_to_hub_organization": ("hub_model_id", "`hub_model_id: organization/name`"),
    "push_to_hub_token": ("hub_token", ""),
    "include_inputs_for_metrics": ("include_for_metrics", "`include_for_metrics: [inputs]`"),
    "include_tokens_per_second": ("include_num_input_tokens_seen", "the speed is logged with it"),
    "dispatch_batches": ("accelerator_config", "`accelerator_config: {dispatch_batches: ...}`"),
    "split_batches": ("accelerator_config", "`accelerator_config: {split_batches: ...}`"),
    "adafactor": ("optim", "`optim: adafactor`"),
    "fsdp_min_num_params": ("fsdp_config", "`fsdp_config: {min_num_params: ...}`, or an accelerate config"),
    "fsdp_transformer_layer_cls_to_wrap": (
        "fsdp_config",
        "`fsdp_config: {transformer_layer_cls_to_wrap: [...]}`, or an accelerate config",
    ),
    "torchdynamo": ("torch_compile_backend", ""),
    "evaluate_during_training": ("eval_strategy", "`eval_strategy: steps`"),
    "num_epochs": ("num_train_epochs", ""),
    "epochs": ("num_train_epochs", ""),
    "lr": ("learning_rate", ""),
    "half_precision_backend": (None, "torch's own is the only one"),
    "fp16_backend": (None, "torch's own is the only one"),
    "fp16_opt_level": (None, "it was Apex's"),
    "mixed_precision": ("bf16", "`bf16: true` or `fp16: true`; or set it in the accelerate config"),
    "overwrite_output_dir": (
        None,
        "a run writes into `output_dir` as it is; to go on from its newest checkpoint set `resume_from_checkpoint: "
        "true`, to begin anew name another folder",
    ),
    "save_safetensors": (None, "weights are always saved as safetensors"),
    "logging_dir": (None, "TensorBoard's folder is set by the environment variable TENSORBOARD_LOGGING_DIR"),
    "use_ipex": (None, "IPEX is no longer supported"),
    "jit_mode_eval": (None, "`torch_compile: true` is what there is"),
    "use_mps_device": (None, "an Apple GPU is used where there is one"),
    "past_index": (None, "it had no effect on these models"),
    "sharded_ddp": (None, "launch with `--accelerate_config zero2`, `zero3` or `fsdp2`"),
    "xpu_backend": ("ddp_backend", ""),
    "use_legacy_prediction_loop": (None, "there is one evaluation loop"),
    "ray_scope": (None, "it belongs to hyperparameter search, which these commands do not run"),
    "tpu_num_cores": (None, "set the number of processes in the accelerate config"),
    "mp_parameters": (None, "it was SageMaker's"),
    # TRL
    "torch_dtype": ("dtype", ""),
    "use_flash_attention_2": ("attn_implementation", "`attn_implementation: flash_attention_2`"),
    "model_name": ("model_name_or_path", ""),
    "model_name_or_path": ("models", "one or more, such as `models: [base=PATH, tuned=PATH]`"),
    "max_seq_length": ("max_length", ""),
    "seq_length": ("max_length", ""),
    "num_of_sequences": (None, "packing needs no such number: set `packing: true` and `max_length`"),
    "chars_per_token": (None, "packing needs no such number: set `packing: true` and `max_length`"),
    "dataset_batch_size": (None, "rows are tokenised in batches by themselves; `dataset_num_proc` sets the processes"),
    "dataset_mixture": ("datasets", "`datasets:`, a list of `path`, `split` and so on"),
    "dataset_train_name": ("dataset_train_split", ""),
    "dataset_test_name": ("dataset_test_split", ""),
    "dataset_train_split_name": ("dataset_train_split", ""),
    "use_liger": ("use_liger_kernel", ""),
    "tokenizer": (None, "the tokenizer is the model's own; in Python pass `processing_class`"),
    "peft_lora_r": ("lora_r", ""),
    "peft_lora_alpha": ("lora_alpha", ""),
    "use_lora": ("use_peft", ""),
    "use_4bit": ("load_in_4bit", ""),
    "use_nested_quant": ("use_bnb_nested_quant", ""),
    "bnb_4bit_use_double_quant": ("use_bnb_nested_quant", ""),
    "bnb_4bit_compute_dtype": ("dtype", ""),
    "lora_bias": (None, "biases are not trained"),
    # TRL's PPO
    "ppo_epochs": ("num_ppo_epochs", ""),
    "init_kl_coef": ("kl_coef", ""),
    "adap_kl_ctrl": (None, "the KL's coefficient is constant: `kl_coef`"),
    "non_eos_penalty": ("missing_eos_penalty", "a number that is taken off"),
    "penalty_reward_value": ("missing_eos_penalty", "a number that is taken off"),
    "reward_model": ("reward_model_path", ""),
    "stop_sequence": ("stop_token", ""),
    "max_new_tokens": ("max_completion_length", ""),
}


def explain(key: str, known: set[str]) -> str | None:
    """What to say of an old key, whose replacement must be among the `known` ones of the command; else `None`."""
    if key not in REPLACED:
        return None
    new, how = REPLACED[key]
    if new is not None and new not in known:
        return None
    if new is None:
        return f"unknown key `{key}`: earlier versions had it, and it is gone; {how}."
    return f"unknown key `{key}`: it is called `{new}` now{f'; {how}' if how else ''}."
