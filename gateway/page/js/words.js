// A job's state in words.

import { about, count, duration, fromText, moment, value } from "./format.js";

export const STATUSES = ["running", "stalled", "lost", "failed", "ended", "stopped", "completed", "pending"];

/** Tell whether the job's attempt has ended. */
export function hasEnded(job) {
  return ["completed", "failed", "ended", "stopped"].includes(job.status);
}

/** "stopped by anna", or the status. */
export function statusWords(job) {
  return job.status === "stopped" && job.stop ? `stopped by ${job.stop.requested_by}` : job.status;
}

/** The name that a job is called by. */
export function jobName(job) {
  return job.name?.trim() ? job.name : `job ${job.id}`;
}

/** Compare two ids, numbers or texts of any length, as numbers. */
export function byId(one, other) {
  const [a, b] = [String(one), String(other)];
  return a.length - b.length || (a < b ? -1 : Number(a > b));
}

/** For how long the attempt has run, in seconds; null where it has not begun. */
export function runtime(job) {
  const from = fromText(job.started_at ?? job.created_at);
  if (from === null || job.status === "pending") return null;
  const until = hasEnded(job)
    ? fromText(job.completed_at)
    : job.status === "lost"
      ? fromText(job.last_seen_at)
      : null;
  return ((until ?? Date.now()) - from) / 1000;
}

/** For how long the attempt has run, in words. */
export function runtimeWords(job) {
  const seconds = runtime(job);
  return seconds === null ? "–" : duration(seconds);
}

/** The metrics of a job: the newest, and where its attempt has ended the final ones over them. */
export function latestMetrics(job) {
  return { ...job.last_metrics, ...(hasEnded(job) ? job.final_metrics : null) };
}

/** Progress in per cent; null where the trainer has reported too little to compute it. */
export function percent(job) {
  if (job.status === "completed") return 100; // its epochs may count from 0
  if (job.progress_percent !== null && job.progress_percent !== undefined) {
    const said = Number(job.progress_percent);
    return Number.isFinite(said) ? Math.min(100, Math.max(0, said)) : null;
  }
  const epoch = Number(job.current_epoch ?? NaN); // null, not reported, would count as 0
  if (job.total_epochs > 0 && epoch >= 0) return Math.min(100, (100 * epoch) / job.total_epochs);
  return null;
}

/** "epoch 3 of 10", "epoch 3", "" */
export function epochs(job) {
  if (job.current_epoch === null || job.current_epoch === undefined) return "";
  return job.total_epochs
    ? `epoch ${count(job.current_epoch)} of ${count(job.total_epochs)}`
    : `epoch ${count(job.current_epoch)}`;
}

/** How long it may still take, in words; "" where nobody can tell. */
export function remaining(job) {
  const done = percent(job);
  const ran = runtime(job);
  if (job.status !== "running" || !done || done >= 100 || !ran || ran < 10) return "";
  return `about ${about((ran * (100 - done)) / done)} left`;
}

/** One sentence: what the job does, or why it does nothing. */
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
    case "stalled":
      return `Stalled: ${job.status_reason || "alive, but it sends nothing"}.`;
    case "lost":
      return `Lost: ${job.status_reason || "its trainer no longer sends anything"}${lastHeard(job)}.`;
    default:
      return job.status;
  }
}

function exited(job) {
  return job.exit_code === null || job.exit_code === undefined ? "" : `, exit code ${job.exit_code}`;
}

function lastHeard(job) {
  return job.last_seen_at && !job.status_reason ? `, last at ${moment(fromText(job.last_seen_at))}` : "";
}

const FIRST = ["loss", "val_loss", "accuracy", "val_accuracy"];
const LAST = /^(learning_rate$|lr$|system\/)/;

/** Names of metrics in the order in which people look for them. */
export function ordered(names) {
  const rank = (name) => (FIRST.includes(name) ? FIRST.indexOf(name) : LAST.test(name) ? 99 : 50);
  return [...names].sort((a, b) => rank(a) - rank(b) || a.localeCompare(b));
}

/** The first metrics of a job as [name, shown value]. */
export function headline(metrics, most) {
  const names = ordered(Object.keys(metrics ?? {})).slice(0, most);
  return names.map((name) => [name, value(metrics[name])]);
}

/**
 * The value of a metric of a training on several ranks, and whose it is: `{value, words}`; null without ranks.
 * `final` is the value that the end of the attempt has brought, of the rank that has it.
 */
export function rankedValue(byRank, name, final) {
  const isAlone = Object.values(byRank ?? {}).every((ranks) => Object.keys(ranks).every((rank) => rank === "0"));
  const values = Object.entries(byRank?.[name] ?? {});
  if (!isAlone && final !== undefined) {
    const owners = values.filter(([, found]) => found === final).map(([rank]) => `rank ${rank}`);
    const isOfAll = owners.length > 1 && owners.length === values.length;
    return { value: final, words: isOfAll ? "all ranks" : (owners[0] ?? "final") };
  }
  if (isAlone || !values.length) return null;
  if (values.length === 1) return { value: values[0][1], words: `rank ${values[0][0]}` };
  const sum = values.reduce((total, [, found]) => total + Number(found), 0);
  return { value: sum / values.length, words: `mean of ${values.length} ranks` };
}
