"""Where a job's output goes. The patterns' results are those of Slurm 22.05.8."""

from __future__ import annotations

import pytest

from jobbergate_flows.slurm.paths import output_paths, task_path


def paths(*, array: bool = False, **options: str) -> tuple[str, str]:
    return output_paths(options, directory="/work/run", job_id="12", job_name="patt", user="alice", array=array)


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("%a-%A-%J-%j-%5j-%x-%u-%n-%t-%s-%%.out", "/work/run/4294967294-12-12-12-00012-patt-alice-0-0-batch-%.out"),
        ("%12j.out", "/work/run/0000000012.out"),
        (r"lit\%j.out", "/work/run/lit%j.out"),
        ("/tmp/%j.out", "/tmp/12.out"),
        ("%N.out", "/work/run/%N.out"),
    ],
)
def test_a_pattern_is_resolved_as_slurm_does(pattern: str, path: str) -> None:
    assert paths(output=pattern) == (path, path)


def test_without_options_the_output_is_slurms_own_file() -> None:
    assert paths() == ("/work/run/slurm-12.out",) * 2


def test_standard_error_may_go_elsewhere() -> None:
    assert paths(error="%x.err") == ("/work/run/slurm-12.out", "/work/run/patt.err")


def test_each_task_of_an_array_has_its_file() -> None:
    output, error = paths(array=True, error="%A/%3a-%x.err")

    assert (output, error) == ("/work/run/slurm-12_%a.out", "/work/run/12/%3a-patt.err")
    assert task_path(output, 7) == "/work/run/slurm-12_7.out"
    assert task_path(error, 7) == "/work/run/12/007-patt.err"
    assert task_path(output, None) == output
