"""A job's metrics as columns."""

from __future__ import annotations

import csv
import io
import sys

import numpy as np
import pytest

from jobbergate_flows.metrics import LibraryMissing
from jobbergate_flows.metrics.model import JobMetrics, step_name, step_number
from tests.metrics.samples import START, piece


@pytest.mark.parametrize(
    ("tag", "name"),
    [
        ("-5", "batch"),
        ("4294967291", "batch"),
        ("batch", "batch"),
        ("-4", "extern"),
        ("4294967292", "extern"),
        ("-6", "interactive"),
        ("0", "0"),
        ("12", "12"),
        ("", ""),
        ("-5x", "-5x"),
    ],
)
def test_steps_have_slurms_names_in_all_its_versions(tag: str, name: str) -> None:
    assert step_name(tag) == name


@pytest.mark.parametrize(
    ("name", "number"),
    [("batch", -5), ("extern", -4), ("interactive", -6), ("12", 12), ("-9", -9), ("", None), ("a1", None)],
)
def test_steps_have_the_numbers_of_slurms_code(name: str, number: int | None) -> None:
    assert step_number(name) == number


def test_rows_are_ordered_by_task_and_time_with_numbers_as_numbers() -> None:
    metrics = JobMetrics.of(
        [
            piece({"RSS": [1]}, [0], task="10"),
            piece({"RSS": [3, 2]}, [10, 5], task="2"),
            piece({"RSS": [4]}, [9], step="batch"),
            piece({"RSS": [5]}, [9], job="7_2"),
            piece({"RSS": [6]}, [9], job="7_10", host="n10"),
            piece({"RSS": [7]}, [9], job="7_10", host="n9"),
        ]
    )
    assert metrics["RSS"].tolist() == [4, 2, 3, 1, 5, 7, 6]
    assert (metrics.time - START).tolist() == [9, 5, 10, 0, 9, 9, 9]
    assert metrics.step.tolist() == ["batch", "0", "0", "0", "0", "0", "0"]
    assert metrics.task.tolist() == ["0", "2", "2", "10", "0", "0", "0"]
    assert metrics.job.tolist() == ["7", "7", "7", "7", "7_2", "7_10", "7_10"]
    assert metrics.host.tolist()[-2:] == ["n9", "n10"]


def test_a_sample_that_lacks_a_measurement_has_no_value_there() -> None:
    metrics = JobMetrics.of([piece({"RSS": [1, 2]}, [0, 1]), piece({"VMSize": [9]}, [1])])
    assert metrics["RSS"].tolist() == [1, 2]
    assert np.isnan(metrics["VMSize"][0])
    assert metrics["VMSize"][1] == 9
    assert np.isnan(metrics["Pages"]).all()


def test_several_values_of_one_moment_are_summed() -> None:
    metrics = JobMetrics.of(
        [piece({"RSS": [1, 2]}, [0, 0]), piece({"RSS": [4]}, [0]), piece({"RSS": [8], "Pages": [1]}, [0])]
    )
    assert metrics["RSS"].tolist() == [15]
    assert metrics["Pages"].tolist() == [1]


def test_an_increment_adds_what_is_new_and_doubles_nothing() -> None:
    before = JobMetrics.of([piece({"RSS": [1, 2], "Pages": [5, 6]}, [0, 1]), piece({"RSS": [9]}, [0], task="1")])
    after = before.merged(
        JobMetrics.of([piece({"RSS": [20, 3]}, [1, 2]), piece({"RSS": [7]}, [1], task="0", host="a")])
    )
    assert list(zip(after.host, after.task, after.time - START, after["RSS"], strict=True)) == [
        ("a", "0", 1, 7),
        ("n1", "0", 0, 1),
        # The newer reading counts; what it lacks stays.
        ("n1", "0", 1, 20),
        ("n1", "0", 2, 3),
        ("n1", "1", 0, 9),
    ]
    assert after["Pages"][2] == 6
    assert before.merged(JobMetrics.empty()) is before
    assert len(JobMetrics.empty().merged(before)) == 3


def test_columns_cannot_be_changed() -> None:
    metrics = JobMetrics.of([piece({"RSS": [1]}, [0])])
    with pytest.raises(ValueError, match="read-only"):
        metrics["RSS"][0] = 2
    with pytest.raises(KeyError, match=r"Memory.*CPUFrequency"):
        metrics["Memory"]


def test_csv_has_units_and_times_with_a_zone() -> None:
    metrics = JobMetrics.of([piece({"RSS": [2048], "CPUTime": [0.25]}, [0], host='a"b,c')])
    (row,) = csv.DictReader(io.StringIO(metrics.to_csv()))
    assert row["time"] == "2026-09-21T14:13:20Z"
    assert (row["job"], row["host"], row["step"], row["task"]) == ("7", 'a"b,c', "0", "0")
    assert (row["RSS (KiB)"], row["CPUTime (s)"], row["VMSize (KiB)"]) == ("2048", "0.25", "")
    file = io.StringIO()
    assert metrics.to_csv(file) == ""
    assert file.getvalue() == metrics.to_csv()


def test_a_data_frame_has_the_same_columns() -> None:
    metrics = JobMetrics.of([piece({"RSS": [1, 2]}, [0, 1]), piece({"RSS": [3]}, [1], step="batch")])
    frame = metrics.to_dataframe()
    assert frame.groupby("step", observed=True)["RSS"].max().to_dict() == {"batch": 3, "0": 2}
    assert str(frame["time"].dt.tz) == "UTC"
    assert frame["time"].astype("int64").max() > 0
    assert frame["Pages"].isna().all()


def test_without_pandas_a_data_frame_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(LibraryMissing, match=r"pandas.*pip install pandas"):
        JobMetrics.empty().to_dataframe()
