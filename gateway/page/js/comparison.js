// Comparison of jobs: its maximum number of jobs, and its parameter in the page's URL.

export const MOST_COMPARED = 20; // as in GET /jobs/compare

/** Return the URL fragment of the page that compares the first job with the others. */
export function comparisonAddress([first, ...others]) {
  return `#/jobs/${first}?compare=${others.join(",")}`;
}

/** Return the ids of the jobs with which job `jobId` is compared, from the `compare` parameter of an `AddressState`. */
export function comparedIds(address, jobId) {
  const given = (address.get("compare") ?? "").split(",").filter((id) => /^\d+$/.test(id) && id !== jobId);
  return [...new Set(given)].slice(0, MOST_COMPARED - 1);
}
