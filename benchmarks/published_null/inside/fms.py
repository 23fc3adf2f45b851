"""One run of fms-acceleration's benchmark: what fms-hf-tuning's tuning/sft_trainer.py does with its settings.

The model is made by transformers, peft and trl; kernels come from the package fms-acceleration-foak. The
dataset is packed, so its words do not matter: every sample has as many tokens as was published.
"""

import inspect
import json
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer
from weights import model_folder

STEPS = 3
"""Published runs made 100; from the second on memory repeats."""
WORDS = 512
SENTENCEPIECE_VOCAB = 32_000
"""Tokenizers of this size, Mistral's and Llama 2's, lack a pad token only, and tokenizer_and_embedding_resize
adds it; Llama 3's lacks the unknown token, too."""
KERNELS = {
    "foak-fast-kernels": {"fast_loss": True, "fast_rms_layernorm": True, "fast_rope_embeddings": True},
    "foak-fast-kernels-liger": {
        "fast_loss": "fused_ce_liger",
        "fast_rms_layernorm": True,
        "fast_rope_embeddings": True,
    },
    "accelerated-peft-bnb-foak": {
        "base_layer": "bitsandbytes",
        "fused_lora": True,
        "fast_loss": True,
        "fast_rms_layernorm": True,
        "fast_rope_embeddings": True,
    },
    # The committed file misspells fast_rms_layernorm; published is the peak of a run with that kernel.
    "accelerated-peft-bnb-foak-liger": {
        "base_layer": "bitsandbytes",
        "fused_lora": True,
        "fast_loss": "fused_ce_liger",
        "fast_rms_layernorm": True,
        "fast_rope_embeddings": True,
    },
}
"""What the sample configuration of each name sets (sample-configurations/ of fms-acceleration)."""


def run(settings: dict, config: dict, folder: Path) -> dict[str, int]:
    """Return the bytes that the benchmark would report."""
    model = load(settings, model_folder(config, folder / "model"))
    vocab = model.config.vocab_size
    added = 1 if vocab == SENTENCEPIECE_VOCAB else 2
    resize = model.resize_token_embeddings
    # transformers 4.46 brought it; the means of old rows take the host long, and no memory that stays.
    quick = {"mean_resizing": False} if "mean_resizing" in inspect.signature(resize).parameters else {}
    resize(vocab + added, **quick)
    args = arguments(settings, folder)
    lora = None if settings["method"] == "full" else lora_config(settings)
    if settings["acceleration"].startswith("accelerated-peft-bnb"):
        model, lora = prepared(model, lora), None
    framework = None
    if settings["acceleration"] in KERNELS:
        framework = kernels(settings, folder)
        model, (lora,) = framework.augmentation(model, args, modifiable_args=(lora,))
    # trl 0.12 renamed it.
    taken = inspect.signature(SFTTrainer).parameters
    named = {"processing_class" if "processing_class" in taken else "tokenizer": tokenizer()}
    trainer = SFTTrainer(
        model=model,
        **named,
        train_dataset=dataset(int(settings["batch"]), int(settings["seq_len"])),
        args=args,
        peft_config=lora,
    )
    if framework is not None:
        for callback in framework.get_callbacks_and_ready_for_train(model, trainer.accelerator):
            trainer.add_callback(callback)
    return figures(trainer.train().metrics)


def load(settings: dict, folder: Path):
    """Return the model as from_pretrained would, in pages of the host that nobody touches."""
    flash = {"attn_implementation": "flash_attention_2"}
    if settings["method"] == "qlora":
        quantized = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_use_double_quant=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
        return AutoModelForCausalLM.from_pretrained(
            folder, torch_dtype=torch.bfloat16, quantization_config=quantized, **flash
        )
    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, torch_dtype=torch.bfloat16, **flash)
    return model.to_empty(device="cpu")


def lora_config(settings: dict) -> LoraConfig:
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=int(settings["r"]),
        lora_alpha=int(settings["lora_alpha"]),
        lora_dropout=float(settings["lora_dropout"]),
        target_modules=settings["target_modules"].split(";"),
        bias="none",
    )


def prepared(model, lora: LoraConfig):
    """Return the adapted model as fms_acceleration_peft's plugin makes it: norms stay 16 bit."""
    for parameter in model.parameters():
        parameter.requires_grad = False
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={})
    return get_peft_model(model, lora)


def kernels(settings: dict, folder: Path):
    """Return fms-acceleration's framework with the kernels of a sample configuration."""
    import fms_acceleration_foak  # noqa: F401
    from fms_acceleration import AccelerationFramework

    # Kernels of a quantized base belong to peft's part of the configuration.
    part = "peft" if settings["method"] == "qlora" else "training"
    chosen = {"plugins": {part: {"fused_ops_and_kernels": KERNELS[settings["acceleration"]]}}}
    if part == "peft":
        chosen["plugins"][part]["quantization"] = {
            "fused_ops_and_kernels": chosen["plugins"][part].pop("fused_ops_and_kernels")
        }
    file = folder / "acceleration.yaml"
    file.write_text(json.dumps(chosen))
    return AccelerationFramework(str(file))


def arguments(settings: dict, folder: Path) -> SFTConfig:
    """Return the arguments of defaults.yaml and scenarios.yaml."""
    return SFTConfig(
        output_dir=str(folder),
        packing=True,
        max_seq_length=int(settings["seq_len"]),
        per_device_train_batch_size=int(settings["batch"]),
        gradient_accumulation_steps=1,
        gradient_checkpointing=True,
        num_train_epochs=1,
        max_steps=STEPS,
        weight_decay=0.01,
        warmup_steps=10,
        adam_epsilon=1e-4,
        lr_scheduler_type="linear",
        logging_strategy="steps",
        logging_steps=10,
        save_strategy="no",
        eval_strategy="no",
        include_tokens_per_second=True,
        skip_memory_metrics=False,
        learning_rate=2e-4,
        bf16=settings["mixed_precision"] == "bf16",
        report_to=[],
        dataset_text_field="output",
        dataset_kwargs={},
    )


def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2, "<pad>": 3, "a": 4}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=words, padding_side="left", **special)


def dataset(batch: int, seq_len: int) -> Dataset:
    """Return text enough for all steps; trl packs it into samples of equal length."""
    count = (STEPS + 3) * batch * seq_len // WORDS + 10
    return Dataset.from_dict({"output": [" ".join(["a"] * WORDS)] * count})


def figures(metrics: dict) -> dict[str, int]:
    """Return what benchmark.py's extract_gpu_memory_metrics makes of the Trainer's memory metrics."""
    allocated, after, peaks = 0, [], []
    for stage in ("before_init_mem_gpu", "init_mem_gpu", "train_mem_gpu"):
        delta = f"{stage}_alloc_delta"
        allocated += metrics[delta] if delta in metrics else metrics[stage]
        after.append(allocated)
        peaks.append(allocated + metrics.get(f"{stage}_peaked_delta", 0))
    return {"max_allocated": max(peaks), "allocated_after_training": max(after)}
