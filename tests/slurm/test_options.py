"""sbatch options as one model."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest

from jobbergate_flows.slurm.directives import parse_directives, parse_parameters
from jobbergate_flows.slurm.errors import OptionRefused
from jobbergate_flows.slurm.options import (
    ALLOWED,
    SlurmResources,
    check_resources,
    parse_option_arguments,
    resources_of,
    resources_schema,
)


def test_options_become_arguments_of_one_word_each() -> None:
    resources = SlurmResources(
        partition="debug", time_limit="1:30:00", nodes="2-4", tasks=8, memory="4G", array="0-9%4", exclusive=True,
        extra={"nice": "100", "contiguous": "", "output": "logs/my job-%a.out"},
    )  # fmt: skip

    assert resources.to_arguments() == (
        "--partition=debug", "--time=1:30:00", "--nodes=2-4", "--ntasks=8", "--mem=4G", "--array=0-9%4", "--exclusive",
        "--no-requeue", "--nice=100", "--contiguous", "--output=logs/my job-%a.out",
    )  # fmt: skip


# As sbatch's manual has them, and not as the code does.
SBATCH: dict[str, tuple[object, tuple[str, ...]]] = {
    "partition": ("debug", ("--partition=debug",)),
    "account": ("physics", ("--account=physics",)),
    "qos": ("high", ("--qos=high",)),
    "time_limit": ("1:30:00", ("--time=1:30:00",)),
    "nodes": ("2-4", ("--nodes=2-4",)),
    "tasks": (8, ("--ntasks=8",)),
    "tasks_per_node": (4, ("--ntasks-per-node=4",)),
    "cpus_per_task": (2, ("--cpus-per-task=2",)),
    "memory": ("4G", ("--mem=4G",)),
    "memory_per_cpu": ("1G", ("--mem-per-cpu=1G",)),
    "gpus": ("a100:2", ("--gpus=a100:2",)),
    "gres": ("gpu:2,shard:1", ("--gres=gpu:2,shard:1",)),
    "constraint": ("skylake&ssd", ("--constraint=skylake&ssd",)),
    "reservation": ("course", ("--reservation=course",)),
    "array": ("0-9%4", ("--array=0-9%4",)),
    "dependency": ("afterok:1:2", ("--dependency=afterok:1:2", "--kill-on-invalid-dep=yes")),
    "mail_type": ("END,FAIL", ("--mail-type=END,FAIL",)),
    "mail_user": ("me@example.org", ("--mail-user=me@example.org",)),
    "exclusive": (True, ("--exclusive",)),
    "requeue": (True, ("--requeue",)),
    "extra": ({"nodelist": "node7"}, ("--nodelist=node7",)),
}


@pytest.mark.parametrize("field", SlurmResources.model_fields)
def test_every_field_is_its_option_of_sbatch_and_is_found_again_in_a_script(field: str) -> None:
    value, options = SBATCH[field]
    resources = check_resources({field: value})

    assert [option for option in resources.to_arguments() if option != "--no-requeue"] == list(options)
    script = "".join(f"#SBATCH {option}\n" for option in options)
    assert resources_of(parse_directives(f"#!/bin/sh\n{script}")) == resources


def test_whether_a_job_may_be_requeued_is_always_said() -> None:
    assert SlurmResources().to_arguments() == ("--no-requeue",)
    assert SlurmResources(requeue=True).to_arguments() == ("--requeue",)


def test_a_job_whose_dependency_fails_does_not_wait_for_ever() -> None:
    assert "--kill-on-invalid-dep=yes" in SlurmResources(dependency="afterok:1:2,afterany:3").to_arguments()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("time_limit", "five minutes"),
        ("time_limit", "-5"),
        ("time_limit", "1:2:3:4"),
        ("time_limit", "5\n#SBATCH --uid=0"),
        ("nodes", "0"),
        ("nodes", "4-2"),
        ("nodes", True),
        ("tasks", 0),
        ("tasks", -1),
        ("tasks", 10**9),
        ("cpus_per_task", "many"),
        ("memory", "-4G"),
        ("memory", "4 G"),
        ("gpus", "a100:-1"),
        ("partition", "de bug"),
        ("partition", "--uid=0"),
        ("partition", "debug\n"),
        ("array", "0-9;rm"),
        ("array", "5-1"),
        ("array", "0-3:0"),
        ("array", "99999999999999999999"),
        ("memory", "4B"),
        ("dependency", "afterok:$(id)"),
        ("mail_user", "me@example.org\nroot"),
        ("account", "ärger"),
        ("extra", {"nice": "-5"}),
        ("extra", {"output": "a\nb"}),
        ("extra", {"hold": "yes"}),
    ],
)
def test_a_malformed_value_is_refused_by_its_name(field: str, value: Any) -> None:
    with pytest.raises(OptionRefused) as refused:
        check_resources({field: value})

    assert "resources" in str(refused.value)
    assert field in str(refused.value) or str(next(iter(value))) in str(refused.value)


@pytest.mark.parametrize(
    "name",
    ["wrap", "uid", "gid", "chdir", "job-name", "comment", "export", "export-file", "parsable", "wait", "test-only",
     "get-user-env", "propagate", "bell", "clusters", "nosuch"],
)  # fmt: skip
def test_options_that_are_ours_or_dangerous_are_not_to_be_had(name: str) -> None:
    with pytest.raises(OptionRefused, match=name):
        check_resources({"extra": {name: "1"}})
    with pytest.raises(OptionRefused, match=name):
        parse_option_arguments([f"--{name}=1"])


@pytest.mark.parametrize("digits", ["٣", "３", "²"])
def test_digits_are_those_of_ascii(digits: str) -> None:
    texts = dict.fromkeys(("time_limit", "nodes", "memory", "array", "gpus"), digits)
    values: list[dict[str, Any]] = [{name: value} for name, value in texts.items()]
    values += [{"tasks": digits}, {"array": f"1%{digits}"}, *({"extra": {name: digits}} for name in ALLOWED)]
    for resources in values:
        with pytest.raises(OptionRefused):
            check_resources(resources)
    # Prefect's server checks the form in Python, whose digits are all of Unicode's.
    for name, value in texts.items():
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({name: value}, resources_schema())


def test_an_unknown_field_is_refused_with_the_known_ones() -> None:
    with pytest.raises(OptionRefused, match=r"resources\.cores: there is no such option \(known are partition"):
        check_resources({"cores": 4})


def test_two_ways_to_ask_for_memory_exclude_one_another() -> None:
    with pytest.raises(OptionRefused, match="exclude one another"):
        check_resources({"memory": "4G", "memory_per_cpu": "1G"})


def test_an_emptied_field_of_a_form_says_nothing() -> None:
    resources = check_resources({"partition": "", "tasks": None, "time_limit": "5"})

    assert resources == SlurmResources(time_limit="5")
    assert resources.over(SlurmResources(partition="debug")).partition == "debug"


def test_what_is_asked_goes_over_what_the_script_says() -> None:
    script = resources_of(
        parse_directives("#!/bin/sh\n#SBATCH -t 5 --mem=4G --requeue --nice=5 --uid=0 -n x\n#SBATCH -J name\n")
    )
    assert script == SlurmResources(time_limit="5", memory="4G", requeue=True, extra={"nice": "5"})

    together = SlurmResources(memory_per_cpu="1G", extra={"hint": "nomultithread"}).over(script)

    assert together.time_limit == "5"
    assert together.memory is None
    assert together.memory_per_cpu == "1G"
    assert together.requeue
    assert together.extra == {"nice": "5", "hint": "nomultithread"}


def test_a_script_that_contradicts_itself_can_still_be_shown() -> None:
    said = resources_of(parse_parameters(["--mem=4G", "--mem-per-cpu=1G", "--time=soon", "--nice=1"]))

    assert said == SlurmResources(memory="4G", extra={"nice": "1"})


def test_arguments_of_the_command_line_are_the_same_options() -> None:
    assert parse_option_arguments(["--time=5", "-p debug", "--exclusive"]) == SlurmResources(
        time_limit="5", partition="debug", exclusive=True
    )


@pytest.mark.parametrize(
    "argument",
    ["--time", "time=5", "--time=5\n--uid=0", "--time=soon", "-", "--", "-1", "--output=a b.txt", "--partition=a b",
     "--mail-user=a b", '--output="a b', "--output=a\\ b", "--requeue=1", "--no-requeue=1", "--exclusive=nobody",
     "--exclusive user", "--kill-on-invalid-dep=no", "--hold=1", "-n=4"],
)  # fmt: skip
def test_an_argument_that_is_no_option_is_refused(argument: str) -> None:
    with pytest.raises(OptionRefused):
        parse_option_arguments([argument])


def test_a_value_with_blanks_stands_in_quotes_as_in_a_script() -> None:
    for argument in ('--output="a b.txt"', "--output='a b.txt'", '-o "a b.txt"', '--output=a" "b.txt'):
        assert parse_option_arguments([argument]) == SlurmResources(extra={"output": "a b.txt"}), argument


@pytest.mark.parametrize(
    ("argument", "where", "says", "hint"),
    [
        ("--time=abc", "--time", "'abc' is not a value", "write it as 30"),
        ("--ntasks=few", "--ntasks", "'few' is no whole number from 1 to 1000000", "How many tasks"),
        ("--ntasks=0", "--ntasks", "'0' is no whole number from 1 to 1000000", "How many tasks"),
        ("--array=5-1", "--array", "smaller number first", "Task numbers"),
        ("--nice=-5", None, "'nice' does not take '-5'", "manual"),
    ],
)
def test_a_refused_value_names_its_option_and_the_mend(argument: str, where: str | None, says: str, hint: str) -> None:
    with pytest.raises(OptionRefused) as refused:
        parse_option_arguments([argument])

    assert refused.value.where == (where or "resources")
    assert says in refused.value.message
    assert hint in str(refused.value.hint)


def test_nodes_may_be_exclusive_to_a_user_or_to_a_label() -> None:
    resources = parse_option_arguments(["--exclusive=user"])

    assert "--exclusive=user" in resources.to_arguments()
    assert "--exclusive" not in resources.to_arguments()
    assert resources_of(parse_parameters(["--exclusive=user"])) == resources


def test_the_form_shows_what_the_script_says_and_refuses_what_is_malformed() -> None:
    schema = resources_schema(["--time=5", "--mem=4G"])
    jsonschema.Draft202012Validator.check_schema(schema)
    fields = schema["properties"]

    assert fields["time_limit"]["default"] == "5"
    assert "default" not in fields["partition"]
    assert all(field["title"] and field["description"] for field in fields.values())
    assert [field["position"] for field in fields.values()] == list(range(len(SlurmResources.model_fields)))
    jsonschema.validate({"time_limit": "1-0", "tasks": 4, "partition": "", "extra": {"nice": "1"}}, schema)
    for wrong in ({"time_limit": "soon"}, {"tasks": 0}, {"tasks": "4"}, {"cores": 4}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)
