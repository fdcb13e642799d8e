"""The behaviour of Loki that the sink relies on, tested on the twin and on a real Loki."""

from __future__ import annotations

import gzip
import time

import pytest

from tests.contract.loki_api import DAY_NS, HOUR_NS, MINUTE_NS, SECOND_NS, Found, LokiApi
from tests.processes import wait_until
from trainwire.stores.loki.config import hidden_after, setting


def test_is_ready(loki: LokiApi) -> None:
    """A running Loki answers /ready with 200."""
    answer = loki.get("/ready")
    assert (answer.status_code, answer.text.strip()) == (200, "ready")


class TestPush:
    """Pushes: the lines they store and the answers they get."""

    def test_a_line_comes_back_with_its_labels_and_metadata(self, loki: LokiApi) -> None:
        """A line is read back with its time to the nanosecond; its metadata stand among its stream's labels."""
        loki.push((loki.now_ns, "epoch 1 ✓", {"seq": "1", "attempt": "1", "rank": "0"}))
        [found] = loki.await_lines("epoch 1 ✓")
        assert found.ts_ns == loki.now_ns
        assert found.labels.items() >= (loki.labels() | {"seq": "1", "attempt": "1", "rank": "0"}).items()

    def test_success_is_204_without_a_body(self, loki: LokiApi) -> None:
        """A push of good lines is answered with 204 and an empty body."""
        answer = loki.push((loki.now_ns, "a"), (loki.now_ns + 1, "b"))
        assert (answer.status_code, answer.content) == (204, b"")
        loki.await_lines("a", "b")

    def test_takes_a_gzip_body(self, loki: LokiApi) -> None:
        """A compressed push is stored like a plain one."""
        body = gzip.compress(loki.body((loki.labels(), [(loki.now_ns, "compressed")])))
        assert loki.post(body, **{"Content-Encoding": "gzip"}).status_code == 204
        loki.await_lines("compressed")

    @pytest.mark.parametrize("body", [b"{", b'{"streams": [{"stream": {"job": "x"}, "values": [["now", "x"]]}]}'])
    def test_refuses_an_invalid_push(self, loki: LokiApi, body: bytes) -> None:
        """A body that is no JSON, or has a time that is no number, is answered with 400."""
        assert loki.post(body).status_code == 400

    def test_refuses_a_push_of_nothing(self, loki: LokiApi) -> None:
        """A push without streams is answered with 422, neither success nor a partial refusal."""
        assert loki.post(b'{"streams": []}').status_code == 422

    def test_a_refused_first_stream_is_lost_in_silence(self, loki: LokiApi) -> None:
        """A push of two streams of which the first is refused answers 204, so we push one stream at a time."""
        loki.push((loki.now_ns, "newest"))
        answer = loki.push_streams(
            (loki.labels(), [(loki.now_ns - 2 * HOUR_NS, "lost")]),
            (loki.labels(log_type="stderr"), [(loki.now_ns, "good")]),
        )
        assert answer.status_code == 204
        loki.await_lines("newest", "good")

    def test_a_refused_last_stream_is_reported(self, loki: LokiApi) -> None:
        """A push of two streams of which the last is refused answers 400 and keeps the first."""
        loki.push((loki.now_ns, "newest"))
        answer = loki.push_streams(
            (loki.labels(log_type="stderr"), [(loki.now_ns, "good")]),
            (loki.labels(), [(loki.now_ns - 2 * HOUR_NS, "told")]),
        )
        assert answer.status_code == 400
        loki.await_lines("newest", "good")


class TestRefusals:
    """The lines that Loki refuses from a push of one stream, and the reasons."""

    def test_too_far_behind_keeps_the_good_lines_and_lists_ten(self, loki: LokiApi) -> None:
        """A partial 400 stores the good lines; of fifteen late ones it lists ten and the total."""
        late = [(loki.now_ns - 2 * HOUR_NS + n, f"late {n}") for n in range(15)]
        answer = loki.push((loki.now_ns, "first"), *late, (loki.now_ns + 1, "last"))
        assert answer.status_code == 400
        assert answer.text.count("ignored, reason: 'entry too far behind") == 10
        assert "total ignored: 15 out of 17" in answer.text
        loki.await_lines("first", "last")

    def test_a_late_label_opens_a_window_of_its_own(self, loki: LokiApi) -> None:
        """A line over an hour behind its stream is refused; with an extra label it is in a new stream."""
        loki.push((loki.now_ns, "newest"))
        late_ns = loki.now_ns - HOUR_NS - MINUTE_NS
        assert loki.push((late_ns, "late")).status_code == 400
        assert loki.push((late_ns, "late"), late="2026-11-23T01").status_code == 204
        assert loki.await_lines("late", "newest")[0].labels["late"] == "2026-11-23T01"

    def test_takes_a_line_less_than_an_hour_behind(self, loki: LokiApi) -> None:
        """Lines of one stream may come in any order within an hour."""
        loki.push((loki.now_ns, "newest"))
        assert loki.push((loki.now_ns - 59 * MINUTE_NS, "before")).status_code == 204
        loki.await_lines("before", "newest")

    def test_refuses_a_line_older_than_seven_days(self, loki: LokiApi) -> None:
        """A line of eight days ago is refused with its reason; the good line of the same push is stored."""
        answer = loki.push((loki.now_ns - 8 * DAY_NS, "old"), (loki.now_ns, "good"))
        assert answer.status_code == 400
        assert "has timestamp too old" in answer.text
        loki.await_lines("good")

    def test_refuses_a_line_of_the_future(self, loki: LokiApi) -> None:
        """A line twenty minutes ahead is refused with its reason; one five minutes ahead is not."""
        answer = loki.push((loki.now_ns + 20 * MINUTE_NS, "far"), (loki.now_ns + 5 * MINUTE_NS, "near"))
        assert answer.status_code == 400
        assert "has timestamp too new" in answer.text
        end_ns = loki.now_ns + HOUR_NS
        wait_until(lambda: [found.line for found in loki.find(end=end_ns)] == ["near"], "the near line alone")

    def test_refuses_a_line_over_256_kb(self, loki: LokiApi) -> None:
        """A line of 256 KB in bytes is taken; one byte more is refused, and the good line is stored."""
        limit = 256 * 1024
        assert loki.push((loki.now_ns, "a" * limit)).status_code == 204
        answer = loki.push((loki.now_ns + 1, "é" * (limit // 2) + "x"), (loki.now_ns + 2, "good"))
        assert answer.status_code == 400
        assert f"max entry size '{limit}' bytes exceeded" in answer.text.lower()
        loki.await_lines("a" * limit, "good")

    def test_takes_fifteen_labels_and_no_more(self, loki: LokiApi) -> None:
        """A stream of fifteen labels is stored, one of sixteen is refused."""
        extra = {f"extra_{n}": "x" for n in range(11)}
        assert loki.push((loki.now_ns, "fifteen"), **extra).status_code == 204
        answer = loki.push((loki.now_ns, "sixteen"), **extra, one_more="x")
        assert answer.status_code == 400
        assert "has 16 label names; limit 15" in answer.text
        loki.await_lines("fifteen")

    @pytest.mark.parametrize(
        ("label", "reason"),
        [({"extra": "x" * 2049}, "has label value too long"), ({"x" * 1025: "y"}, "has label name too long")],
    )
    def test_refuses_long_labels(self, loki: LokiApi, label: dict[str, str], reason: str) -> None:
        """A label over 1024 bytes of name or 2048 of value is refused with its reason."""
        answer = loki.push((loki.now_ns, "x"), **label)
        assert answer.status_code == 400
        assert reason in answer.text

    def test_counts_refusals_of_equal_words(self, loki: LokiApi) -> None:
        """Refusals for age, future and size are grouped by their text and counted, not listed one by one."""
        old_ns = (loki.now_ns - 8 * DAY_NS) // SECOND_NS * SECOND_NS
        answer = loki.push(*((old_ns + n, f"old {n}") for n in range(25)))
        assert answer.status_code == 400
        assert answer.text.startswith("25 errors like: entry for stream '{")


class TestDuplicates:
    """The conditions under which two lines are duplicates."""

    def test_a_resend_is_stored_once(self, loki: LokiApi) -> None:
        """The same push sent again, byte by byte, is answered with 204 and stored once."""
        entries = [(loki.now_ns + n, f"line {n}", {"seq": str(n)}) for n in range(5)]
        assert [loki.push(*entries).status_code for _ in range(3)] == [204, 204, 204]
        loki.await_lines(*(f"line {n}" for n in range(5)))

    def test_equal_lines_a_nanosecond_apart_are_two(self, loki: LokiApi) -> None:
        """Equal lines with different times are different lines."""
        loki.push((loki.now_ns, "same"), (loki.now_ns + 1, "same"))
        loki.await_lines("same", "same")

    def test_equal_lines_of_different_metadata_are_two(self, loki: LokiApi) -> None:
        """Equal lines in one nanosecond are two where their metadata differ (since Loki 3.7.0)."""
        if loki.version() < (3, 7):
            pytest.skip("before 3.7.0 Loki takes them for one (grafana/loki#21039)")
        loki.push((loki.now_ns, "same", {"seq": "1"}), (loki.now_ns, "same", {"seq": "2"}))
        assert {found.labels["seq"] for found in loki.await_lines("same", "same")} == {"1", "2"}

    def test_equal_lines_of_different_streams_are_two(self, loki: LokiApi) -> None:
        """Equal lines in one nanosecond are two where a label differs."""
        loki.push((loki.now_ns, "same"))
        loki.push((loki.now_ns, "same"), log_type="stderr")
        loki.await_lines("same", "same")


class TestQueryRange:
    """How lines are read back."""

    def test_is_of_loki_s_shape(self, loki: LokiApi) -> None:
        """Lines of different metadata are returned as separate result streams."""
        loki.push((loki.now_ns, "a", {"seq": "1"}), (loki.now_ns + 1, "b", {"seq": "2"}))
        loki.await_lines("a", "b")
        answer = loki.query_range().json()
        assert (answer["status"], answer["data"]["resultType"]) == ("success", "streams")
        assert sorted(result["values"] for result in answer["data"]["result"]) == [
            [[str(loki.now_ns), "a"]],
            [[str(loki.now_ns + 1), "b"]],
        ]

    def test_the_start_counts_and_the_end_does_not(self, loki: LokiApi) -> None:
        """A query covers its start and stops before its end."""
        loki.push(*((loki.now_ns + n, f"line {n}") for n in range(4)))
        loki.await_lines(*(f"line {n}" for n in range(4)))
        found = loki.find(start=loki.now_ns + 1, end=loki.now_ns + 3)
        assert [line.line for line in found] == ["line 1", "line 2"]

    def test_the_limit_is_over_all_streams(self, loki: LokiApi) -> None:
        """Of many streams the earliest lines come forwards, the latest backwards, no more than the limit."""
        for n, log_type in enumerate(["stdout", "stderr", "stdout", "stderr"]):
            loki.push((loki.now_ns + n, f"line {n}"), log_type=log_type)
        loki.await_lines(*(f"line {n}" for n in range(4)))
        assert [line.line for line in loki.find(limit=3)] == ["line 0", "line 1", "line 2"]
        assert [line.line for line in loki.find(limit=3, direction="backward")] == ["line 1", "line 2", "line 3"]

    def test_pages_forwards_through_equal_times(self, loki: LokiApi) -> None:
        """Pages that start at the last page's last time, distinguished by seq, lose no line at a page's edge."""
        entries = [(loki.now_ns + n // 3, f"line {n:02}", {"seq": f"{n:02}"}) for n in range(20)]
        loki.push(*entries)
        loki.await_lines(*(line for _, line, _ in entries))
        assert _pages(loki, limit=5) == {f"{n:02}": f"line {n:02}" for n in range(20)}

    def test_refuses_a_limit_over_5000(self, loki: LokiApi) -> None:
        """A query for more than 5000 lines is answered with 400."""
        assert loki.query_range(limit=5000).status_code == 200
        answer = loki.query_range(limit=5001)
        assert answer.status_code == 400
        assert "max entries limit per query exceeded" in answer.text

    def test_refuses_a_range_over_thirty_days(self, loki: LokiApi) -> None:
        """A query over more than 30 days and an hour is answered with 400."""
        if loki.is_set("max_query_length", "0s"):
            pytest.skip("this Loki has no max_query_length")
        answer = loki.query_range(start=loki.now_ns - 32 * DAY_NS, end=loki.now_ns)
        assert answer.status_code == 400
        assert "the query time range exceeds the limit" in answer.text

    def test_refuses_a_selector_of_nothing(self, loki: LokiApi) -> None:
        """A query that selects no label is answered with 400."""
        assert loki.query_range("{}").status_code == 400

    @pytest.mark.parametrize(
        ("condition", "lines"),
        [
            ('log_type="stderr"', ["err"]),
            ('log_type!="stderr"', ["out"]),
            ('log_type=~"std(err|out)"', ["err", "out"]),
            ('log_type=~"std"', []),
            ('log_type!~".*out"', ["err"]),
            ('late=""', ["err", "out"]),
        ],
    )
    def test_selects_by_labels(self, loki: LokiApi, condition: str, lines: list[str]) -> None:
        """Selectors compare whole values, an absent label counts as an empty one."""
        loki.push((loki.now_ns, "err"), log_type="stderr")
        loki.push((loki.now_ns + 1, "out"), log_type="stdout")
        loki.await_lines("err", "out")
        found = loki.find(f'{{job_id="{loki.job_id}", {condition}}}')
        assert [line.line for line in found] == lines

    @pytest.mark.parametrize(
        ("condition", "lines"),
        [
            ('seq="7"', ["b"]),
            ('seq=~"[0-9]*7"', ["a", "b"]),
            ('seq!~"[0-9]*7"', ["c", "d"]),
            ('seq=~".*7"', ["a", "b", "c"]),
            ('seq!~".*7"', ["d"]),
            ('seq=""', ["d"]),
        ],
    )
    def test_filters_by_structured_metadata(self, loki: LokiApi, condition: str, lines: list[str]) -> None:
        """Filters behind the selector compare whole values, an absent one counts as an empty one.

        `.*` and a word are a search for it, in Loki 3 at least.
        """
        now = loki.now_ns
        loki.push((now, "a", {"seq": "17"}), (now + 1, "b", {"seq": "7"}), (now + 2, "c", {"seq": "71"}))
        loki.push((now + 3, "d"))
        loki.await_lines("a", "b", "c", "d")
        found = loki.find(f'{{job_id="{loki.job_id}"}} | {condition}')
        assert [line.line for line in found] == lines

    def test_shows_lines_of_over_three_hours_ago_when_they_are_written(self, loki: LokiApi) -> None:
        """A line hours late is not returned until Loki has flushed it, unless queries look back further."""
        four_hours_ago = loki.now_ns - 4 * HOUR_NS
        assert loki.push((four_hours_ago, "late")).status_code == 204
        if hidden_after(loki.get("/config").text) is not None:
            assert loki.find(start=four_hours_ago) == []
            loki.flush()
        wait_until(lambda: len(loki.find(start=four_hours_ago)) == 1, "the late line")

    def test_cannot_send_long_lines_in_one_answer(self, loki: LokiApi) -> None:
        """A query for 5 MB of lines at once is answered with 500, one for some of them is not."""
        for n in range(20):
            line = (loki.now_ns + n, f"{n:02}" * 125_000)
            while loki.push(line).status_code == 429:
                time.sleep(0.5)
        wait_until(lambda: len(loki.find(limit=10)) == 10, "ten of the long lines")
        answer = loki.query_range()
        assert (answer.status_code, "message larger than max" in answer.text) == (500, True)

    def test_names_the_labels(self, loki: LokiApi) -> None:
        """The labels of stored lines are listed."""
        loki.push((loki.now_ns, "x"))
        loki.await_lines("x")
        assert {"job", "job_id", "log_type", "source"} <= set(loki.get("/loki/api/v1/labels").json()["data"])


class TestDelete:
    """How requests to delete lines are answered."""

    @pytest.fixture
    def deleting(self, loki: LokiApi) -> LokiApi:
        """A Loki whose delete API is on."""
        if setting(loki.get("/config").text, "retention_enabled") != "true":
            pytest.skip("this Loki's compactor has no retention_enabled, and so no delete API")
        return loki

    def test_answers_404_where_it_is_off(self, loki: LokiApi) -> None:
        """Without retention_enabled the path does not exist; with it the answer is 204 without a body."""
        is_on = setting(loki.get("/config").text, "retention_enabled") == "true"
        answer = loki.delete()
        assert (answer.status_code, answer.content == b"") == ((204, True) if is_on else (404, False))

    def test_lists_accepted_requests(self, deleting: LokiApi) -> None:
        """An accepted request is listed with its query; Loki carries it out later."""
        assert deleting.delete().status_code == 204
        listed = deleting.get("/loki/api/v1/delete").json()
        assert f'{{job_id="{deleting.job_id}"}}' in [each["query"] for each in listed]

    @pytest.mark.parametrize(
        ("parameters", "words"),
        [
            ({"query": ""}, "query not set"),
            ({"start": ""}, "start time not set"),
            ({"start": "0"}, "invalid start time"),
            ({"start": "2000000000000000000"}, "invalid start time"),
            ({"end": "4000000000"}, "deletes in the future are not allowed"),
            ({"start": "1500000000", "end": "1400000000"}, "start time can't be greater than end time"),
        ],
    )
    def test_refuses_with_400(self, deleting: LokiApi, parameters: dict[str, str], words: str) -> None:
        """A request without a query or a start, or with an invalid or future time, is refused."""
        answer = deleting.delete(**parameters)
        assert (answer.status_code, words in answer.text) == (400, True)


def _pages(loki: LokiApi, limit: int) -> dict[str, str]:
    """Read all lines of a job, page by page, by their seq."""
    lines: dict[str, str] = {}
    page: list[Found] = loki.find(limit=limit)
    while new := [found for found in page if found.labels["seq"] not in lines]:
        assert len(page) <= limit
        lines |= {found.labels["seq"]: found.line for found in new}
        page = loki.find(limit=limit, start=page[-1].ts_ns)
    return lines
