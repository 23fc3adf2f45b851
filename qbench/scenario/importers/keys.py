"""Keys of training configs that importers do not take: those without influence on memory, and those with.

A key that is in neither list is told as unknown. Names that end in * stand for all that begin so.
"""

from __future__ import annotations

_LEARNING = """
    adam_beta1 adam_beta2 adam_epsilon assistant_only_loss average_tokens_across_devices
    completion_only_loss cosine_min_lr_ratio data_seed early_stopping_patience
    ignore_data_skip learning_rate lora_fan_in_fan_out lora_task_type
    loraplus_lr_embedding loraplus_lr_ratio lr_scheduler lr_scheduler_kwargs lr_scheduler_type
    max_grad_norm max_steps num_epochs num_train_epochs peft_init_lora_weights pissa_convert
    pissa_init pissa_iter seed strict tf32 train_on_inputs warmup_ratio warmup_steps weight_decay
"""
_DATA = """
    add_special_tokens append_concat_token buffer_size cache_dir chat_template
    chat_template_format chat_template_jinja chat_template_path config_name data_path
    dataloader_* dataset dataset_* datasets default_system_message do_eval do_mmlu_eval
    do_predict do_train enable_thinking eos_token eot_tokens eval_* evals_per_epoch
    evaluation_strategy field_* file_* group_by_length ignore_bias_buffers
    ignore_pad_token_for_loss is_falcon_derived_model is_llama_derived_model
    is_mistral_derived_model is_qwen_derived_model lazy_preprocess max_eval_samples
    max_new_tokens max_samples max_train_samples message_property_mappings mix_strategy
    model_revision model_type overwrite_cache packing_strategy pad_to_sequence_len pad_token
    per_device_eval_batch_size preprocess_shared_memory preprocessing_num_workers
    push_dataset_to_hub remove_unused_columns revision_of_model roles_to_train sample_packing_*
    shuffle_* special_tokens splits streaming system_prompt task_type template template_name
    test_datasets test_file tokenize_num_workers tokenized_path tokenizer_* train_file
    train_on_prompt train_split truncation_mode trust_remote_code use_fast_tokenizer
    val_set_size val_size validation_*
"""
_SAVING = """
    auto_resume_from_checkpoints benchmarks callbacks comet_* ddp_backend
    ddp_find_unused_parameters ddp_timeout debug disable_tqdm env greater_is_better
    hf_use_auth_token hub_* include_num_input_tokens_seen include_tokens_per_second
    load_best_model_at_end local_rank log_* logging_* lora_model_dir lora_weight_path loss_watchdog_*
    metric_for_best_model mlflow_* output_dir overwrite_output_dir plot_loss profiler_* project
    push_to_hub ray_* report_to resume_from_checkpoint run_name save_* saves_per_epoch
    skip_memory_metrics swanlab_* token torchdistx_path trackio_* use_swanlab use_wandb wandb_*
"""

HARMLESS = frozenset((_LEARNING + _DATA + _SAVING).split())
"""Keys that do not change the memory of a training step. (Evaluation is not planned.)"""

_MEMORY = """
    activation_checkpointing_kwargs activation_offloading additional_target apollo_*
    auto_find_batch_size badam_* batch_eval_metrics bf16_full_eval
    bnb_4bit_quant_storage* chunked_cross_entropy context_parallel_size create_new_adapter
    cut_cross_entropy ddp_bucket_cap_mb deepspeed device_map double_* ema embeddings_skip_upcast
    enable_liger_kernel expandable_segments expert_parallel_size flash_attn_* flash_optimum
    flex_attention fp8 fp8_* freeze_* fsdp fsdp_* full_determinism galore_* gptq* gpu_memory_limit image_*
    include_for_metrics kernels label_smoothing_factor liger_* lisa_* llama4_linearized_experts
    loftq* lomo* lora_embedding_kernel lora_mlp_kernel lora_modules_to_save lora_o_kernel
    lora_on_cpu lora_qkv_kernel lora_target_parameters low_bit_* max_memory mixture_of_depths
    model_init_kwargs model_max_length moe_* neftune_* noisy_embedding_alpha optim_args
    optim_target_modules optimizer_kwargs padding_free parallelism_config
    peft_layers_to_transform plugins precompute_* pref_* processor_type qat quantize_* ref_model
    reference_model relora* resize_token_embeddings_to_32x resize_vocab reward_model rl
    rope_scaling router_aux_loss_coef sage_attention sequence_parallel_* shift_attn shrink_embeddings
    sp_attention tensor_parallel_size tokens torch_compile* torch_empty_cache_steps
    unfrozen_parameters unsloth_* upcast_* use_adam_mini use_apollo use_badam use_cache
    use_galore use_liger use_liger_kernel use_llama_pro use_muon use_qlora use_unsloth
    use_unsloth_gc vision_* xformers_attention
"""

MEMORY = frozenset(_MEMORY.split())
"""Keys that move memory in ways that are not planned."""
