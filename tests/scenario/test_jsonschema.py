from __future__ import annotations

import json

from qbench.scenario.jsonschema import json_schema_text, scenario_json_schema
from qbench.scenario.load import scenario_folder
from qbench.scenario.schema import PRECISIONS, Scenario
from qbench.scenario.settings import GROUPS, LEAVES, SETTINGS

UPDATE = (
    'python -c "from pathlib import Path; from qbench.scenario.jsonschema import json_schema_text; '
    "Path('scenarios/scenario.schema.json').write_text(json_schema_text())\""
)


def test_the_committed_schema_is_up_to_date() -> None:
    committed = (scenario_folder() / "scenario.schema.json").read_text(encoding="utf-8")
    assert json.loads(committed) == scenario_json_schema(), f"update it with: {UPDATE}"
    assert committed == json_schema_text(), f"update it with: {UPDATE}"


def test_matrix_and_changes_know_every_name_of_a_setting() -> None:
    schema = scenario_json_schema()
    names = {*LEAVES, *SETTINGS, *GROUPS}
    assert set(schema["properties"]["matrix"]["properties"]) == names
    assert set(schema["$defs"]["Changes"]["properties"]) == names


def test_matrix_values_are_lists_of_what_the_setting_allows() -> None:
    precision = scenario_json_schema()["properties"]["matrix"]["properties"]["precision"]
    assert (precision["type"], precision["minItems"], precision["uniqueItems"]) == ("array", 1, True)
    assert precision["items"]["enum"] == list(PRECISIONS)


def test_unknown_keys_are_refused_at_every_depth() -> None:
    schema = scenario_json_schema()
    objects = [schema, schema["properties"]["matrix"], *schema["$defs"].values()]
    assert [part.get("additionalProperties") for part in objects] == [False] * len(objects)
    assert set(schema["properties"]) == set(Scenario.model_fields)


def test_every_reference_has_its_definition() -> None:
    schema = scenario_json_schema()
    text = json.dumps(schema)
    referred = {part.partition('"')[0] for part in text.split('"#/$defs/')[1:]}
    assert referred == set(schema["$defs"])
