"""People open an application's form in Prefect's UI, fill it in, and see their run there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
from prefect.client.schemas.objects import FlowRun

from jobbergate_flows.applications import Application
from jobbergate_flows.deployments import DeployedApplication
from jobbergate_flows.slurm.options import SlurmResources
from tests.browser.chromium import Chromium
from tests.cluster.prefect_server import PrefectServer
from tests.cluster.site import Site
from tests.cluster.waiting import await_until

pytestmark = [pytest.mark.browser, pytest.mark.slurm]

EXAMPLES = Path(__file__).parents[2] / "examples"
DAMPING = "Points of the grid along the damping"
STIFFNESS = "Points of the grid along the stiffness"


@pytest.fixture(scope="session")
async def study(site: Site) -> DeployedApplication:
    return await site.deploy(Application.from_path(EXAMPLES / "parameter-study"))


@pytest.fixture(scope="session")
async def nested(site: Site) -> DeployedApplication:
    return await site.deploy(Application.from_path(EXAMPLES / "nested-questions"))


async def runs_of(deployment: UUID) -> list[FlowRun]:
    async with get_client() as client:
        chosen = DeploymentFilter(id=DeploymentFilterId(any_=[deployment]))
        return await client.read_flow_runs(deployment_filter=chosen)


async def test_the_form_shows_each_question_with_its_range_choices_and_default(
    browser: Chromium, prefect_server: PrefectServer, study: DeployedApplication, pictures: Path | None
) -> None:
    form = browser.form(study.id, prefect_server.url)
    assert form.titles() == ["Answers", "Directory", "Job name", "Resources", "Retries", "Application"]
    assert form.question("Answers").titles == (
        DAMPING,
        STIFFNESS,
        "Simulated time of each point in seconds",
        "Integration steps per simulated second",
        "Processes at once",
    )
    damping = form.question("Answers", DAMPING)
    assert (damping.description, damping.value) == ("From 1 to 200.", "24")
    steps = form.question("Answers", "Integration steps per simulated second")
    assert steps.choices == ("200", "1,000", "5,000")
    assert steps.value == "1000"
    assert "fine (1000)" in steps.description
    directory = form.question("Directory")
    assert (directory.value, directory.fixed) == ("~", False)
    assert "existing directory" in directory.description
    application = form.question("Application")
    assert application.fixed
    assert str(application.value).startswith("parameter-study@sha256:")
    if pictures:
        browser.screenshot(pictures / "form.png", 1500)


async def test_the_form_says_when_nested_questions_apply(
    browser: Chromium, prefect_server: PrefectServer, nested: DeployedApplication
) -> None:
    form = browser.form(nested.id, prefect_server.url)
    assert form.question("Answers").titles[:3] == ("Title of the picture", "Region", "Quality")
    region = form.question("Answers", "Region")
    assert (region.value, region.choices) == ("whole", ("whole", "seahorses", "elephants", "own"))
    assert "seahorses: Valley of the seahorses" in region.description
    colour, frame = form.question("Answers", "In colour?"), form.question("Answers", "Width of the frame in pixels")
    assert (colour.value, frame.value) == (False, "4")
    assert frame.description == 'Applies when "With a frame?" is yes. From 1 to 50.'
    assert form.question("Answers", "Palette").description == 'Applies when "In colour?" is yes.'
    assert form.question("Answers", "Real part of the centre").description == 'Applies when "Region" is own.'
    iterations = form.question("Answers", "Most iterations for a point of <region>")
    assert (iterations.value, iterations.description) == ("", "From 10 to 10000. Its default depends on other answers.")


async def test_the_form_shows_what_slurm_is_asked_for_and_what_the_script_says(
    browser: Chromium, prefect_server: PrefectServer, study: DeployedApplication
) -> None:
    form = browser.form(study.id, prefect_server.url)
    fields = SlurmResources.model_fields.values()
    assert form.question("Resources").titles == tuple(field.title for field in fields)
    for field in fields:
        shown = form.question("Resources", str(field.title))
        assert shown.description.startswith(str(field.description))
        expected = "1" if field.title == "Tasks" else False if field.annotation is bool else ""
        assert shown.value == expected, field.title
        assert shown.optional
    assert form.question("Resources", "Tasks").description.endswith("The job script says 1.")


@pytest.mark.parametrize(
    ("group", "title", "value", "said"),
    [
        ("Answers", DAMPING, "999", "999 is greater than the maximum of 200"),
        ("Resources", "Tasks", "0", "0 is less than the minimum of 1"),
        ("Resources", "Time limit", "soon", "'soon' does not match"),
    ],
)
async def test_a_wrong_value_is_refused_on_the_page_and_makes_no_run(
    browser: Chromium,
    prefect_server: PrefectServer,
    study: DeployedApplication,
    group: str,
    title: str,
    value: str,
    said: str,
) -> None:
    before = [run.id for run in await runs_of(study.id)]
    form = browser.form(study.id, prefect_server.url)
    form.fill(group, title, value=value)
    assert said in form.submit()
    assert [run.id for run in await runs_of(study.id)] == before


async def test_a_run_started_in_the_form_completes_and_its_pages_show_it(
    site: Site, browser: Chromium, prefect_server: PrefectServer, study: DeployedApplication, pictures: Path | None
) -> None:
    # A picture is of something that takes a while.
    points = "24" if pictures else "6"
    run = await _submitted(site, browser, prefect_server, study, {DAMPING: points, STIFFNESS: ""}, {"Time limit": "2"})
    assert run.parameters["answers"]["damping_points"] == int(points)
    assert "stiffness_points" not in run.parameters["answers"]
    assert run.parameters["resources"]["time_limit"] == "2"
    ended = await site.end(run.id)
    assert ended.state_name == "Completed", f"{ended.state}\n{site.worker_log()}"
    (submission,) = site.submissions(run.id)
    assert submission.job is not None
    await site.logged(run.id, "Best point")
    page = f"{prefect_server.url}/runs/flow-run/{run.id}"
    shown = browser.open(page, "Completed", "submit_job_script", "Best point")
    assert submission.job.job_id in shown
    if pictures:
        browser.screenshot(pictures / "run.png", 1500)
    browser.press("Artifacts")
    browser.wait_for_text("job-script", "job-summary")


async def test_questions_that_were_not_asked_do_not_hinder_a_run(
    site: Site, browser: Chromium, prefect_server: PrefectServer, nested: DeployedApplication
) -> None:
    form = browser.form(nested.id, prefect_server.url)
    form.fill("Directory", value=str(site.jobs))
    form.choose("Answers", "Region", choice="seahorses")
    form.switch("Answers", "In colour?")
    form.fill("Answers", "Width in pixels", value="64")
    run = await _new_run(nested.id, form.submit)
    assert run.parameters["answers"]["region"] == "seahorses"
    assert run.parameters["answers"]["colour"] is True
    assert "iterations" not in run.parameters["answers"]
    ended = await site.end(run.id)
    assert ended.state_name == "Completed", f"{ended.state}\n{site.worker_log()}"
    assert any("region seahorses, at most 400 iterations" in line for line in await site.logged(run.id, "pixels"))


async def _submitted(
    site: Site,
    browser: Chromium,
    server: PrefectServer,
    deployed: DeployedApplication,
    answers: dict[str, str],
    resources: dict[str, str],
) -> FlowRun:
    form = browser.form(deployed.id, server.url)
    form.fill("Directory", value=str(site.jobs))
    for title, value in answers.items():
        form.fill("Answers", title, value=value)
    for title, value in resources.items():
        form.fill("Resources", title, value=value)
    return await _new_run(deployed.id, form.submit)


async def _new_run(deployment: UUID, submit: Callable[[], str]) -> FlowRun:
    known = {run.id for run in await runs_of(deployment)}
    assert "scheduled" in submit()

    async def made() -> FlowRun | None:
        return next((run for run in await runs_of(deployment) if run.id not in known), None)

    run = await await_until(made, 120, "the run that was submitted")
    assert run is not None
    return run
