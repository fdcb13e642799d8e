// The runs that are drawn: the attempts of all jobs, the newest of this job first, each with a colour of its own.

import { byId, jobName } from "../words.js";

const MOST_OF_NAME = 28;

/** `[{key, jobId, attempt, label, color, isMain}]`; `compared` maps the ids of other jobs to them, null until they are known. */
export function runsOf(store, { jobId, compared, palette }) {
  const found = new Map();
  for (const series of store.series.values())
    found.set(`${series.jobId}/${series.attempt}`, { jobId: series.jobId, attempt: series.attempt });
  const isOther = (run) => run.jobId !== jobId;
  const sorted = [...found].sort(
    ([, a], [, b]) => isOther(a) - isOther(b) || byId(a.jobId, b.jobId) || b.attempt - a.attempt,
  );
  return sorted.map(([key, run], index) => {
    const hasOthers = sorted.filter(([, other]) => other.jobId === run.jobId).length > 1;
    const which = hasOthers ? `attempt ${run.attempt}` : "";
    return {
      key,
      ...run,
      label: label(run, jobId, compared, which),
      color: palette[index % palette.length],
      isMain: !isOther(run),
    };
  });
}

function label(run, jobId, compared, which) {
  const other = compared.get(run.jobId);
  const job =
    run.jobId === jobId
      ? compared.size > 0 && `job ${jobId}`
      : `${run.jobId} ${other ? shortened(jobName(other)) : ""}`.trim();
  return [job, which].filter(Boolean).join(" ");
}

function shortened(name) {
  return name.length > MOST_OF_NAME ? `${name.slice(0, MOST_OF_NAME)}…` : name;
}
