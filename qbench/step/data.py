"""Batches of full sequences without padding: random token ids, or consecutive blocks of a text."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from qbench.catalog.models import resolve_model
from qbench.errors import StepError, first_line
from qbench.files import read_text
from qbench.scenario.schema import Point
from qbench.step.fused_losses import IGNORED
from qbench.step.images import Images, image_token_id, images_of
from qbench.step.model import weights_folder
from qbench.step.recipe import follows_trainer
from qbench.step.tasks import rows_of, task_batch
from qbench.units import round_up

if TYPE_CHECKING:
    from transformers import PretrainedConfig

SEED = 0

MOST_PASSES = 4
"""Of an update on meta. From the second one on, all micro-batches do the same."""

MOST_COPIES = 1 << 15
"""Micro-batches not run whose tensors are allocated one by one; as many more take seconds."""

BLOCK_BYTES = 512
"""What CUDA's allocator rounds sizes up to."""

Batch = dict[str, torch.Tensor]


def batches_held(point: Point) -> int:
    """Return how many batches are in memory at a time: Trainer fetches all of an update in advance."""
    return point.train.gradient_accumulation_steps if follows_trainer(point) else 1


def passes_run(point: Point, device: torch.device) -> int:
    """Return how many micro-batches of an update are run: on meta the last one stands for those left out."""
    wanted = point.train.gradient_accumulation_steps
    return min(wanted, MOST_PASSES) if device.type == "meta" else wanted


def copies(batch: Batch, times: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, tensor) of `times` empty copies of a batch; beyond MOST_COPIES one large tensor a name."""
    if times <= MOST_COPIES:
        for _ in range(times):
            yield from ((name, torch.empty_like(tensor)) for name, tensor in batch.items())
        return
    for name, tensor in batch.items():
        size = times * round_up(tensor.nbytes, BLOCK_BYTES)
        yield name, torch.empty(size, dtype=torch.uint8, device=tensor.device)


def accumulation_caveats(point: Point) -> Iterator[str]:
    """Yield what the memory of an update leaves out for its number of micro-batches."""
    wanted = point.train.gradient_accumulation_steps
    if wanted - MOST_PASSES > MOST_COPIES:
        yield (
            f"of {wanted:,} micro-batches, batches or losses are planned as one large block, where a run has "
            "many small ones; peaks may be off by a few MiB"
        )


def make_batches(point: Point, config: PretrainedConfig, device: torch.device) -> list[Batch]:
    """Return the batches that a run cycles through: input_ids and labels of shape [batch, seq_len], int64.

    Raises StepError when the text cannot be read or is shorter than one batch.
    """
    images = images_of(point, config)
    if images is not None:
        return list(_batches_with_images(images, point, config, device))
    return [_batch(ids, point) for ids in _token_ids(point, config, device)]


def known_values(batch: Batch, point: Point, config: PretrainedConfig) -> Batch:
    """Return on the CPU what a batch with images on meta stands for, but for its pixels; else nothing."""
    images = images_of(point, config)
    if images is None:
        return {}
    made = next(_batches_with_images(images, point, config, torch.device("cpu"), with_pixels=False))
    return {name: made[name] for name in batch if name in made}


def _batches_with_images(
    images: Images,
    point: Point,
    config: PretrainedConfig,
    device: torch.device,
    with_pixels: bool = True,
) -> Iterator[Batch]:
    """Yield batches whose sequences begin with their images, a token of text before each."""
    assert point.vision is not None
    block = torch.zeros(1 + images.tokens + images.others, dtype=torch.bool)
    block[1 : 1 + images.tokens] = True
    pixels = torch.Generator().manual_seed(SEED)
    on_meta = device.type == "meta"
    held = min(batches_held(point), passes_run(point, device))
    for ids in itertools.islice(_token_ids(point, config, torch.device("cpu")), held if on_meta else None):
        marks = torch.zeros_like(ids, dtype=torch.bool)
        marks[:, : point.vision.num_images * len(block)] = block.repeat(point.vision.num_images)
        token = image_token_id(config)
        ids = torch.where(ids == token, (token + 1) % config.get_text_config().vocab_size, ids)
        ids[marks] = token
        batch = _batch(ids, point)
        if token >= config.get_text_config().vocab_size and "labels" in batch:
            batch["labels"] = batch["labels"].masked_fill(marks, IGNORED)
        # Processors make one also without padding.
        batch["attention_mask"] = torch.ones_like(ids)
        if images.types:
            batch[images.types] = marks.long()
        if with_pixels:
            for name, shape in images.pixels.items():
                batch[name] = (
                    torch.empty(shape, device=device) if on_meta else torch.rand(shape, generator=pixels)
                )
        batch |= images.whole
        yield {
            name: torch.empty_like(tensor, device=device) if on_meta else tensor.to(device)
            for name, tensor in batch.items()
        }


def _token_ids(point: Point, config: PretrainedConfig, device: torch.device) -> Iterator[torch.Tensor]:
    shape = (rows_of(point), point.train.seq_len)
    if device.type == "meta":
        for _ in range(min(batches_held(point), passes_run(point, device))):
            yield torch.empty(shape, dtype=torch.long, device=device)
    elif point.data == "random":
        generator = torch.Generator().manual_seed(SEED)
        vocab_size = config.get_text_config().vocab_size
        for _ in range(batches_held(point)):
            yield torch.randint(0, vocab_size, shape, generator=generator).to(device)
    else:
        for block in _text_blocks(point, shape):
            yield block.to(device)


def _batch(input_ids: torch.Tensor, point: Point) -> Batch:
    if point.train.task != "sft":
        return task_batch(input_ids, point)
    batch = {"input_ids": input_ids, "labels": input_ids.clone()}
    if point.train.recipe == "trl":
        # trl/trainer/sft_trainer.py, `DataCollatorForLanguageModeling`, makes one also without padding.
        batch["attention_mask"] = torch.ones_like(input_ids)
    return batch


def _text_blocks(point: Point, shape: tuple[int, int]) -> list[torch.Tensor]:
    try:
        text = read_text(point.data)
    except (OSError, UnicodeDecodeError) as error:
        raise StepError(f"data {point.data} cannot be read as UTF-8 text ({first_line(error)})") from error
    ids: Any = _tokenizer(point)(text)["input_ids"]
    per_batch = shape[0] * shape[1]
    count = len(ids) // per_batch
    if count == 0:
        raise StepError(
            f"data {point.data} has {len(ids)} tokens, fewer than one batch of {shape[0]} x {shape[1]}; "
            "use a longer text or a smaller seq_len"
        )
    flat = torch.tensor(ids[: count * per_batch], dtype=torch.long)
    # A copy each: a view would keep the whole text alive beside its batch.
    return [block.clone() for block in flat.view(count, *shape)]


def _tokenizer(point: Point) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            weights_folder(resolve_model(point.model)), trust_remote_code=False
        )
    except Exception as error:
        raise StepError(
            f"data {point.data} needs the tokenizer of {point.model}, which could not be loaded "
            f"({first_line(error)}); give a folder that holds one, or set data: random"
        ) from error
