from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest

from qbench.cli.main import main


def test_a_missing_extra_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setitem(sys.modules, "dash", None)
    assert main(["serve"]) == 2
    said = "qbench: the planner page needs dash; install it: pip install 'qbench[web]'\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("port", ["-1", "65536", "x"])
def test_a_port_that_is_none_is_refused(port: str, capsys: pytest.CaptureFixture[str]):
    assert main(["serve", "--port", port]) == 2
    assert "port" in capsys.readouterr().err


def test_a_run_that_is_not_there_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["serve", str(tmp_path / "nowhere"), "--no-open"]) == 2
    assert "nowhere" in capsys.readouterr().err


def asked(address: str, model: str) -> None:
    """Send the question of a page, and leave before the answer."""
    value = {"query": f"model={model}", "reader": "me", "stamp": 1}
    names = [("answer", "children"), ("answered", "data")]
    body = {
        "output": "..answer.children...answered.data..",
        "outputs": [{"id": name, "property": prop} for name, prop in names],
        "inputs": [{"id": "asked", "property": "data", "value": value}],
        "changedPropIds": ["asked.data"],
    }
    request = urllib.request.Request(
        f"{address}_dash-update-component", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with contextlib.suppress(OSError):  # The server has ended.
        urllib.request.urlopen(request, timeout=600).read()


@pytest.mark.parametrize("wait_s", [0.0, 1.0, 8.0])
def test_ctrl_c_amid_a_plan_ends_the_page(tmp_path: Path, wait_s: float):
    """Before anything is loaded, while the libraries are, and while it plans."""
    page = subprocess.Popen(
        [sys.executable, "-m", "qbench", "serve", "--port", "0", "--no-open"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "QBENCH_CACHE_DIR": str(tmp_path)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert page.stdout is not None
    address = page.stdout.readline().strip()
    reader = threading.Thread(target=asked, args=(address, "meta-llama/Llama-3.1-405B"), daemon=True)
    reader.start()
    time.sleep(wait_s)
    os.killpg(page.pid, signal.SIGINT)
    _, said = page.communicate(timeout=300)
    assert page.returncode == 0, said
    assert said == "Press Ctrl-C to stop it.\n"
    reader.join(300)
