from __future__ import annotations

import json
import pydoc
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import write_tiny_model

import qbench
from qbench.cli.main import main
from qbench.errors import CatalogError, QbenchError, RecordError, ScenarioError
from qbench.records.store import write_records
from tests.report.sample_run import sample_run

EXAMPLE = Path(__file__).parents[1] / "examples" / "qbench.ipynb"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny_model(tmp_path_factory.mktemp("model"), "meta-llama/Llama-3.1-8B")


def test_public_names_are_what_they_say_in_whatever_order_packages_are_imported():
    code = (
        "import qbench; f = qbench.plan; import qbench.planner.fit, qbench.comparison.results; "
        "assert f is qbench.plan is __import__('qbench.notebook').notebook.plan; "
        "assert all(getattr(qbench, name) is not None for name in qbench.__all__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr


def test_no_package_is_named_as_a_public_function():
    folders = {
        path.name for path in Path(qbench.__file__).parent.iterdir() if (path / "__init__.py").exists()
    }
    assert folders & set(qbench.__all__) == set()


def test_importing_qbench_loads_nothing():
    code = "import sys, qbench; print(sorted(name for name in sys.modules if name.startswith('qbench')))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True
    )
    assert done.stdout.strip() == "['qbench', 'qbench.version']"


def test_what_completion_offers():
    assert {"plan", "fit", "rank", "load_run", "compare", "figures", "__version__"} <= set(dir(qbench))


def test_what_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'plans'"):
        _ = qbench.plans  # type: ignore[attr-defined]


def test_lists_are_planned_in_every_combination(model: str):
    plans = qbench.plan(model, precision=["bf16", "nf4-dq"], r=[4, 8], seq_len=32, gpu="RTX 4090")
    assert [(record.point.precision, record.point.lora.r) for record in plans if record.point.lora] == [
        ("bf16", 4),
        ("bf16", 8),
        ("nf4-dq", 4),
        ("nf4-dq", 8),
    ]
    assert list(plans.frame["peak_allocated_bytes"]) == [
        record.metrics["peak_allocated_bytes"] for record in plans
    ]
    assert plans[0].detail["fits"][0]["gpu"] == "RTX 4090"
    assert len(plans[1:3]) == 2
    assert "<td>nf4-dq</td>" in plans._repr_html_()


def test_keywords_are_the_flags_of_the_command_line(model: str):
    (by_flag,) = qbench.plan(
        model, batch=2, seq="1k", attn="eager", lora_alpha=8, gradient_checkpointing=False
    )
    (by_field,) = qbench.plan(
        model,
        per_device_train_batch_size=2,
        seq_len=1024,
        attn_implementation="eager",
        **{"lora.lora_alpha": 8, "train.gradient_checkpointing": False},
    )
    assert by_flag.point == by_field.point
    assert by_flag.point.train.seq_len == 1024


def test_fit_and_rank_answer_as_their_commands_do(model: str, capsys: pytest.CaptureFixture[str]):
    found = qbench.fit(model, "4090", batch=2, precision=["bf16", "nf4"])
    asked = ["fit", model, "--gpu", "RTX 4090", "--batch", "2", "--precision", "bf16", "--precision", "nf4"]
    assert main([*asked, "--json"]) == 0
    fits = json.loads(capsys.readouterr().out)["fits"]
    # The tiny model has 256 positions.
    assert list(found.frame["seq"]) == [fit["largest"] for fit in fits] == [256, 256]
    assert [answer.value for answer in found] == [256, 256]
    assert list(found.frame["precision"]) == ["bf16", "nf4"]

    cards = qbench.rank(model, "1M", gpu=["L4", "RTX 4090"], sort="time", seq=128, precision="bf16")
    assert main(["rank", model, "--tokens", "1M", "--gpu", "L4", "--gpu", "RTX 4090", "--sort", "time",
                 "--seq", "128", "--precision", "bf16", "--json"]) == 0  # fmt: skip
    listed = json.loads(capsys.readouterr().out)["cards"]
    assert list(cards.frame["hours"]) == [card["hours"] for card in listed] == [card.hours for card in cards]
    assert "L4" in cards._repr_html_()
    with pytest.raises(QbenchError, match="sort: given 'speed'; allowed: cost, spot, time, energy"):
        qbench.rank(model, "1M", sort="speed")
    with pytest.raises(QbenchError, match="--vary: given 'optim'; allowed: seq, batch, r"):
        qbench.fit(model, "L4", vary="optim")


def test_target_modules_are_one_setting(model: str):
    (one,) = qbench.plan(model, target_modules=["q_proj", "v_proj"], seq_len=32)
    assert one.point.lora is not None
    assert one.point.lora.target_modules == ("q_proj", "v_proj")
    assert len(qbench.plan(model, target_modules=[["q_proj"], "all-linear"], seq_len=32)) == 2
    (trained,) = qbench.plan(model, modules_to_save=["lm_head", "embed_tokens"], seq_len=32)
    assert trained.point.lora is not None
    assert set(trained.point.lora.modules_to_save) == {"lm_head", "embed_tokens"}


def test_bad_settings_are_told(model: str):
    for given, meant in (
        ("rank", "r"),
        ("batch_size", "per_device_train_batch_size"),
        ("sequence_len", "seq_len"),
    ):
        with pytest.raises(
            ScenarioError, match=rf"{given}: unknown setting; allowed.*did you mean {meant}\?"
        ):
            qbench.plan(model, **{given: 4})
    with pytest.raises(ScenarioError, match="seq_len: sets seq_len a second time"):
        qbench.plan(model, seq=64, seq_len=64)
    with pytest.raises(ScenarioError, match="at least one value"):
        qbench.plan(model, r=[])
    with pytest.raises(CatalogError, match="GPU 'RTX'"):
        qbench.plan(model, gpu="RTX")
    with pytest.raises(QbenchError, match="no_such_module"):
        qbench.plan(model, target_modules="no_such_module", seq_len=32)
    with pytest.raises(RecordError, match="nowhere"):
        qbench.load_run("nowhere")


def test_a_run_is_compared_within_and_with_a_baseline(tmp_path: Path):
    write_records(tmp_path / "records.jsonl", sample_run())
    run = qbench.load_run(tmp_path)
    assert list(run) == sample_run()
    methods = qbench.compare(run)
    assert "less" in methods.sentences[0]
    assert len(methods.frame) > 0
    assert methods.frame["Saved"].dtype.kind in "if"
    assert methods.sentences[0].split()[0] in methods._repr_html_()
    grown = [
        replace(
            record,
            metrics=record.metrics | {"peak_allocated_bytes": 2 * record.metrics["peak_allocated_bytes"]},
        )
        if record.kind == "plan"
        else record
        for record in sample_run()
    ]
    against = qbench.compare(grown, baseline=run)
    worse = against.frame[against.frame["verdict"] == "worse"]
    assert set(worse["metric"]) == {"peak_allocated_bytes"}
    assert (worse["run"] == 2 * worse["baseline"]).all()
    assert "worse" in against._repr_html_()


def test_compare_and_figures_take_the_path_of_a_run(tmp_path: Path):
    write_records(tmp_path / "records.jsonl", sample_run())
    assert qbench.compare(str(tmp_path)).rows == qbench.compare(sample_run()).rows
    assert (
        qbench.compare(tmp_path, tmp_path).sentences == qbench.compare(sample_run(), sample_run()).sentences
    )
    assert list(qbench.figures(tmp_path)) == list(qbench.figures(sample_run()))
    with pytest.raises(RecordError, match="nowhere"):
        qbench.compare("nowhere")


@pytest.mark.parametrize("name", ["plan", "fit", "rank", "load_run", "compare", "figures"])
def test_help_shows_the_function_with_an_example(name: str):
    function = getattr(qbench, name)
    assert pydoc.render_doc(function, renderer=pydoc.plaintext).splitlines()[2].startswith(f"{name}(")
    assert f"qbench.{name}(" in function.__doc__


def test_charts_are_plotly_figures_by_name():
    charts = qbench.figures(sample_run())
    figure = charts["peak"]
    assert figure.layout.title.text == "Where the memory is at the peak of a step"
    assert figure.layout.showlegend
    assert charts.captions["peak"]
    assert "<code>waterfall</code>" in charts._repr_html_()
    assert "nothing" not in charts
    with pytest.raises(QbenchError, match="no chart 'nothing' of these records; there are: "):
        charts["nothing"]


def test_hostile_names_are_escaped():
    (record,) = sample_run()[:1]
    point = record.point.model_copy(update={"model": "<script>alert(1)</script>"})
    shown = qbench.notebook.Records((replace(record, point=point),), "<b>title")  # type: ignore[attr-defined]
    assert "<script>" not in shown._repr_html_()
    assert "&lt;b&gt;title" in shown._repr_html_()


def test_the_example_runs():
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(EXAMPLE, as_version=4)
    resources = {"metadata": {"path": str(EXAMPLE.parent)}}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    kinds = {kind for output in shown for kind in output.get("data", {})}
    assert {"text/html", "application/vnd.plotly.v1+json"} <= kinds
    assert not [output for output in shown if output.output_type in ("error", "stream")]
