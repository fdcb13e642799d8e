"""The scenarios: each is a training, the rows that it must leave, and what happens meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from tests.certify import trainings
from tests.certify.stories import entries, operators, sinks
from tests.certify.stories.story import Step, Story, pause
from tests.certify.trainings import LINES, SHARDS, Train
from trainwire.stores.postgres.deletion import NoSuchJob

if TYPE_CHECKING:
    from tests.certify.world import World

TROUBLE_AFTER_S: Final = 0.15


@dataclass(frozen=True)
class Expected:
    """The rows of a job, and the columns of the job itself, when all is stored."""

    lines: list[tuple[str, str]]
    steps: list[int]
    checkpoints: list[str]
    job: Mapping[str, Any]
    is_deleted: bool = False
    is_forgotten: bool = False
    """Whether the number of the deleted job can be used again."""
    shards: int = 0
    """Number of files of the uploaded checkpoint folder."""
    loki: list[tuple[str, str]] | None = None
    """The lines in Loki, if they are not those of Postgres."""
    alerts: frozenset[str] = frozenset()
    """The rules of which one alert each was received."""
    is_ordered: bool = True
    """False if a trainer notices lost rows by newer ones, which are stored first; Loki keeps the older copies."""
    has_files: bool = False
    """Whether the lines are also in the files of the job."""
    has_mlflow: bool = False
    """Whether the metrics are also in a run in MLflow."""
    kept_uploads: frozenset[int] | None = None
    """The steps of the uploads that are still in the bucket."""


@dataclass(frozen=True)
class Scenario:
    """A training, the rows that it must leave, and the servers and events of its run."""

    name: str
    trains: tuple[Train, ...]
    """The trainers, of which the first one has the failpoints."""
    expected: Expected
    meanwhile: Story | None = None
    """What happens while the training runs."""
    afterwards: Story | None = None
    """What happens when all is stored; the rows are then those of `at_end`."""
    at_end: Expected | None = None
    is_armed_by_story: bool = False
    """Whether calls count only after the story has called `arm`."""
    environment: Callable[[World], Mapping[str, str]] = lambda _: {}
    """Environment variables of the worker."""
    has_bucket: bool = False
    has_launcher: bool = False
    """Whether the trainer is `trainwire run` with a script."""
    exit_code: int = 0
    """The exit code of the trainers."""
    has_gateway: bool = False
    """Whether the trainers send over HTTP, and a browser watches."""
    has_beat: bool = False
    """Whether Celery's beat sends the orders of the periodic tasks."""
    is_sampled: bool = True
    """Whether a sample may have it; those on MLflow are left out, whose server takes half a minute to start."""


def _after_start(trouble: Callable[[World], None]) -> Story:
    """Return the story of an outage that begins `TROUBLE_AFTER_S` seconds after the trainers were started."""

    def story(world: World) -> Iterator[Step]:
        yield from pause(TROUBLE_AFTER_S)
        trouble(world)

    return story


def _delete(world: World) -> Iterator[Step]:
    with suppress(NoSuchJob):  # its trainer was killed before its first message
        world.delete()
    yield from ()


def _alerts(world: World) -> Mapping[str, str]:
    rules = world.folder / "alerts.toml"
    rules.write_text(RULES.format(url=world.receiver.url))
    return {"ALERT_RULES": str(rules)}


def _mlflow(world: World) -> Mapping[str, str]:
    return {"MLFLOW_TRACKING_URI": world.mlflow.url}


def _files(world: World) -> Mapping[str, str]:
    """Return the settings of JSON lines in files, with an old one that workers delete."""
    folder = world.folder / "jsonl"
    (folder / "old").mkdir(parents=True)
    (folder / "old" / "2020-01-01.jsonl").write_text('{"seq": 1}\n')
    return {"JSONL_DIR": str(folder), "JSONL_KEEP_DAYS": "2"}


RULES: Final = """
[destinations.hook]
webhook = "{url}"
secret = "whsec_Y2VydGlmaWNhdGlvbiBvZiBhbGVydHM="
[[rules]]
name = "end"
on = "completed"
to = "hook"
[[rules]]
name = "call"
on = "alert"
to = "hook"
[[rules]]
name = "value"
on = "metric"
metric = "f1"
above = 4.5
to = "hook"
[[rules]]
name = "idle"
on = "no_progress"
after_s = 600
jobs = "name=certified"
to = "hook"
"""
ROW_RETENTION: Final = {"LOG_RETENTION_DAYS": "1", "METRIC_RETENTION_DAYS": "1", "ROW_RETENTION": "on"}
FILE_RETENTION: Final = {
    "CHECKPOINT_RETENTION": "on",
    "CHECKPOINT_KEEP_LAST": "1",
    "CHECKPOINT_ORPHAN_DAYS": "1",
    "CHECKPOINT_REMOVE_SUPERSEDED": "on",
    "LOG_RETENTION_DAYS": "1",  # only counts rows
}

COMPLETED: Final = {"status": "completed", "attempt": 1, "params": {"lr": 0.1}}
ALL_KINDS: Final = Expected(
    [("stderr" if number == 1 else "stdout", line) for number, line in enumerate(LINES)],
    list(range(len(LINES))),
    ["/elsewhere/best.pt"],
    COMPLETED | {"final_metrics": {"loss": 1 / 6, "f1": 5.0}},
)
LAUNCHED: Final = replace(ALL_KINDS, job={"status": "completed", "exit_code": 0, "params": {"lr": 0.1}})
PREEMPTED: Final = replace(
    ALL_KINDS,
    job={"status": "preempted", "exit_code": 143, "error_message": "SIGTERM in Slurm job 812"},
)
FAILED: Final = replace(ALL_KINDS, job={"status": "failed", "exit_code": 3, "error_message": "out of memory"})
TWO_RANKS: Final = Expected(
    ALL_KINDS.lines * 2, ALL_KINDS.steps * 2, ALL_KINDS.checkpoints * 2, {"status": "completed"}
)
DELETED: Final = Expected([], [], [], {}, is_deleted=True)
FORGOTTEN: Final = replace(DELETED, is_forgotten=True)
STOPPED: Final = replace(ALL_KINDS, job={"status": "stopped"})
ALERTED: Final = replace(
    ALL_KINDS,
    lines=[*ALL_KINDS.lines, ("stderr", trainings.ALERT_LINE)],
    alerts=frozenset({"end", "call", "value"}),
)
IMPORTED: Final = Expected([], ALL_KINDS.steps, [], {"status": "ended"})
AGED: Final = Expected([], [], ALL_KINDS.checkpoints, COMPLETED, loki=ALL_KINDS.lines)
FOLDER: Final = replace(ALL_KINDS, shards=SHARDS)
GAPS_FILLED: Final = replace(ALL_KINDS, is_ordered=False)
IN_MLFLOW: Final = replace(ALL_KINDS, has_mlflow=True)
IN_FILES: Final = replace(ALL_KINDS, has_files=True)
RETAINED: Final = replace(ALL_KINDS, kept_uploads=frozenset({12}))

_IN_PARTS: Final = (trainings.in_parts("backed-up", "restored"),)
_SHARDS: Final = (
    trainings.in_parts("changed", "joined", rank=0, world_size=2),
    trainings.rank_of_two(1, "changed"),
)
_finished: Final = (trainings.finished,)

SCENARIOS: Final = {
    scenario.name: scenario
    for scenario in (
        Scenario("finished", _finished, ALL_KINDS),
        Scenario("launched", (trainings.launched,), LAUNCHED, has_launcher=True),
        Scenario("preempted", (trainings.preempted,), PREEMPTED, has_launcher=True, exit_code=143),
        Scenario("failed", (trainings.failed,), FAILED),
        Scenario("two-ranks", (trainings.rank_of_two(0), trainings.rank_of_two(1)), TWO_RANKS),
        Scenario(
            "checkpoint-folder", (trainings.with_folder,), replace(ALL_KINDS, shards=SHARDS), has_bucket=True
        ),
        Scenario("over-http", _finished, ALL_KINDS, has_gateway=True),
        Scenario("loki-away", _finished, ALL_KINDS, _after_start(lambda world: world.take_loki_away())),
        Scenario("redis-away", _finished, ALL_KINDS, _after_start(lambda world: world.take_redis_away())),
        Scenario("postgres-away", _finished, ALL_KINDS, _after_start(lambda world: world.take_postgres_away())),
        Scenario("deleted", _finished, ALL_KINDS, afterwards=_delete, at_end=DELETED),
        Scenario(
            "deleted-by-command",
            _finished,
            ALL_KINDS,
            afterwards=operators.delete_by_command,
            at_end=FORGOTTEN,
            is_armed_by_story=True,
        ),
        Scenario("postgres-restored", _IN_PARTS, ALL_KINDS, operators.restore_postgres, is_armed_by_story=True),
        Scenario("redis-restored", _IN_PARTS, ALL_KINDS, operators.restore_redis, is_armed_by_story=True),
        Scenario("both-restored", _IN_PARTS, GAPS_FILLED, operators.restore_both, is_armed_by_story=True),
        Scenario("shards-changed", _SHARDS, TWO_RANKS, operators.change_shards, is_armed_by_story=True),
        Scenario("stopped", (trainings.until_stopped,), STOPPED, operators.stop, is_armed_by_story=True),
        Scenario(
            "alerted",
            (trainings.with_alert,),
            ALERTED,
            operators.alert,
            environment=_alerts,
            is_armed_by_story=True,
        ),
        Scenario("imported", (), IMPORTED, operators.import_csv),
        Scenario("json-lines", _finished, IN_FILES, environment=_files),
        Scenario(
            "files-verified",
            _finished,
            IN_FILES,
            afterwards=sinks.verify_files,
            at_end=IN_FILES,
            environment=_files,
            is_armed_by_story=True,
        ),
        Scenario(
            "files-deleted",
            _finished,
            IN_FILES,
            afterwards=_delete,
            at_end=replace(DELETED, has_files=True),
            environment=_files,
        ),
        Scenario("mlflow", _finished, IN_MLFLOW, environment=_mlflow, is_sampled=False),
        Scenario(
            "mlflow-replayed",
            _finished,
            IN_MLFLOW,
            afterwards=sinks.replay_mlflow,
            at_end=IN_MLFLOW,
            environment=_mlflow,
            is_armed_by_story=True,
            is_sampled=False,
        ),
        Scenario(
            "mlflow-linked",
            (trainings.in_parts("", "linked"),),
            IN_MLFLOW,
            sinks.make_own_run,
            afterwards=_delete,
            at_end=replace(DELETED, has_mlflow=True),
            environment=_mlflow,
            is_armed_by_story=True,
            is_sampled=False,
        ),
        Scenario(
            "refused",
            (trainings.in_parts("refusing"),),
            GAPS_FILLED,
            entries.refuse_message,
            is_armed_by_story=True,
        ),
        Scenario(
            "halted", (trainings.in_parts("broken"),), ALL_KINDS, entries.halt_stream, is_armed_by_story=True
        ),
        Scenario(
            "crowded",
            (trainings.in_parts("crowded"),),
            ALL_KINDS,
            entries.crowd_stream,
            environment=lambda _: {"DRAIN_BATCH_BYTES": "4096"},
            is_armed_by_story=True,
        ),
        Scenario("stalled", (trainings.stalling,), ALL_KINDS, sinks.stall, is_armed_by_story=True),
        Scenario(
            "alerts-refused",
            (trainings.with_alert,),
            ALERTED,
            sinks.refuse_alerts,
            afterwards=sinks.resend_alert,
            at_end=ALERTED,
            environment=_alerts,
            is_armed_by_story=True,
        ),
        Scenario("beat", _finished, ALL_KINDS, has_beat=True),
        Scenario(
            "uploaded-in-parts",
            (trainings.with_parts,),
            replace(ALL_KINDS, kept_uploads=frozenset({10})),
            afterwards=_delete,
            at_end=DELETED,
            has_bucket=True,
        ),
        Scenario(
            "scraped", _finished, ALL_KINDS, afterwards=sinks.scrape, at_end=ALL_KINDS, is_armed_by_story=True
        ),
        Scenario(
            "rows-retained",
            _finished,
            ALL_KINDS,
            afterwards=operators.age_rows,
            at_end=AGED,
            is_armed_by_story=True,
            environment=lambda _: ROW_RETENTION,
        ),
        Scenario(
            "files-retained",
            (trainings.with_uploads,),
            RETAINED,
            afterwards=operators.age_files,
            at_end=RETAINED,
            environment=lambda _: FILE_RETENTION,
            has_bucket=True,
        ),
        Scenario(
            "read",
            (trainings.failed,),
            FAILED,
            afterwards=operators.read_pages,
            at_end=FAILED,
            is_armed_by_story=True,
            has_gateway=True,
        ),
        Scenario(
            "commands",
            _finished,
            ALL_KINDS,
            afterwards=operators.run_commands,
            at_end=ALL_KINDS,
            is_armed_by_story=True,
        ),
    )
}
