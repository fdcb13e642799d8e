// Applies events of the live feed to the document of a job, for the list of jobs and a job's page.

import { isGiven } from "./format.js";

const SPARK_POINTS = 40;
const ROWS = { logs: "logs", metrics: "metrics", checkpoints: "checkpoints" };

/** Update the document `job` in place with an event. */
export function applyEvent(job, event) {
  countRows(job, event);
  job.last_seen_at = new Date().toISOString();
  if (event.attempt > job.attempt) beginAttempt(job, event.attempt);
  if (event.type === "training_progress") applyProgress(job, event);
  else if (event.type === "training_checkpoint")
    take(job, event, ["best_checkpoint_path", "last_checkpoint_path"]);
  else if (event.type === "training_status") applyStatus(job, event);
  else if (event.type === "training_complete" || event.type === "training_error") applyEnd(job, event);
}

/** Return whether the job should be requested again after an event, because more has changed than the event reports. */
export function changesMore(job, event) {
  return (
    ["training_status", "training_complete", "training_error"].includes(event.type) || event.attempt > job.attempt
  );
}

function countRows(job, event) {
  const kind = ROWS[event.kind];
  if (kind && event.last_seq) job.rows = { ...job.rows, [kind]: Math.max(job.rows?.[kind] ?? 0, event.last_seq) };
}

function beginAttempt(job, attempt) {
  const nothing = {
    completed_at: null,
    exit_code: null,
    error_message: null,
    final_metrics: null,
    status_reason: null,
    stop: null,
  };
  Object.assign(job, nothing, {
    attempt,
    started_at: new Date().toISOString(),
    status: "running",
    traceback: null,
    last_by_rank: job.last_by_rank && {},
    metric_ranks: 0,
  });
}

function applyProgress(job, event) {
  take(job, event, ["status", "current_epoch", "total_epochs", "progress_percent", "best_checkpoint_path"]);
  takeRanks(job, event.points ?? []);
  if (!event.metrics) return;
  job.last_metrics = { ...job.last_metrics, ...event.metrics };
  extendSparkline(job, event.metrics);
}

function takeRanks(job, points) {
  for (const { attempt, rank, values } of points) {
    if (!isGiven(rank) || attempt !== job.attempt || !job.last_by_rank) continue;
    for (const [name, value] of Object.entries(values))
      job.last_by_rank[name] = { ...job.last_by_rank[name], [rank]: value };
  }
  const known = Object.values(job.last_by_rank ?? {}).map((ranks) => Object.keys(ranks).length);
  job.metric_ranks = Math.max(job.metric_ranks ?? 0, ...known);
}

function extendSparkline(job, metrics) {
  const name = job.sparkline?.name ?? ("loss" in metrics ? "loss" : Object.keys(metrics)[0]);
  const last = Number(metrics[name]);
  if (name === undefined || !(name in metrics) || !Number.isFinite(last)) return;
  job.sparkline = { name, values: [...(job.sparkline?.values ?? []), last].slice(-SPARK_POINTS) };
}

function applyStatus(job, event) {
  job.status = event.status;
  job.status_reason = event.reason ?? null;
  if (event.status === "running") job.started_at ??= new Date().toISOString();
}

function applyEnd(job, event) {
  const fields = ["status", "exit_code", "final_metrics", "best_metrics", "best_epoch", "best_checkpoint_path"];
  take(job, event, [...fields, "mlflow_run_id", "error_message"]);
  job.completed_at ??= new Date().toISOString();
  job.status_reason = null;
}

function take(job, event, names) {
  for (const name of names) if (isGiven(event[name])) job[name] = event[name];
}
