// The runs that are drawn: the attempts of this job, newest first, and the newest attempt of each compared one.

import { byId, jobName } from "../words.js";

const MOST_OF_NAME = 28;
const DASHES = [undefined, [7, 4], [2, 3], [9, 3, 2, 3]];

/**
 * `[{key, jobId, attempt, label, color, isMain, ranks}]`; `ranks` are the numbers of its ranks, [null] for a training
 * without ranks. `jobs` are this job's id and those of the others, `documentOf(id)` a job's document or null.
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

/** The name of the run's job, where several are drawn, with its number if another of them has that name; and attempt. */
function label(run, jobs, documentOf, attempt) {
  const names = jobs.map((id) => jobName(documentOf(id) ?? { id }));
  const name = names[jobs.indexOf(run.jobId)];
  const isShared = names.indexOf(name) !== names.lastIndexOf(name);
  const job = jobs.length > 1 && (isShared ? `${shortened(name)} ${run.jobId}` : shortened(name));
  return [job, attempt].filter(Boolean).join(" ");
}

function shortened(name) {
  return name.length > MOST_OF_NAME ? `${name.slice(0, MOST_OF_NAME)}…` : name;
}

/** Tell whether a run is of several ranks, so that each line needs the name of its rank. */
export function hasRanks({ ranks }) {
  return ranks.length > 1 || ranks[0] > 0;
}

/** All ranks of some runs, in order; none where there is only one. */
export function ranksOf(runs) {
  const ranks = new Set(runs.flatMap((run) => (hasRanks(run) ? run.ranks : [])));
  return ranks.size > 1 ? [...ranks].sort((a, b) => (a ?? -1) - (b ?? -1)) : [];
}

/**
 * The colour and dash of a rank's line: of one run each rank has a colour, and where these are used up a dash, too; of
 * several runs the colour is the run's, and the dash the rank's.
 */
export function rankStyle(run, rank, { isSeveral, ranks, palette }) {
  const index = Math.max(0, ranks.indexOf(rank));
  if (isSeveral) return { color: run.color, dash: DASHES[index % DASHES.length] };
  return {
    color: ranks.length ? palette[index % palette.length] : run.color,
    dash: DASHES[Math.floor(index / palette.length) % DASHES.length],
  };
}

/** The dash of the `index`-th of several runs in a chart whose colours are the metrics. */
export function runDash(index) {
  return DASHES[index % DASHES.length];
}

/** "rank 3"; "no rank" for the series of a process without one, beside others that have one. */
export function rankName(rank) {
  return rank === null ? "no rank" : `rank ${rank}`;
}
