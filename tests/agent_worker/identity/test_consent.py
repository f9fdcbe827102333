"""A user's file of consent: what a line allows, what makes it none, and how it is edited."""

from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from agent_worker.identity import consent
from agent_worker.identity.consent import ConsentLine, ConsentRefused, matches, parse, parse_line, write_line
from agent_worker.identity.facts import request_hash
from tests.agent_worker.identity.runs import DEPLOYMENT, DIGEST, NAME, NOW, OTHER_DIGEST, a_run

HASH = request_hash(a_run())


def line(text: str) -> ConsentLine:
    found = parse_line(text)
    assert found is not None
    return found


def why(text: str, **run: Any) -> str | None:
    return matches(line(text), a_run(**run), NOW)


class TestWhatALineAllows:
    @pytest.mark.parametrize("deployment", [DEPLOYMENT, DEPLOYMENT.upper(), NAME, f'"{NAME}"'])
    def test_exactly_the_request_that_was_allowed(self, deployment: str) -> None:
        text = f"{deployment} {DIGEST} {HASH}"

        assert why(text) is None
        assert "answers" in (why(text, answers={"steps": 11, "name": "first"}) or "")
        assert "directory" in (why(text, directory="/home/bob") or "")
        assert "answers" in (why(text, resources={"nodes": "200"}) or "")

    def test_any_answers_where_it_says_so(self) -> None:
        assert why(f"{NAME} {DIGEST} answers=any", answers={"name": "$(id)"}) is None

    def test_no_other_application_even_with_any_answers(self) -> None:
        for text in (f"{NAME} {DIGEST} answers=any", f"{NAME} {DIGEST} {HASH}"):
            assert "the run is of sha256:bbbb" in (why(text, application=OTHER_DIGEST) or "")

    def test_no_other_deployment(self) -> None:
        other = {"deployment_id": "0191d2a4-7f6b-7c3e-8a41-000000000000", "deployment_name": "other/nightly"}
        assert why(f"{NAME} {DIGEST} answers=any", **other) == "it is for another deployment"
        assert why(f"{DEPLOYMENT} {DIGEST} answers=any", **other) == "it is for another deployment"

    def test_a_run_without_a_deployment_is_in_no_line(self) -> None:
        assert why(f"{NAME} {DIGEST} answers=any", deployment_id=None, deployment_name=None) is not None

    def test_no_name_that_looks_alike(self) -> None:
        cyrillic = NAME.replace("a", "\u0430")
        fullwidth = NAME.replace("n", "\uff4e")
        for name in (cyrillic, fullwidth, NAME.upper(), f"{NAME} ", f"{NAME}\u200b"):
            assert why(f"{NAME} {DIGEST} answers=any", deployment_id="x", deployment_name=name) is not None

    def test_a_name_may_have_blanks_and_letters_of_all_kinds(self) -> None:
        name = 'Étude "paramétrique" \\ v2/chaque nuit'
        text = write_line(name, application=DIGEST, options={"answers": "any"})
        assert line(text).deployment == name
        assert matches(line(text), a_run(deployment_name=name), NOW) is None

    def test_ordinary_flows_only_where_it_says_so(self) -> None:
        assert why(f"{NAME} flows=any", kind="flow") is None
        assert why(f"{NAME} {DIGEST} answers=any,flows=any", kind="flow") is None
        assert "flows=any" in (why(f"{NAME} {DIGEST} answers=any", kind="flow") or "")
        assert "flows=any" in (why(f"{NAME} {DIGEST} {HASH}", kind="flow") or "")

    def test_flows_any_allows_no_application(self) -> None:
        assert why(f"{NAME} flows=any") is not None
        assert why(f"{NAME} flows=any", application=None) is not None

    def test_a_run_that_names_no_application_is_none(self) -> None:
        assert why(f"{NAME} {DIGEST} answers=any", application=None) is not None

    def test_a_line_that_is_made_without_being_parsed_allows_no_request_either(self) -> None:
        assert matches(ConsentLine(1, NAME, application=DIGEST), a_run(), NOW) == "the line allows no request"

    def test_limits_hold_beside_any_answers(self) -> None:
        text = f"{NAME} {DIGEST} answers=any,max-nodes=2,max-time=1:00:00"
        assert why(text) is None
        assert "nodes" in (why(text, resources={"nodes": "3", "time_limit": "30"}) or "")
        assert "state --nodes" in (why(text, resources={"time_limit": "30"}) or "")

    def test_options_that_slurm_would_refuse_are_within_no_limit(self) -> None:
        text = f"{NAME} {DIGEST} answers=any,max-nodes=2"
        assert "no such option" in (why(text, resources={"nodes": "1", "uid": "0"}) or "")
        assert "1; id" in (why(text, resources={"nodes": "1; id"}) or "")

    def test_a_request_that_has_no_hash_is_not_allowed(self) -> None:
        assert "no JSON" in (why(f"{NAME} {DIGEST} {HASH}", answers={"a": float("nan")}) or "")


class TestExpiry:
    def test_a_day_is_included_to_its_end(self) -> None:
        text = line(f"{NAME} {DIGEST} answers=any,expires=2026-12-31")
        assert matches(text, a_run(), datetime(2026, 12, 31, 23, 59, 59, tzinfo=UTC)) is None
        assert "expired" in (matches(text, a_run(), datetime(2027, 1, 1, tzinfo=UTC)) or "")

    def test_a_time_is_in_its_zone(self) -> None:
        text = line(f"{NAME} {DIGEST} answers=any,expires=2026-06-01T14:00:00+02:00")
        assert matches(text, a_run(), NOW - timedelta(seconds=1)) is None
        assert "expired" in (matches(text, a_run(), NOW) or "")

    @pytest.mark.parametrize(
        "text",
        ["2026-02-30", "2026-12-31T18:00:00", "20261231", "2026-W01-1", "tomorrow", "9999-12-31", "2026-12-31Z"],
    )
    def test_what_is_no_time_makes_the_line_none(self, text: str) -> None:
        with pytest.raises(ConsentRefused, match="expires"):
            parse_line(f"{NAME} {DIGEST} answers=any,expires={text}")


class TestWhatIsNoLine:
    @pytest.mark.parametrize(
        ("text", "says"),
        [
            (f"{NAME}", "digest is missing"),
            (f"{NAME} answers=any", "digest"),
            (f"{NAME} {DIGEST}", "either"),
            (f"{NAME} {DIGEST} {HASH} answers=any", "either"),
            (f"{NAME} {DIGEST} flows=any", "either"),
            (f"{NAME} {DIGEST} answers=any garbage", "too much"),
            (f"{NAME} {DIGEST} answers=any {HASH}", "too much"),
            (f"{NAME} {DIGEST} {HASH} {HASH}", "no option"),
            (f"{NAME} {DIGEST} answers=any,", "no option"),
            (f"{NAME} {DIGEST} answers=any;id", "answers=any;id"),
            (f"{NAME} {DIGEST} answers=ANY", "answers=ANY"),
            (f"{NAME} {DIGEST} answers=any,answers=any", "twice"),
            (f"{NAME} {DIGEST} answers=any,max-nodes=4,max-nodes=400", "twice"),
            (f"{NAME} {DIGEST} answers=any,max-nodes=", "no option"),
            (f"{NAME} {DIGEST} answers=any,max-nodes=-1", "no number"),
            (f"{NAME} {DIGEST} answers=any,max-nodes=many", "no number"),
            (f"{NAME} {DIGEST} answers=any,max-memory=lots", "no amount"),
            (f"{NAME} {DIGEST} answers=any,max-time=soon", "no time"),
            (f"{NAME} {DIGEST} answers=any,partition=a||b", "no name"),
            (f"{NAME} {DIGEST} answers=any,command=id", "no option"),
            (f"{NAME} {DIGEST.upper()} answers=any", "no option"),
            (f"{NAME} sha256:{'A' * 64} answers=any", "no digest"),
            (f"{NAME} {DIGEST}a answers=any", "no digest"),
            (f"{NAME} sha256:{'a' * 63} answers=any", "no digest"),
            (f"{NAME} sha256:{chr(0xFF11) * 64} answers=any", "no field"),
            (f"{NAME}\u00a0{DIGEST} answers=any", "no field"),
            (f"{NAME} {DIGEST} answers=any\u00a0# x", "no field"),
            (f"{NAME} {DIGEST} answers=any\x0b", "no field"),
            (f"{NAME} {DIGEST} answers=any\x00", "no field"),
            (f'"{NAME}"{DIGEST} answers=any', "no field"),
            (f'"{NAME} {DIGEST} answers=any', "no field"),
            (f'"a/b\\n" {DIGEST} answers=any', "no field"),
            (f'"a/b\u200b" {DIGEST} answers=any', "cannot be seen"),
            (f'"a/\u202eb" {DIGEST} answers=any', "cannot be seen"),
            (f"nightly {DIGEST} answers=any", "no deployment"),
            (f"a/b/c {DIGEST} answers=any", "no deployment"),
            (f"* {DIGEST} answers=any", "no deployment"),
            (f"étude/x {DIGEST} answers=any", "no field"),
        ],
        ids=ascii,
    )
    def test_is_refused_with_its_number_and_a_reason(self, text: str, says: str) -> None:
        found = parse(f"# mine\n{text}\n")

        [problem] = found.problems
        assert found.lines == ()
        assert problem.where == "line 2"
        assert says in problem.message

    def test_it_leaves_the_lines_around_it_alone(self) -> None:
        good = f"{NAME} {DIGEST} {HASH}"

        found = parse(f"{good}\n{NAME} {DIGEST} answers=any garbage\n\n{good} # again\n")

        assert [entry.number for entry in found.lines] == [1, 4]
        assert [entry.any_answers for entry in found.lines] == [False, False]
        assert [problem.where for problem in found.problems] == ["line 2"]

    def test_comments_and_empty_lines_are_nothing(self) -> None:
        assert parse("\n# x\n   \n\t# y\n") == consent.Consent()

    def test_a_comment_ends_only_with_its_line(self) -> None:
        for separator in ("\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\r"):
            found = parse(f"# by mallory{separator}{NAME} {DIGEST} answers=any\n")
            assert found == consent.Consent()

    def test_windows_line_ends_are_taken(self) -> None:
        assert len(parse(f"{NAME} {DIGEST} answers=any\r\n").lines) == 1

    def test_no_text_makes_it_fail(self) -> None:
        for text in ("", "\x00", '"' * 10_000, "a" * 100_000, " " * 100_000, f"{NAME} " * 5000, '"\\'):
            assert parse(text).lines == ()


class TestWritingALine:
    def test_what_is_written_is_what_is_read(self) -> None:
        options = {"expires": "2026-12-31", "max-nodes": "4", "partition": "a|b"}
        text = write_line(DEPLOYMENT, application=DIGEST, request=HASH, options=options, comment="nightly # x")
        found = line(text)
        assert (found.deployment, found.application, found.request) == (DEPLOYMENT, DIGEST, HASH)
        assert (found.options, found.comment) == (options, "nightly # x")

    def test_a_comment_from_the_server_stays_a_comment(self) -> None:
        evil = f"x\n{NAME} {DIGEST} answers=any\r\u2028\x1b[2J"
        text = write_line(DEPLOYMENT, application=DIGEST, request=HASH, comment=evil)
        assert "\n" not in text
        assert text.isascii()
        assert len(parse(text).lines) == 1

    @pytest.mark.parametrize(
        "deployment", [f"a/b {DIGEST} answers=any\n", "a/b\nc/d", "", "#a", "a/b\tc\x00", "a/\u202eb"], ids=ascii
    )
    def test_no_name_breaks_out_of_its_field(self, deployment: str) -> None:
        with pytest.raises(ConsentRefused):
            write_line(deployment, application=DIGEST, options={"answers": "any"})

    @pytest.mark.parametrize("value", ["4 answers=any", "4,answers=any,x", "4\nx", "4#"])
    def test_no_option_breaks_out_of_its_field(self, value: str) -> None:
        with pytest.raises(ConsentRefused):
            write_line(NAME, application=DIGEST, request=HASH, options={"max-nodes": value})


class TestEditing:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return tmp_path / "home" / consent.PLACE

    def test_the_first_line_makes_the_file_for_its_user_alone(self, path: Path) -> None:
        consent.add(path, f"{NAME} {DIGEST} answers=any")

        assert path.read_text() == f"{NAME} {DIGEST} answers=any\n"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700

    def test_comments_and_broken_lines_stay(self, path: Path) -> None:
        before = f"# mine\n\nbroken line here\n{NAME} {DIGEST} {HASH} # first"
        path.parent.mkdir(parents=True)
        path.write_text(before)

        consent.add(path, f"{NAME} {DIGEST} answers=any")
        assert path.read_text() == f"{before}\n{NAME} {DIGEST} answers=any\n"

        gone = consent.remove(path, lambda entry: entry.any_answers)
        assert [entry.number for entry in gone] == [5]
        assert path.read_text() == f"{before}\n"

    def test_a_wrong_line_is_not_written(self, path: Path) -> None:
        with pytest.raises(ConsentRefused):
            consent.add(path, f"{NAME} {DIGEST} answers=any\n{NAME} flows=any")
        assert not path.exists()

    def test_removing_what_is_not_there_changes_nothing(self, path: Path) -> None:
        assert consent.remove(path, lambda entry: True) == ()
        assert not path.parent.exists()

    @pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
    def test_a_file_that_others_may_write_is_refused(self, path: Path, mode: int) -> None:
        path.parent.mkdir(parents=True)
        path.write_text(f"{NAME} {DIGEST} answers=any\n")
        path.chmod(mode)
        with pytest.raises(ConsentRefused, match="others than its owner"):
            consent.read(path)
        with pytest.raises(ConsentRefused, match="others than its owner"):
            consent.add(path, f"{NAME} flows=any")

    def test_a_link_is_refused(self, path: Path, tmp_path: Path) -> None:
        (tmp_path / "elsewhere").write_text(f"{NAME} {DIGEST} answers=any\n")
        path.parent.mkdir(parents=True)
        path.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(ConsentRefused, match="cannot be used"):
            consent.read(path)

    def test_a_pipe_is_refused_and_not_waited_for(self, path: Path) -> None:
        path.parent.mkdir(parents=True)
        os.mkfifo(path)
        with pytest.raises(ConsentRefused, match="no regular file"):
            consent.read(path)

    @pytest.mark.parametrize("content", [b"\xff\xfe", b"#" * (1024 * 1024 + 1)], ids=["binary", "large"])
    def test_what_is_no_text_of_a_sensible_size_is_refused(self, path: Path, content: bytes) -> None:
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
        with pytest.raises(ConsentRefused, match="cannot be used"):
            consent.read(path)

    def test_of_two_at_once_no_line_is_lost(self, path: Path) -> None:
        with ThreadPoolExecutor(8) as threads:
            for number in range(40):
                threads.submit(consent.add, path, f"flow/deployment-{number} flows=any")
        assert len(consent.read(path).lines) == 40
        assert list(path.parent.iterdir()) == [path]
