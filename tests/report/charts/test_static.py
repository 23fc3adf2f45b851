"""Charts as files: without kaleido one line says what to install."""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from qbench.comparison.results import gather
from qbench.errors import QbenchError
from qbench.report.charts import static
from qbench.report.charts.memory import breakdown_at_peak
from qbench.report.charts.static import BROWSERS, write_static
from qbench.report.charts.style import WRAP
from tests.report.sample_run import plan

CAN_DRAW = importlib.util.find_spec("kaleido") is not None and any(map(shutil.which, BROWSERS))


def test_without_kaleido_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(static.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(QbenchError, match=r"not installed: pip install 'qbench\[static\]'$"):
        write_static([], tmp_path)


def test_a_long_title_goes_on_below_and_the_legend_keeps_the_order_of_the_chart():
    chart = breakdown_at_peak(gather([plan("bf16", 8), plan("nf4", 8)]))
    assert chart is not None
    (figure,) = chart.figures
    short = static._on_paper(chart, figure).layout
    long = static._on_paper(replace(chart, title="a title of many words " * 8), figure).layout
    assert max(map(len, long.title.text.split(WRAP))) <= static.TITLE_CHARACTERS
    assert long.title.text.count(WRAP) == 1
    assert long.height - short.height == long.margin.t - short.margin.t > 0
    assert short.legend.traceorder == "normal"


@pytest.mark.skipif(not CAN_DRAW, reason="no kaleido or no Chromium to draw with")
def test_each_chart_is_two_files(tmp_path: Path):
    chart = breakdown_at_peak(gather([plan("bf16", 8), plan("nf4", 8)]))
    assert chart is not None
    paths = write_static([chart], tmp_path)
    assert [path.name for path in paths] == ["peak.svg", "peak.png"]
    assert "Where the memory is at the peak of a step" in paths[0].read_text()
    assert paths[1].read_bytes().startswith(b"\x89PNG")
