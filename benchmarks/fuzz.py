"""Mutated inputs of every kind that qbench reads: each ends in a known exit code, soon and in little memory.

    python -m benchmarks.fuzz [--inputs 3000] [--seed 1] [--only NAME] [--keep FOLDER]

Each input is a sound file with one to three mutations, of its values or of its bytes, and is read in a
process of its own, forked with the libraries loaded. A finding is a traceback, an exit code that the command
does not have, more than 10 s of processor time, or more than 2 GiB of memory. Ends with exit code 1 when
there is any.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from qbench.catalog.hourly_prices import read_hourly_prices
from qbench.cli.main import main as qbench
from qbench.errors import QbenchError
from qbench.measure.request import read_request
from qbench.planner.workload import read_lengths
from qbench.records.calibration import read_calibration
from qbench.records.noise import noise_file, read_noise

MOST_S = 10.0
MOST_CPU_S = 15
"""When the system ends a process that has used so much processor time."""
MOST_WALL_S = 300.0
"""A process that waits takes no processor time; other work of the machine may slow one that does not."""
MOST_BYTES = 2 << 30
ADDRESS_BYTES = 6 << 30
"""Beyond what the parent has mapped; a process that asks for more ends in an error instead of the machine."""

Values = Any
Run = Callable[[Path], int]

MODEL: dict[str, Values] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "max_position_embeddings": 256,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-05,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "eos_token_id": [1, 2],
    "rope_scaling": {"rope_type": "linear", "factor": 2.0},
}
SCENARIO: dict[str, Values] = {
    "name": "fuzz",
    "question": "Does it end?",
    "base": {
        "model": "./model",
        "precision": "nf4",
        "lora": {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": ["q_proj", "v_proj"]},
        "train": {"seq_len": 32, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2},
    },
    "matrix": {"precision": ["bf16", "nf4"]},
    "exclude": [{"precision": "bf16"}],
    "measure": {"warmup_steps": 1, "steps": 1, "repeats": 1},
}
AXOLOTL: dict[str, Values] = {
    "base_model": "./model",
    "adapter": "qlora",
    "load_in_4bit": True,
    "sequence_len": 64,
    "micro_batch_size": 1,
    "gradient_accumulation_steps": 2,
    "lora_r": 8,
    "lora_alpha": 16,
    "lora_target_linear": True,
    "lora_target_modules": ["q_proj"],
    "optimizer": "adamw_torch",
    "bf16": "auto",
    "gradient_checkpointing": True,
}
LLAMA_FACTORY: dict[str, Values] = {
    "model_name_or_path": "./model",
    "stage": "sft",
    "finetuning_type": "lora",
    "lora_rank": 8,
    "lora_target": "all",
    "cutoff_len": 64,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 2,
    "quantization_bit": 4,
    "bf16": True,
}
TRL: dict[str, Values] = {
    "model_name_or_path": "./model",
    "use_peft": True,
    "lora_r": 8,
    "lora_alpha": 16,
    "max_length": 64,
    "per_device_train_batch_size": 1,
    "gradient_checkpointing": True,
    "load_in_4bit": True,
    "dtype": "bfloat16",
}
CALIBRATION: dict[str, Values] = {
    "device": "cpu",
    "device_name": "Some CPU",
    "num_threads": 2,
    "versions": {"torch": "2.0"},
    "dispatch_s": {"forward": 1e-6},
    "kernels": [
        {
            "op": "mm",
            "kind": "matmul",
            "dtype": "fp32",
            "flops": 2e3,
            "num_bytes": 1e3,
            "shape": [1, 10, 10, 10],
            "layout": "nt",
            "seconds": 1e-6,
        },
    ],
    "version": 1,
}
NOISE: dict[str, Values] = {
    "version": 1,
    "device": "cpu",
    "machine": "Some CPU",
    "label": "p",
    "processes": 8,
    "spreads": {"step_time_s": {"process": 0.01, "pair": 0.02}},
}
ODD: tuple[Values, ...] = (
    None, True, False, 0, 1, -1, 3, 2**31, 2**50, 2**63, 10**30, 0.5, -0.0, float("nan"), float("inf"), 1e308,
    "", "x", "\0", "\ud800", "a\nb", "::error::x", "\x1b[31m", "x" * 5000, "../..", "/dev/zero", "1e999",
    "~nobody", "(a|a)*b", "(x+x+)+y", "bf16", "auto", [], [1], [[]], {}, {"a": 1}, {"model_type": "llama"},
    [None] * 5,
)  # fmt: skip
NAMES = ("model", "train", "lora", "text_config", "quantization_config", "metrics", "", "auto_map", "a\nb")
TOKENS = (
    b"\0", b"\xff\xfe", b"{", b"}", b"[" * 3000, b"]", b'"', b":", b"\n", b"\t", b"- ", b"&a ", b"*a ",
    b"!!python/", b"NaN", b"-1", b"1e999", b"null", b"'", b"#", b"\xed\xa0\x80", b"\r", b"," * 50,
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One kind of input: what is mutated, how it is read, and how that may end."""

    name: str
    file: str
    """Where the input is, in the folder that the command works in."""
    seeds: Sequence[Values]
    write: Callable[[Values], bytes]
    run: Run
    codes: frozenset[int] = frozenset((0, 2))
    weight: int = 1


def as_json(values: Values) -> bytes:
    """Return values as JSON, halves of surrogate pairs and numbers that are none in it."""
    return json.dumps(values).encode()


def as_lines(values: Values) -> bytes:
    """Return a list as JSON lines, and anything else as one."""
    lines = values if isinstance(values, list) else [values]
    return b"".join(as_json(line) + b"\n" for line in lines)


def as_yaml(values: Values) -> bytes:
    """Return values as YAML."""
    return str(yaml.safe_dump(values)).encode(errors="surrogatepass")


def as_text(values: Values) -> bytes:
    """Return values one a line, their parts separated by commas."""
    rows = values if isinstance(values, list) else [values]
    lines = (",".join(map(str, row)) if isinstance(row, list) else str(row) for row in rows)
    return "\n".join(lines).encode(errors="surrogatepass")


def command(*arguments: str) -> Run:
    """Return what runs a command of qbench."""
    return lambda file: qbench(list(arguments))


def reading(read: Callable[[Path], object]) -> Run:
    """Return what reads a file by a function, and ends as the command line would."""

    def run(file: Path) -> int:
        try:
            read(file)
        except QbenchError as error:
            return error.exit_code
        return 0

    return run


def _read_noise(file: Path) -> object:
    os.environ["QBENCH_CONFIG_DIR"] = str(file.parent)
    shutil.copy(file, noise_file("cpu", "Some CPU"))
    return read_noise("cpu", "Some CPU")


def targets(records: list[Values]) -> tuple[Target, ...]:
    """Return all kinds of inputs; `records` are those of a real run."""
    plans = [each for each in records if each["kind"] == "plan"]
    check = frozenset((0, 1, 2))
    return (
        Target(name="config.json", file="model/config.json", seeds=(MODEL,), write=as_json,
               run=command("plan", "./model", "--seq", "32", "--no-cache"), weight=3),
        Target(name="scenario", file="s.yaml", seeds=(SCENARIO,), write=as_yaml,
               run=command("plan", "s.yaml", "--no-cache", "--max-points", "4"), weight=3),
        Target(name="axolotl", file="c.yaml", seeds=(AXOLOTL,), write=as_yaml,
               run=command("plan", "--from", "c.yaml", "--no-cache")),
        Target(name="llama-factory", file="c.yaml", seeds=(LLAMA_FACTORY,), write=as_yaml,
               run=command("plan", "--from", "c.yaml", "--no-cache")),
        Target(name="trl", file="c.yaml", seeds=(TRL,), write=as_yaml,
               run=command("plan", "--from", "c.yaml", "--no-cache")),
        Target(name="records", file="records.jsonl", seeds=(records,), write=as_lines,
               run=command("report", "records.jsonl", "--out", "out"), weight=3),
        Target(name="trend", file="records.jsonl", seeds=(records,), write=as_lines,
               run=command("trend", "records.jsonl"), codes=check, weight=2),
        Target(name="check", file="records.jsonl", seeds=(records,), write=as_lines, codes=check,
               run=command("check", "records.jsonl", "--baseline", "sound.jsonl"), weight=4),
        Target(name="baseline", file="records.jsonl", seeds=(records,), write=as_lines, codes=check,
               run=command("check", "sound.jsonl", "--baseline", "records.jsonl"), weight=4),
        Target(name="document", file="b.json", seeds=({"records": plans},), write=as_json, codes=check,
               run=command("check", "sound.jsonl", "--baseline", "b.json"), weight=3),
        Target(name="request", file="r.json", write=as_json, run=reading(read_request), weight=3,
               seeds=({"schema_version": 1, "point": SCENARIO["base"], "device": "cpu", "repeat": 1,
                       "settings": {"OMP_NUM_THREADS": "2"}},)),
        Target(name="calibration", file="k.json", seeds=(CALIBRATION,), write=as_json,
               run=reading(read_calibration), weight=3),
        Target(name="noise", file="n.json", seeds=(NOISE,), write=as_json, run=reading(_read_noise)),
        Target(name="prices", file="p.csv", write=as_text, run=reading(read_hourly_prices), weight=2,
               seeds=([["gpu", "usd_per_hour", "date"], ["RTX 4090", 0.5, "2026-01-01"]],)),
        Target(name="lengths", file="l.txt", seeds=([5, 100, 31],), write=as_text, run=reading(read_lengths)),
    )  # fmt: skip


def mutated(source: random.Random, target: Target) -> bytes:
    """Return a sound input with one to three mutations."""
    values = copy.deepcopy(source.choice(target.seeds))
    in_bytes = source.random() < 0.3
    count = source.randint(1, 3)
    if not in_bytes:
        for _ in range(count):
            values = _changed(source, values)
    content = target.write(values)
    for _ in range(count if in_bytes else 0):
        content = _changed_bytes(source, content)
    return content


def _places(values: Values) -> Iterator[tuple[Values, Values]]:
    """Yield each container and key in it, at every depth."""
    keys = (
        values.keys() if isinstance(values, dict) else range(len(values)) if isinstance(values, list) else ()
    )
    for key in list(keys):
        yield values, key
        yield from _places(values[key])


def _changed(source: random.Random, values: Values) -> Values:
    places = list(_places(values))
    if not places or source.random() < 0.02:
        return source.choice(ODD)
    holder, key = source.choice(places)
    kind = source.random()
    if kind < 0.7:
        holder[key] = copy.deepcopy(source.choice(ODD))
    elif kind < 0.8:
        del holder[key]
    elif kind < 0.9:
        other, at = source.choice(places)
        holder[key] = copy.deepcopy(other[at])
    elif isinstance(holder, dict):
        holder[source.choice(NAMES)] = holder.pop(key)
    else:
        holder.insert(key, copy.deepcopy(holder[key]))
    return values


def _changed_bytes(source: random.Random, content: bytes) -> bytes:
    start = source.randrange(len(content) + 1)
    end = min(len(content), start + source.choice((0, 1, 3, 20, 200)))
    kind = source.randrange(4)
    if kind == 0:
        return content[:start] + source.choice(TOKENS) + content[end:]
    if kind == 1:
        return content[:start]
    if kind == 2:
        return content[:end] + content[start:]
    return content[:start] + bytes(source.randrange(256) for _ in range(end - start)) + content[end:]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How the process of one input ended."""

    code: int | None
    """None: it had to be ended."""
    seconds: float
    """Of processor time."""
    num_bytes: int
    said: str


def forked(run: Run, file: Path) -> Ended:
    """Return how reading a file in a process of its own ended."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        os.dup2(writer, 1)
        os.dup2(writer, 2)
        # Those of the parent may be files, in which they would seek.
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
        code = 99
        try:
            _limit_memory_and_time()
            code = run(file)
            sys.stdout.flush()
            sys.stderr.flush()
        except BaseException as error:
            os.write(2, f"\nescaped: {error!r}\n".encode(errors="replace"))
        finally:
            os._exit(code)
    os.close(writer)
    said, in_time = _said(reader, time.monotonic() + MOST_WALL_S)
    if not in_time:
        os.kill(pid, signal.SIGKILL)
    _, status, used = os.wait4(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    scale = 1 if sys.platform == "darwin" else 1024
    return Ended(
        code=code if in_time else None,
        seconds=used.ru_utime + used.ru_stime,
        num_bytes=used.ru_maxrss * scale,
        said=said.decode(errors="replace"),
    )


def _limit_memory_and_time() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (MOST_CPU_S, MOST_CPU_S))
    if sys.platform == "linux":
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + ADDRESS_BYTES, resource.RLIM_INFINITY))


def _said(reader: int, deadline: float) -> tuple[bytes, bool]:
    """Return what a process says until it ends, and whether it did by the deadline."""
    import select

    said = b""
    with os.fdopen(reader, "rb", buffering=0) as stream:
        while (left := deadline - time.monotonic()) > 0:
            if select.select([stream], [], [], left)[0]:
                chunk = stream.read(1 << 16)
                if not chunk:
                    return said, True
                said = (said + chunk)[-20_000:]
    return said, False


def problem(target: Target, ended: Ended) -> str | None:
    """Return what is wrong with an ending, None where nothing is."""
    if ended.code is None:
        return f"no end within {MOST_WALL_S:g} s"
    if "Traceback (most recent call last)" in ended.said:
        return "a traceback"
    if ended.code not in target.codes:
        return f"exit code {ended.code}"
    if ended.seconds > MOST_S:
        return f"{ended.seconds:.1f} s of processor time"
    return f"{ended.num_bytes >> 20} MiB" if ended.num_bytes > MOST_BYTES else None


def prepared(folder: Path) -> tuple[Target, ...]:
    """Fill a folder with what the inputs stand beside, make it the working folder, and return the targets."""
    from qbench.planner.plan import plan
    from qbench.scenario.schema import Point

    os.chdir(folder)
    for name in ("CACHE", "CONFIG"):
        os.environ[f"QBENCH_{name}_DIR"] = str(folder / name.lower())
    (folder / "config").mkdir()
    _write_model(folder)
    point = Point.model_validate(SCENARIO["base"])
    planned = plan(point).to_dict()
    times = {"step_time_s": [0.1, 0.11], "tokens_per_s": 300.0, "peak_allocated_bytes": 5_000_000}
    environment = planned["environment"] | {"device": "cpu", "device_name": "Some CPU"}
    measured = [
        planned
        | {"kind": "measurement", "metrics": times, "detail": {"repeat": n}, "environment": environment}
        for n in range(3)
    ]
    records = [planned, *measured]
    (folder / "sound.jsonl").write_bytes(as_lines(records))
    found = targets(records)
    _check_sound(folder, found)
    return found


def _check_sound(folder: Path, chosen: Sequence[Target]) -> None:
    """Read each sound input once, which also loads what the processes of the others then have.

    Raises RuntimeError where one is refused: its mutations would say nothing.
    """
    environment = dict(os.environ)
    for target in chosen:
        (folder / target.file).write_bytes(target.write(target.seeds[0]))
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            code = target.run(folder / target.file)
        if code != 0:
            raise RuntimeError(f"{target.name}: the sound input ends in {code}")
    os.environ.update(environment)


def _write_model(folder: Path) -> None:
    (folder / "model").mkdir(exist_ok=True)
    (folder / "model/config.json").write_bytes(as_json(MODEL))


def findings(
    inputs: int, seed: int, folder: Path, chosen: Sequence[Target]
) -> Iterator[tuple[Target, bytes, Ended, str]]:
    """Yield each input that ends otherwise than it may: its kind, content, ending and what is wrong."""
    weighted = [target for target in chosen for _ in range(target.weight)]
    for number in range(inputs):
        source = random.Random(f"{seed} {number}")
        target = source.choice(weighted)
        content = mutated(source, target)
        file = folder / target.file
        file.write_bytes(content)
        ended = forked(target.run, file)
        wrong = problem(target, ended)
        if target.name == "config.json":
            _write_model(folder)
        if wrong is not None:
            yield target, content, ended, wrong


def main() -> int:
    """Try so many inputs; print each finding and a count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--inputs", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", help="name of one kind of input")
    parser.add_argument("--keep", type=Path, help="folder for the inputs that were found")
    given = parser.parse_args()
    found: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="qbench-fuzz-") as name:
        keep = None if given.keep is None else given.keep.absolute()
        chosen = [each for each in prepared(Path(name)) if given.only in (None, each.name)]
        start = time.monotonic()
        for target, content, ended, wrong in findings(given.inputs, given.seed, Path(name), chosen):
            found[f"{target.name}: {wrong}"] += 1
            print(f"--- {target.name}: {wrong}\n{ended.said[-1500:]}", flush=True)
            if keep is not None:
                keep.mkdir(parents=True, exist_ok=True)
                (keep / f"{sum(found.values()):04d}-{target.name}").write_bytes(content)
        os.chdir("/")
    seconds = time.monotonic() - start
    tried = f"{given.inputs} inputs of {len(chosen)} kinds, seed {given.seed}, {seconds:.0f} s"
    print(f"{tried}: {found.total()} findings")
    for text, count in found.most_common():
        print(f"{count:6} {text}")
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
