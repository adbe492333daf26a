"""The example of notifications is valid for the installed Prefect and names what prefect.yaml deploys."""

from __future__ import annotations

import yaml
from prefect.client.schemas.objects import StateType
from prefect.events.schemas.automations import AutomationCore
from prefect.server.utilities.user_templates import validate_user_template

from tests.conftest import REPO


def test_the_example_is_valid_for_what_make_orchestrate_registers_and_for_states_that_exist() -> None:
    example = yaml.safe_load((REPO / "pipeline/templates/notify.yaml").read_text())
    deployed = {d["name"] for d in yaml.safe_load((REPO / "prefect.yaml").read_text())["deployments"]}
    known = {f"prefect.flow-run.{kind.value.capitalize()}" for kind in StateType} | {"prefect.flow-run.heartbeat"}
    for automation in example["automations"]:
        assert AutomationCore.model_validate(automation).trigger.type == "event"
        assert set(automation["trigger"]["expect"]) <= known
        assert automation["trigger"]["match_related"]["prefect.resource.name"] in deployed
        for action in (action for action in automation["actions"] if "subject" in action):
            validate_user_template(action["subject"])
            validate_user_template(action["body"])
