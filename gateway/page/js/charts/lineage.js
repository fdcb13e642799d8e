// Where a line comes from: the attempts and jobs from which an attempt was resumed or a job was forked.

import { isGiven } from "../format.js";

const STEP = 0;
const MOST_PARTS = 20; // a chain of jobs may be a circle: anybody can name any parent

/**
 * The earlier parts of the line of an attempt, the oldest first: `[{jobId, attempt, upTo}]`. Of each the points up to
 * the step `upTo` belong to the line. `documentOf(id)` is a job's document or null.
 */
export function earlierParts({ jobId, attempt }, documentOf) {
  const parts = [];
  let [place, upTo] = [beginning(jobId, attempt, documentOf), Infinity];
  while (place && parts.length < MOST_PARTS) {
    upTo = Math.min(upTo, place.step);
    parts.unshift({ jobId: place.jobId, attempt: place.attempt, upTo });
    place = beginning(place.jobId, place.attempt, documentOf);
  }
  return parts;
}

/** The step after which the points of an attempt are rolled back, as later attempts resumed there; null for none. */
export function rolledBackAfter({ jobId, attempt }, documentOf) {
  let step = null;
  for (const later of attemptsOf(documentOf(jobId)).filter((each) => each.attempt > attempt)) {
    if (!isGiven(later.resume_step)) break;
    step = Math.min(step ?? Infinity, later.resume_step);
  }
  return step;
}

/** The points up to a step; those without one belong to it. */
export function upToStep(points, step) {
  return points.filter((point) => point[STEP] === null || point[STEP] <= step);
}

/** The points after a step. */
export function afterStep(points, step) {
  return points.filter((point) => point[STEP] !== null && point[STEP] > step);
}

function beginning(jobId, attempt, documentOf) {
  const job = documentOf(jobId);
  const attempts = attemptsOf(job);
  const own = attempts.find((each) => each.attempt === attempt);
  if (isGiven(own?.resume_step)) {
    const before = attempts.filter((each) => each.attempt < attempt).at(-1);
    return before ? { jobId, attempt: before.attempt, step: own.resume_step } : null;
  }
  if (!job || !isGiven(job.parent_id)) return null;
  const parent = String(job.parent_id);
  const known = attemptAt(documentOf(parent), job.created_at);
  return known === null ? null : { jobId: parent, attempt: known, step: job.fork_step };
}

/** The newest attempt of a job that had begun at a time. */
function attemptAt(job, time) {
  const begun = attemptsOf(job).filter((each) => !each.started_at || Date.parse(each.started_at) <= Date.parse(time));
  return begun.at(-1)?.attempt ?? job?.attempt ?? null;
}

function attemptsOf(job) {
  return [...(job?.attempts ?? [])].sort((a, b) => a.attempt - b.attempt);
}
