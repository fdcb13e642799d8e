// Descriptions of a job's state as text.

import { about, count, counted, duration, fromText, isGiven, moment, value } from "./format.js";

export const STATUSES = ["running", "stalled", "lost", "failed", "ended", "stopped", "preempted", "completed", "pending"];

/** Return whether the job's attempt has ended. */
export function hasEnded(job) {
  return ["completed", "failed", "ended", "stopped", "preempted"].includes(job.status);
}

/** "stopped by anna", or the status. */
export function statusWords(job) {
  return job.status === "stopped" && job.stop ? `stopped by ${job.stop.requested_by}` : job.status;
}

/** Return the name of a job, or "job 42" if it has none. */
export function jobName(job) {
  return job.name?.trim() ? job.name : `job ${job.id}`;
}

/** Return a job in a sentence, `job “digits”`: its name may be a word of the sentence, or a number. */
export function quotedJob(job) {
  return job.name?.trim() ? `job “${job.name.trim()}”` : jobName(job);
}

/** Compare two ids of jobs, numbers or texts of any length, by their numeric value (for `sort`). */
export function byId(one, other) {
  const [a, b] = [String(one), String(other)];
  return a.length - b.length || (a < b ? -1 : Number(a > b));
}

/** Return the duration of the job's attempt in seconds; null if it has not started. */
function runtime(job) {
  const from = fromText(job.started_at ?? job.created_at);
  if (from === null || job.status === "pending") return null;
  const until = hasEnded(job)
    ? fromText(job.completed_at)
    : job.status === "lost"
      ? fromText(job.last_seen_at)
      : null;
  return ((until ?? Date.now()) - from) / 1000;
}

/** Return the duration of the job's attempt as text. */
export function runtimeWords(job) {
  const seconds = runtime(job);
  return seconds === null ? "–" : duration(seconds);
}

/** Return the newest metrics of a job; after the end of its attempt, final metrics override them. */
export function latestMetrics(job) {
  return { ...job.last_metrics, ...finalMetrics(job) };
}

const NAME_OF_ALIAS = new Map(Object.entries({ acc: "accuracy", lr: "learning_rate" })); // as points are stored

/** Return the final metrics of a job whose attempt has ended, under the names of its points; null before its end. */
export function finalMetrics(job) {
  if (!hasEnded(job) || !job.final_metrics) return null;
  const own = job.final_metrics;
  const nameOf = (given) => (Object.hasOwn(own, NAME_OF_ALIAS.get(given)) ? given : (NAME_OF_ALIAS.get(given) ?? given));
  return Object.fromEntries(Object.entries(own).map(([given, found]) => [nameOf(given), found]));
}

/** Return the progress in per cent; null if the trainer has not reported enough to compute it. */
export function percent(job) {
  if (job.status === "completed") return 100; // its epochs may count from 0
  if (isGiven(job.progress_percent)) {
    const reported = Number(job.progress_percent);
    return Number.isFinite(reported) ? Math.min(100, Math.max(0, reported)) : null;
  }
  const epoch = Number(job.current_epoch ?? NaN); // null, not reported, would count as 0
  if (job.total_epochs > 0 && epoch >= 0) return Math.min(100, (100 * epoch) / job.total_epochs);
  return null;
}

/** Return the epoch as text: "epoch 3 of 10", "epoch 3", or "" if it is unknown. */
export function epochs(job) {
  if (!isGiven(job.current_epoch)) return "";
  return job.total_epochs
    ? `epoch ${count(job.current_epoch)} of ${count(job.total_epochs)}`
    : `epoch ${count(job.current_epoch)}`;
}

/** Return the estimated remaining time as text; "" if it cannot be estimated. */
export function remaining(job) {
  const done = percent(job);
  const ran = runtime(job);
  if (job.status !== "running" || !done || done >= 100 || !ran || ran < 10) return "";
  return `about ${about((ran * (100 - done)) / done)} left`;
}

/** Return one sentence about the job's status, with the duration, and the exit code or the reason if known. */
export function sentence(job) {
  const ran = runtime(job);
  const took = ran === null ? "" : duration(ran);
  switch (job.status) {
    case "pending":
      return "Waiting: its trainer has not started.";
    case "running":
      return `Running for ${took}.`;
    case "completed":
      return `Completed in ${took}${exited(job)}.`;
    case "failed":
      return `Failed after ${took}${exited(job)}.`;
    case "ended":
      return `Ended after ${took}; its exit code is not known.`;
    case "stopped":
      return `S${statusWords(job).slice(1)} after ${took}${job.stop?.reason ? `: ${job.stop.reason}` : ""}.`;
    case "preempted":
      return `Pre-empted after ${took}${job.error_message ? `: ${job.error_message}` : exited(job)}.`;
    case "stalled":
      return `Stalled: ${job.status_reason || "alive, but it sends nothing"}.`;
    case "lost":
      return `Lost: ${job.status_reason || "its trainer no longer sends anything"}${lastHeard(job)}.`;
    default:
      return job.status;
  }
}

function exited(job) {
  return isGiven(job.exit_code) ? `, exit code ${job.exit_code}` : "";
}

function lastHeard(job) {
  return job.last_seen_at && !job.status_reason ? `, last at ${moment(fromText(job.last_seen_at))}` : "";
}

const FIRST = ["loss", "val_loss", "accuracy", "val_accuracy"];
const LAST = /^(learning_rate$|lr$|system\/)/;

/** Sort names of metrics: losses and accuracies first, learning rates and system metrics last. */
export function ordered(names) {
  const rank = (name) => (FIRST.includes(name) ? FIRST.indexOf(name) : LAST.test(name) ? 99 : 50);
  return [...names].sort((a, b) => rank(a) - rank(b) || a.localeCompare(b));
}

/** Return the first `most` metrics in the order of `ordered`, as [name, formatted value]. */
export function headline(metrics, most) {
  const names = ordered(Object.keys(metrics ?? {})).slice(0, most);
  return names.map((name) => [name, value(metrics[name])]);
}

/**
 * Return the value of a metric of a training on several ranks as `{value, words}`; `words` names the ranks it is from.
 * Return null for a training on one rank. `final` is the final value of the attempt, if it has one; otherwise the value
 * is the mean of all ranks, or of those whose newest value is known: "mean of 2 of 3 ranks".
 */
export function rankedValue({ last_by_rank: byRank, metric_ranks: ranks = 0 }, name, final) {
  const isAlone =
    ranks <= 1 && Object.values(byRank ?? {}).every((found) => Object.keys(found).every((rank) => rank === "0"));
  const values = Object.entries(byRank?.[name] ?? {});
  if (!isAlone && final !== undefined) {
    const owners = values.filter(([, found]) => found === final).map(([rank]) => `rank ${rank}`);
    const isOfAll = owners.length > 1 && owners.length >= ranks;
    return { value: final, words: isOfAll ? "all ranks" : (owners[0] ?? "final") };
  }
  if (isAlone || !values.length) return null;
  if (values.length === 1) return { value: values[0][1], words: `rank ${values[0][0]}` };
  const sum = values.reduce((total, [, found]) => total + Number(found), 0);
  return { value: sum / values.length, words: `mean of ${values.length < ranks ? `${values.length} of ` : ""}${counted(Math.max(values.length, ranks), "rank")}` };
}
