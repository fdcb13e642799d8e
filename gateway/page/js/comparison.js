// Jobs that are compared: how many, and how an address names them.

export const MOST_COMPARED = 20; // as in GET /jobs/compare

/** The address that compares the first of some jobs with the others. */
export function comparisonAddress([first, ...others]) {
  return `#/jobs/${first}?compare=${others.join(",")}`;
}

/** The ids of the jobs that an address compares with job `jobId`. */
export function comparedIds(address, jobId) {
  const given = (address.get("compare") ?? "").split(",").filter((id) => /^\d+$/.test(id) && id !== jobId);
  return [...new Set(given)].slice(0, MOST_COMPARED - 1);
}
