from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from qbench.errors import QbenchError, RecordError
from qbench.records.store import write_records
from qbench.web.runs import open_runs
from qbench.web.server import PlannerPage, bind
from qbench.web.uploads import LARGEST_CONFIG
from tests.report.sample_run import sample_run

HOSTILE = "<img src=x onerror=alert(1)>&{%scripts%}\"'\u202e"
OWN = {"Host": "127.0.0.1:8050"}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("served")
    write_records(folder / HOSTILE / "records.jsonl", sample_run())
    (folder / "secret.txt").write_text("the secret")
    page = PlannerPage(open_runs([folder / HOSTILE]), folder / "configs")
    yield page.app.test_client()
    page.close()


def asked(client, query: object, reader: object = "me", stamp: object = 1):
    """Return the answer to what a page sends when its form changes."""
    outputs = [("answer", "children"), ("answered", "data")]
    body = {
        "output": ".." + "...".join(f"{name}.{prop}" for name, prop in outputs) + "..",
        "outputs": [{"id": name, "property": prop} for name, prop in outputs],
        "inputs": [
            {"id": "asked", "property": "data", "value": {"query": query, "reader": reader, "stamp": stamp}}
        ],
        "changedPropIds": ["asked.data"],
    }
    return client.post("/_dash-update-component", json=body, headers=OWN)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8050",
        "127.0.0.1.evil.example",
        "",
        "[::1]:80",
        "x@localhost",
        "127.0.0.1:8050.evil.example",
        "localhost:",
    ],
)
@pytest.mark.parametrize("path", ["/", "/assets/page.js", "/_dash-layout", "/run/0/"])
def test_another_host_name_is_refused(client, host: str, path: str):
    assert client.get(path, headers={"Host": host}).status_code == 403


@pytest.mark.parametrize("host", ["127.0.0.1:8050", "localhost:9", "localhost"])
def test_own_names_are_answered(client, host: str):
    assert client.get("/", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "https://127.0.0.1:8050", "http://127.0.0.1:81"]
)
def test_other_pages_cannot_ask(client, origin: str):
    answer = client.post("/config", data=b"{}", headers={**OWN, "Origin": origin})
    assert answer.status_code == 403


@pytest.mark.parametrize(
    "path",
    [
        "/../secret.txt",
        "/assets/../server.py",
        "/assets/..%2f..%2f..%2fpyproject.toml",
        "/assets/%2e%2e/%2e%2e/secret.txt",
        "/assets//etc/passwd",
        "/run/0/../../secret.txt",
        "/run/0/report.../../secret.txt",
        "/run/0/records.jsonl",
        "/run/0/report.html%00.csv",
        "/run/1/",
        "/run/-1/",
        "/run/%2e%2e/",
        "/_dash-component-suites/dash/../../../etc/passwd",
        "/_dash-component-suites/qbench/web/server.py",
        "/_dash-component-suites/dash/dcc/no-such.js",
        "/etc/passwd",
        "/secret.txt",
        "/proc/self/environ",
    ],
)
def test_no_path_leads_out(client, path: str):
    answer = client.get(path, headers=OWN)
    assert answer.status_code == 404
    assert b"the secret" not in answer.data
    assert b"root:" not in answer.data


def test_the_page_loads_from_itself_alone(client):
    answer = client.get("/", headers=OWN)
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe-eval" not in policy
    assert "script-src 'self' 'sha256-" in policy
    assert "//cdn" not in answer.text
    assert 'lang="en"' in answer.text


def test_a_run_is_shown_with_its_report_and_tables(client):
    page = client.get("/run/0/", headers=OWN)
    assert page.mimetype == "text/html"
    assert "<img src=x" not in page.text
    assert "&lt;img src=x onerror" in page.text
    assert client.get("/run/0/report.csv", headers=OWN).text.count("\n") == len(sample_run()) + 1
    assert client.get("/run/0/report.md", headers=OWN).text.startswith("## ")
    layout = json.dumps(client.get("/_dash-layout", headers=OWN).get_json())
    assert json.dumps(HOSTILE)[1:-1] in layout.replace("\\\\", "\\")
    assert "/run/0/" in layout


def test_the_settings_of_a_model_path_are_never_opened(client):
    for number, model in enumerate(("/etc", "..", "org/unknown", "%3Cscript%3E")):
        said = asked(client, f"model={model}", reader="paths", stamp=number).text
        assert "is not in the catalog" in said


@pytest.mark.parametrize(
    ("query", "reader", "stamp"),
    [
        (None, "me", 1),
        (["x"], "me", 1),
        ("", None, 1),
        ("", "me", "x"),
        ("", "me", None),
        pytest.param("", "me", 10**400, id="huge"),
    ],
)
def test_a_question_of_another_kind_has_no_answer(client, query, reader, stamp):
    assert asked(client, query, reader, stamp).status_code == 204


def posted(client, body: bytes | str, kind: str = "application/json"):
    return client.post("/_dash-update-component", data=body, headers={**OWN, "Content-Type": kind})


INPUT = {"id": "asked", "property": "data", "value": {"query": "", "reader": "me", "stamp": 1}}
OUTPUTS = [{"id": "answer", "property": "children"}, {"id": "answered", "property": "data"}]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"output": None}, "unknown output"),
        ({"output": ["details.children"]}, "unknown output"),
        ({"output": "no.such"}, "unknown output"),
        ({"output": "shown.data"}, "unknown output"),  # It runs in the browser.
        ({"outputs": None}, "outputs are not those of output"),
        ({"outputs": OUTPUTS[0]}, "outputs are not those of output"),
        ({"outputs": OUTPUTS[:1]}, "outputs are not those of output"),
        ({"outputs": [1, 2]}, "outputs are not those of output"),
        ({"outputs": [{}, {}]}, "outputs are not those of output"),
        ({"inputs": None}, "inputs must be asked.data"),
        ({"inputs": [INPUT, INPUT]}, "inputs must be asked.data"),
        ({"inputs": [{**INPUT, "id": {"a": 1}}]}, "inputs must be asked.data"),
        ({"state": 1}, "state must be empty"),
        ({"state": [INPUT]}, "state must be empty"),
        ({"changedPropIds": None}, "changedPropIds must be a list of names"),
        ({"changedPropIds": [{}]}, "changedPropIds must be a list of names"),
    ],
)
def test_a_malformed_question_is_one_line_and_leaves_no_trace(client, changes, said, caplog):
    good = {"output": "..answer.children...answered.data..", "outputs": OUTPUTS, "inputs": [INPUT]}
    assert posted(client, json.dumps(good)).status_code == 200
    answer = posted(client, json.dumps(good | changes))
    assert (answer.status_code, answer.mimetype) == (400, "text/plain")
    assert answer.text.startswith(said)
    assert answer.text.endswith("; reload the page")
    assert "\n" not in answer.text
    assert caplog.records == []


def test_a_question_with_one_output_is_as_the_browser_sends_it(client):
    # dash_renderer, handleServerside: one output is no list, and names are told twice.
    body = {
        "output": "details.children",
        "outputs": {"id": "details", "property": "children"},
        "inputs": [{**INPUT, "id": "answered"}],
        "changedPropIds": ["answered.data"],
        "parsedChangedPropsIds": ["answered.data"],
    }
    assert "details" in posted(client, json.dumps(body)).get_json()["response"]
    # What a store does not hold yet is left out.
    nothing = body | {"inputs": [{"id": "answered", "property": "data"}]}
    assert posted(client, json.dumps(nothing)).status_code == 204


@pytest.mark.parametrize("body", ["", "{", "\xff", "[" * 100_000, '{"output": ' + "9" * 5000 + "}"])
def test_what_is_no_json_is_one_line(client, body: str, caplog):
    answer = posted(client, body)
    assert (answer.status_code, answer.text) == (400, "the body is not JSON; reload the page")
    assert posted(client, "{}", "text/plain").text == "the body is not JSON; reload the page"
    assert posted(client, "[]").text == "the body is not a JSON object; reload the page"
    assert posted(client, " " * (3 * LARGEST_CONFIG)).status_code == 413
    assert caplog.records == []


def test_a_question_with_more_in_it_gets_its_own_three_parts_back(client):
    deep: list[object] = []
    for _ in range(500):
        deep = [deep]
    body = {
        "output": "..answer.children...answered.data..",
        "outputs": OUTPUTS,
        "inputs": [{**INPUT, "value": INPUT["value"] | {"more": deep}}],
    }
    answer = posted(client, json.dumps(body))
    assert answer.get_json()["response"]["answered"]["data"] == INPUT["value"]


def test_a_config_is_taken_and_planned(client):
    from tiny import tiny_config

    content = json.dumps(tiny_config("meta-llama/Llama-3.1-8B"))
    taken = client.post("/config", data=content, headers=OWN).get_json()
    answer = asked(client, f"model={taken['model']}&seq=128", reader="config").get_json()["response"]
    assert "Fits on RTX 4090" in json.dumps(answer["answer"])
    assert taken["model"] in json.dumps(answer["answer"])


def test_a_card_without_room_has_no_speed(client):
    query = "model=HuggingFaceTB/SmolLM2-135M&batch=256&seq=4096&gpu=RTX 3060 12GB"
    said = json.dumps(asked(client, query, reader="short").get_json()["response"]["answer"])
    assert "Does not fit on RTX 3060 12GB" in said
    assert "needed without a limit." in said
    assert "On the card: out of memory in " in said
    assert "Peak allocated" in said
    for title in ("Step time", "Throughput", "Cost"):
        assert title not in said


def test_a_broken_config_is_a_line_and_a_huge_one_is_cut_off(client):
    assert "is not JSON" in client.post("/config", data=b"{", headers=OWN).get_json()["error"]
    too_large = client.post("/config", data=b" " * (LARGEST_CONFIG + 1), headers=OWN)
    assert "the limit is 1,048,576" in too_large.get_json()["error"]
    assert client.post("/config", data=b" " * (3 * LARGEST_CONFIG), headers=OWN).status_code == 413


def test_what_is_no_run_is_told_at_the_start(tmp_path: Path):
    with pytest.raises(RecordError, match="nowhere"):
        open_runs([tmp_path / "nowhere"])


def test_a_run_is_read_again_when_it_has_grown(tmp_path: Path):
    file = tmp_path / "records.jsonl"
    write_records(file, sample_run()[:2])
    (run,) = open_runs([tmp_path])
    assert run.file("csv").count("\n") == 3
    write_records(file, sample_run()[:5])
    assert run.file("csv").count("\n") == 6
    with pytest.raises(KeyError):
        run.file("exe")


def test_a_port_in_use_is_a_line():
    page = PlannerPage()
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(QbenchError, match=f"--port: {port} is unavailable"):
            bind(page, port)
    server = bind(page, 0)
    assert server.host == "127.0.0.1"
    server.server_close()
    page.close()
