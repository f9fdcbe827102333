"""What `docs/coming-from-jobbergate.md` says: every name of Jobbergate's reference pages, and where it is here."""

from __future__ import annotations

import importlib
import re
from functools import reduce
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[1] / "docs" / "coming-from-jobbergate.md").read_text(encoding="utf-8")

CORE = """
AuthenticationError JobbergateAuthHandler JobbergateAuthHandler.__call__ JobbergateAuthHandler.acquire_access
JobbergateAuthHandler.get_access_from_secret JobbergateAuthHandler.load_from_cache JobbergateAuthHandler.login
JobbergateAuthHandler.logout JobbergateAuthHandler.refresh_tokens JobbergateAuthHandler.save_to_cache Token
Token.__post_init__ Token.file_path Token.data Token.bearer_token Token.clear_cache Token.is_expired Token.is_valid
Token.load_from_cache Token.replace Token.save_to_cache TokenData TokenError TokenType DeviceCodeData IdentityData
TimedIterator print_login_url JobbergateRequestError JobbergateResponseError RequestHandler
RequestHandler.__post_init__ RequestHandler.response RequestHandler.check_status_code RequestHandler.raise_for_status
RequestHandler.to_file RequestHandler.to_json RequestHandler.to_model RequestModelError deserialize_request_model
InfoHandler InfoHandler.get_job_info SubmissionHandler SubmissionHandler.copy_file_to_submission_directory
SubmissionHandler.submit_job inject_sbatch_params version
"""
AGENT = """
AsyncBackendClient AsyncBackendClient.request acquire_token initialize_influx_client self_update_agent FileType
report_health_status ActiveJobSubmission InfluxDBMeasurementDict InfluxDBPointDict JobScript JobScriptFile
JobSubmissionMetricsMaxResponse JobSubmissionMetricsMaxTime PendingJobSubmission SlurmJobData
SlurmJobData.validate_job_state SlurmSubmitError SlurmSubmitResponse SubprocessAsUserHandler fetch_pending_submissions
get_job_script_file mark_as_rejected mark_as_submitted process_supporting_files retrieve_submission_file
submit_job_script submit_pending_jobs validate_submit_dir write_submission_file fetch_active_submissions
fetch_influx_data fetch_influx_measurements update_active_jobs update_job_data update_job_metrics main Settings
Settings.compute_extra_settings active_submissions_task garbage_collection_task pending_submissions_task
self_update_task status_report_task trigger_garbage_collections aggregate_influx_measures measure_memory_usage
AuthTokenError JobSubmissionError JobbergateAgentError JobbergateApiError ProcessExecutionError SbatchError
SlurmParameterParserError log_error logger_wraps load_plugins JobbergateTask JobbergateTask.__call__ init_scheduler
schedule_tasks shut_down_scheduler SlurmUserMapper SingleUserMapper SingleUserMapper.__post_init__
SlurmUserMapperFactory SlurmUserMapperFactory.__call__ manufacture
"""


@pytest.mark.parametrize(("package", "names"), [("jobbergate_core", CORE), ("jobbergate_agent", AGENT)])
def test_the_table_has_every_name(package: str, names: str) -> None:
    section = PAGE.partition(f"\n### {package}\n")[2].partition("\n### ")[0]
    rows = re.findall(r"^\| `([\w.]+)` \| (.*?) \|", section, re.MULTILINE)
    assert sorted(name for name, _ in rows) == sorted(names.split())
    assert not [name for name, here in rows if not re.search(r"`[\w. -]+`", here)]


NAMES = sorted(set(re.findall(r"`((?:jobbergate_flows|agent_worker|benchmarks)[\w.]+)`", PAGE)))


@pytest.mark.parametrize("name", NAMES)
def test_what_it_names_is_there(name: str) -> None:
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            module: object = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        reduce(getattr, parts[length:], module)
        return
    pytest.fail(f"{name} cannot be imported")
