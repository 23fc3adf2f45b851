"""Keys of training configs that importers do not take: those without influence on memory, and those with.

A key that is in neither list is reported as unknown. A name that ends in * stands for all keys that begin so.
"""

from __future__ import annotations

from typing import Literal

Effect = Literal["more", "less", "either"]
"""What a step needs for a setting that is not in the plan: more memory than planned, less, or either."""

_LEARNING = """
    adam_beta1 adam_beta2 adam_eps adam_epsilon assistant_only_loss average_tokens_across_devices
    completion_only_loss cosine_min_lr_ratio data_seed early_stopping_patience ignore_data_skip
    learning_rate lora_fan_in_fan_out lora_task_type loraplus_lr_embedding loraplus_lr_ratio
    lr_quadratic_warmup lr_scheduler lr_scheduler_kwargs lr_scheduler_type max_grad_norm max_steps
    num_epochs num_train_epochs peft_init_lora_weights pissa_convert pissa_init pissa_iter seed
    strict tf32 train_on_inputs warmup_ratio warmup_steps weight_decay
"""
_DATA = """
    add_special_tokens append_concat_token buffer_size cache_dir chat_template chat_template_format
    chat_template_jinja chat_template_path config_name data_path dataloader_* dataset dataset_*
    datasets default_system_message do_causal_lm_eval do_eval do_mmlu_eval do_predict do_train
    enable_thinking eos_token eot_tokens eval_* evals_per_epoch evaluation_strategy field_* file_*
    group_by_length ignore_bias_buffers ignore_pad_token_for_loss is_falcon_derived_model
    is_llama_derived_model is_mistral_derived_model is_qwen_derived_model lazy_preprocess
    low_cpu_mem_usage max_eval_samples max_new_tokens max_samples max_train_samples
    message_property_mappings mix_strategy model_revision model_type overwrite_cache
    packing_strategy pad_to_sequence_len pad_token per_device_eval_batch_size predict_with_generate
    preprocess_shared_memory preprocessing_num_workers push_dataset_to_hub remove_unused_columns
    revision_of_model roles_to_train sample_packing_* shuffle_* skip_prepare_dataset special_tokens
    splits streaming system_prompt task_type template template_name test_datasets test_file
    tokenize_num_workers tokenized_path tokenizer_* train_file train_on_prompt train_split
    truncation_mode trust_remote_code use_fast_tokenizer val_set_size val_size validation_*
"""
_SAVING = """
    auto_resume_from_checkpoints benchmarks callbacks comet_* curriculum_sampling ddp_backend
    ddp_find_unused_parameters ddp_timeout debug disable_tqdm env greater_is_better
    hf_use_auth_token hub_* include_num_input_tokens_seen include_tokens_per_second
    load_best_model_at_end local_rank log_* logging_* lora_model_dir lora_weight_path
    loss_watchdog_* metric_for_best_model mlflow_* no_remove_unused_columns otel_* output_dir
    overwrite_output_dir plot_loss profiler_* project push_to_hub ray_* report_to
    resume_from_checkpoint run_name save_* saves_per_epoch skip_memory_metrics swanlab_* token
    torchdistx_path trackio_* use_otel_metrics use_ray use_swanlab use_tensorboard use_wandb wandb_*
"""

HARMLESS = frozenset((_LEARNING + _DATA + _SAVING).split())
"""Keys that do not change the memory of a training step. (Evaluation is not planned.)"""

_MORE = """
    asft_* batch_eval_metrics bf16_full_eval create_new_adapter dsv4_* ebft ema experts_implementation
    flex_attention freeze_trainable_* freeze_vision_tower image_* include_for_metrics kt_* kto_*
    lora_target_parameters max_completion_length max_pixels max_prompt_length model_max_length moe_*
    neftune_* new_special_tokens noisy_embedding_alpha num_generations orpo_* pref_* processor_type
    ref_model reference_model resize_token_embeddings_to_32x resize_vocab reward_funcs reward_model
    rl router_aux_loss_coef stage tokens trainer_type trl unfrozen_parameters upcast_* use_asft_loss
    use_eaft_loss use_vllm
    video_* vision_* vllm vllm_*
"""
_LESS = """
    activation_checkpointing_kwargs activation_offloading apollo_* badam_* chunked_cross_entropy
    cut_cross_entropy embeddings_skip_upcast enable_liger_kernel flash_attn_* flash_optimum fp8
    fp8_* fused_attn_kernel galore_* gemma4_hybrid_attn_impl gptq* liger_* lisa_* lomo*
    lora_embedding_kernel lora_mlp_kernel lora_o_kernel lora_on_cpu lora_qkv_kernel low_bit_*
    max_memory mixture_of_depths nvfp4_* padding_free plugins quantize_* sage_attention
    sequence_parallel_* shift_attn shrink_embeddings sp_attention torch_empty_cache_steps unsloth_*
    use_adam_mini use_apollo use_badam use_dft_loss use_galore use_glm_dsa_kernels use_kernels
    use_kt use_liger use_liger_kernel use_scattermoe use_sonicmoe use_unsloth use_unsloth_gc
    use_v1_kernels xformers_attention
"""
_EITHER = """
    adapter_name_or_path auto_find_batch_size bnb_4bit_quant_storage* bnb_config_kwargs
    context_parallel_size ddp_bucket_cap_mb expert_model_parallel_size pipeline_model_parallel_size
    deepspeed device_map double_* dp_shard_size expandable_segments experimental_skip_move_to_device
    expert_parallel_* expert_parallel_size flex_attn_* freeze_* fsdp fsdp_* full_determinism
    gpu_memory_limit jagged_restart_* kernels label_smoothing_factor llama4_linearized_experts
    loftq* model_config model_init_kwargs model_quantization_config* optim_args optim_target_modules
    optimizer_kwargs parallelism_config peft peft_layers_to_transform precompute_* qat relora*
    rope_scaling tensor_parallel_size tensor_model_parallel_size torch_compile* use_cache
    use_llama_pro use_muon use_qlora
"""

MORE, LESS, EITHER = (frozenset(text.split()) for text in (_MORE, _LESS, _EITHER))
"""Keys that affect memory in ways that are not planned: the step needs more than planned, less, or either."""
MEMORY = MORE | LESS | EITHER
