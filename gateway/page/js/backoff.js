// The pause before a request that failed is sent again.

const FIRST_MS = 1000;
const LONGEST_MS = 60_000;

/** Return the milliseconds to wait after the `tries`-th failure in a row; by default 1 s, 2 s, 4 s … 60 s. */
export function backoff(tries, firstMs = FIRST_MS, longestMs = LONGEST_MS) {
  return Math.min(longestMs, firstMs * 2 ** (tries - 1));
}
