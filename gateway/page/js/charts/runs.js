// The runs in charts: the attempts of this job, newest first, and the newest attempt of each compared job.

import { shortened } from "../format.js";
import { byId, jobName } from "../words.js";

const MOST_OF_NAME = 28;
const DASHES = [undefined, [7, 4], [2, 3], [9, 3, 2, 3]];

/**
 * Return the runs as `[{key, jobId, attempt, label, color, isMain, ranks}]`; `ranks` are rank numbers, [null] for a
 * training without ranks. `jobs` are the ids of this job and the compared ones; `documentOf(id)` returns the document
 * of a job or null.
 */
export function runsOf(store, { jobs, documentOf, palette }) {
  const found = jobs.flatMap((jobId, index) => attemptsOf(store, jobId, index > 0 ? documentOf(jobId) : null));
  const sorted = found.sort(
    (a, b) => jobs.indexOf(a.jobId) - jobs.indexOf(b.jobId) || byId(a.jobId, b.jobId) || b.attempt - a.attempt,
  );
  return sorted.map((run, index) => {
    const hasOthers = sorted.filter((other) => other.jobId === run.jobId).length > 1;
    return {
      ...run,
      key: `${run.jobId}/${run.attempt}`,
      label: label(run, jobs, documentOf, hasOthers ? `attempt ${run.attempt}` : ""),
      color: palette[index % palette.length],
      isMain: run.jobId === jobs[0],
    };
  });
}

function attemptsOf(store, jobId, document) {
  const attempts = new Map();
  for (const { attempt, rank } of store.all(jobId)) {
    if (document && attempt !== document.attempt) continue;
    if (!attempts.has(attempt)) attempts.set(attempt, new Set());
    attempts.get(attempt).add(rank);
  }
  return [...attempts].map(([attempt, ranks]) => ({
    jobId,
    attempt,
    ranks: [...ranks].sort((a, b) => (a ?? -1) - (b ?? -1)),
  }));
}

/**
 * Return the label of a run: the name of its job if there are several jobs (with its number if another has the same
 * name), and the attempt.
 */
function label(run, jobs, documentOf, attempt) {
  const names = jobs.map((id) => jobName(documentOf(id) ?? { id }));
  const name = names[jobs.indexOf(run.jobId)];
  const isShared = names.indexOf(name) !== names.lastIndexOf(name);
  const job = jobs.length > 1 && (isShared ? `${shortened(name, MOST_OF_NAME)} ${run.jobId}` : shortened(name, MOST_OF_NAME));
  return [job, attempt].filter(Boolean).join(" ");
}

/** Return whether a run has several ranks, so that labels of its lines need the rank. */
export function hasRanks({ ranks }) {
  return ranks.length > 1 || ranks[0] > 0;
}

/** Return all ranks of some runs, sorted; an empty list if there is only one. */
export function ranksOf(runs) {
  const ranks = new Set(runs.flatMap((run) => (hasRanks(run) ? run.ranks : [])));
  return ranks.size > 1 ? [...ranks].sort((a, b) => (a ?? -1) - (b ?? -1)) : [];
}

/**
 * Return the colour and dash of a rank's line. With one run each rank has its own colour, and a dash once the colours
 * are used up. With several runs the colour is that of the run, and the dash that of the rank.
 */
export function rankStyle(run, rank, { isSeveral, ranks, palette }) {
  const index = Math.max(0, ranks.indexOf(rank));
  if (isSeveral) return { color: run.color, dash: DASHES[index % DASHES.length] };
  return {
    color: ranks.length ? palette[index % palette.length] : run.color,
    dash: DASHES[Math.floor(index / palette.length) % DASHES.length],
  };
}

/** Return the dash of the `index`-th run in a chart of several metrics, whose colours distinguish the metrics. */
export function runDash(index) {
  return DASHES[index % DASHES.length];
}

/** Return the label of a rank: "rank 3", or "no rank" for a process without one. */
export function rankName(rank) {
  return rank === null ? "no rank" : `rank ${rank}`;
}
