"""Whatever Slurm prints and whatever is asked for ends as a value or as one of our errors."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobbergate_flows.slurm import deputy
from jobbergate_flows.slurm.cluster import SubmitRequest, Witness
from jobbergate_flows.slurm.commands import (
    CommandResult,
    Sacct,
    SacctDetails,
    SacctFind,
    SacctSteps,
    Sbatch,
    Scancel,
    ShowConfig,
    Squeue,
    SqueueFind,
)
from jobbergate_flows.slurm.errors import OptionRefused, SlurmError
from jobbergate_flows.slurm.options import SlurmResources, check_resources, parse_option_arguments

WHEN = datetime(2026, 11, 21, tzinfo=UTC)
QUICK = settings(max_examples=300, deadline=None, derandomize=True)
# Slurm's own words and separators, and anything else; digits that are none of ASCII's, too.
WORDS = st.sampled_from([
    "RUNNING", "CANCELLED by 0", "CANCELLED by " + "9" * 5000, "123", "6_[0-3%2]", "6_[0-99999999999]", "6_[9-1]",
    "6_[0-" + "9" * 30 + "]", "None", "Unknown", "N/A", "0:0", "1:", ":1", "-1", "1700000000", "9" * 30, "9" * 5000,
    "²", "٣", "Ⅷ", "node[1-3]", "", "\x1f", "(null)", "1K", "K", "1.5G",
])  # fmt: skip
LINES = st.lists(WORDS | st.text(max_size=8), max_size=24).map("|".join) | st.lists(WORDS, max_size=24).map("\x1f".join)
# As many as the commands with the most columns print.
LINES |= st.sampled_from([13, 26]).flatmap(lambda n: st.lists(WORDS, min_size=n, max_size=n)).map("|".join)
RESULTS = st.builds(
    CommandResult,
    stdout=st.lists(LINES, max_size=4).map("\n".join) | WORDS | st.text(),
    stderr=st.text(max_size=20) | WORDS,
    returncode=st.sampled_from([0, 0, 0, 1, -9, None]),
)
PARSERS: list[Callable[[CommandResult], Any]] = [
    Squeue(["6"]).parse,
    SqueueFind("name", "me").parse,
    Sacct(["6"], WHEN).parse,
    SacctFind("name", "me", WHEN, Witness("1", "witness", WHEN)).parse,
    SacctDetails("6", WHEN).parse,
    SacctSteps("6", WHEN).parse,
    Sbatch(SubmitRequest("#!/bin/sh\n", (), "name", "key", "/")).parse,
    Scancel(["6"]).parse,
    ShowConfig().parse,
]


@pytest.mark.parametrize("parse", PARSERS, ids=lambda parse: type(parse.__self__).__name__)
@QUICK
@given(result=RESULTS)
def test_whatever_slurm_prints_is_understood_or_an_error(
    parse: Callable[[CommandResult], Any], result: CommandResult
) -> None:
    try:
        parse(result)
    except SlurmError:
        return


@QUICK
@given(result=RESULTS)
def test_a_submission_names_a_job_by_plain_digits(result: CommandResult) -> None:
    try:
        job_id = Sbatch(SubmitRequest("#!/bin/sh\n", (), "name", "key", "/")).parse(result)
    except SlurmError:
        return
    assert job_id.isascii()
    assert job_id.isdigit()


VALUES = st.none() | st.booleans() | st.integers() | st.text(max_size=12) | WORDS
FIELDS = st.dictionaries(st.sampled_from(sorted(SlurmResources.model_fields)), VALUES, max_size=4)
EXTRAS = st.dictionaries(
    st.sampled_from(sorted(deputy.SBATCH_OPTIONS)) | st.text(max_size=5), WORDS | st.text(max_size=8)
)


@QUICK
@given(FIELDS, st.none() | EXTRAS)
def test_options_that_are_taken_are_taken_by_the_deputy_too(fields: dict[str, Any], extra: Any) -> None:
    try:
        resources = check_resources(fields if extra is None else {**fields, "extra": extra})
    except OptionRefused:
        return
    arguments = list(resources.to_arguments())

    assert all(argument.startswith("--") and argument.isprintable() for argument in arguments)
    deputy.Run("sbatch", arguments, "", 1)._check()


@QUICK
@given(st.lists(st.text(max_size=20) | st.sampled_from(["--uid=0", "-p", "--time", "--time=1\n--uid=0", "--extra=x"])))
def test_arguments_that_are_taken_are_options_of_the_model(arguments: list[str]) -> None:
    try:
        resources = parse_option_arguments(arguments)
    except OptionRefused:
        return
    deputy.Run("sbatch", list(resources.to_arguments()), "", 1)._check()
