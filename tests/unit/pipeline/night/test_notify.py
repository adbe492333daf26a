"""The example of notifications is valid for the installed Prefect and names what prefect.yaml deploys."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest
import yaml
from prefect.client.schemas.objects import StateType
from prefect.events.schemas.automations import AutomationCore
from prefect.server.database import provide_database_interface
from prefect.server.events import triggers
from prefect.server.events.schemas.automations import Automation
from prefect.server.events.schemas.events import ReceivedEvent
from prefect.server.utilities.user_templates import validate_user_template
from prefect.settings import PREFECT_SERVER_DATABASE_CONNECTION_URL, temporary_settings
from prefect.types._datetime import now

from tests.conftest import REPO


def test_the_example_is_valid_for_what_make_orchestrate_registers_and_for_states_that_exist() -> None:
    example = yaml.safe_load((REPO / "pipeline/workspace/templates/notify.yaml").read_text())
    deployed = {d["name"] for d in yaml.safe_load((REPO / "prefect.yaml").read_text())["deployments"]}
    known = {f"prefect.flow-run.{kind.value.capitalize()}" for kind in StateType} | {"prefect.flow-run.heartbeat"}
    for automation in example["automations"]:
        assert AutomationCore.model_validate(automation).trigger.type == "event"
        assert set(automation["trigger"]["expect"]) <= known
        assert automation["trigger"]["match_related"]["prefect.resource.name"] in deployed
        for action in (action for action in automation["actions"] if "subject" in action):
            validate_user_template(action["subject"])
            validate_user_template(action["body"])


async def _hours_of_alarms(example: dict[str, object], completed: list[float], hours: float) -> list[float]:
    """When Prefect's own evaluation fires, in hours from the start, for nights that were completed at these hours."""
    db, automation, messages = provide_database_interface(), Automation.model_validate(example), []
    wanted = ("automation", "configuration")
    tables = [table for name, table in db.Base.metadata.tables.items() if name.startswith(wanted)]
    engine = await db.engine()
    async with engine.begin() as connection:
        await connection.run_sync(lambda sync: db.Base.metadata.create_all(sync, tables=tables))
    async with db.session_context(begin_transaction=True) as session:
        session.add(db.Automation(**automation.model_dump()))
    triggers.load_automation(automation)
    clock = start = look_at = now("UTC")

    async def act(_: object) -> None:
        messages.append((clock - start).total_seconds() / 3600)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triggers, "act", act)
        nights = [start + timedelta(hours=hour) for hour in completed]
        while min([look_at, *nights]) <= start + timedelta(hours=hours):
            clock = min([look_at, *nights])
            if clock in nights:
                related = {"id": "prefect.deployment.d", "role": "deployment", "name": "nightly"}
                event = ReceivedEvent(
                    id=uuid4(),
                    occurred=nights.pop(0),
                    event="prefect.flow-run.Completed",
                    resource={"prefect.resource.id": "prefect.flow-run.r"},
                    related=[{f"prefect.resource.{key}": value for key, value in related.items()}],
                )
                await triggers.reactive_evaluation(event)
                await triggers.reset_events_clock()
            else:
                look_at = await triggers.proactive_evaluation(automation.trigger, clock)
    await triggers.reset()
    await engine.dispose()
    return messages


def test_somebody_is_told_of_silence_26_hours_after_the_last_night_that_was_completed(tmp_path: Path) -> None:
    example = yaml.safe_load((REPO / "pipeline/workspace/templates/notify.yaml").read_text())
    (silent,) = [a for a in example["automations"] if a["name"] == "auto-label is silent"]
    with temporary_settings({PREFECT_SERVER_DATABASE_CONNECTION_URL: f"sqlite+aiosqlite:///{tmp_path}/events.db"}):
        assert asyncio.run(_hours_of_alarms(silent, [4, 28], 72)) == [54]
