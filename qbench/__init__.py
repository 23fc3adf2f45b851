"""qbench: memory planning and benchmarking of LoRA and QLoRA fine-tuning."""

__version__ = "0.1.0"
