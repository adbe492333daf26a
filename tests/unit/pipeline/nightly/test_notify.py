"""The example of notifications is valid for the installed Prefect and names what prefect.yaml deploys."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from prefect.client.schemas.objects import StateType
from prefect.events.schemas.automations import AutomationCore
from prefect.server.utilities.user_templates import validate_user_template

from tests.conftest import REPO

FILE = REPO / "pipeline" / "templates" / "notify.yaml"


@pytest.fixture
def automations() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load(FILE.read_text())["automations"]
    return found


def test_every_automation_is_valid_and_listens_to_states_that_exist(automations: list[dict[str, Any]]) -> None:
    known = {f"prefect.flow-run.{kind.value.capitalize()}" for kind in StateType} | {"prefect.flow-run.heartbeat"}
    for automation in automations:
        trigger = AutomationCore.model_validate(automation).trigger
        assert set(automation["trigger"]["expect"]) <= known
        assert trigger.type == "event"


def test_they_are_about_the_deployment_that_make_orchestrate_registers(automations: list[dict[str, Any]]) -> None:
    deployed = {d["name"] for d in yaml.safe_load((REPO / "prefect.yaml").read_text())["deployments"]}
    assert {a["trigger"]["match_related"]["prefect.resource.name"] for a in automations} == deployed


def test_an_unknown_word_is_refused_by_the_schema(automations: list[dict[str, Any]]) -> None:
    automations[0]["trigger"]["posture"] = "Sometimes"
    with pytest.raises(ValueError, match="posture"):
        AutomationCore.model_validate(automations[0])


def test_the_texts_are_templates_that_prefect_can_fill(automations: list[dict[str, Any]]) -> None:
    for automation in automations:
        for action in (action for action in automation["actions"] if "subject" in action):
            validate_user_template(action["subject"])
            validate_user_template(action["body"])
