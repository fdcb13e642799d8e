// One alert as a row of the table, and a destination's outage as a sentence.

import { h } from "../dom.js";
import { counted, dateTime, fromText, moment } from "../format.js";

const MEANINGS = {
  waiting: "Not sent yet, or not confirmed: it is tried again",
  sending: "A worker is sending it",
  sent: "The destination has confirmed it",
  failed: "Given up: it was tried for too long",
  uncertain: "Its worker was killed while it was sent: it may have arrived",
  suppressed: "Not sent: the rule has reached its limit of messages per hour",
};

/** Return the table row of an alert. */
export function alertRow(alert) {
  const { state, level } = alert;
  const badge = h("span", { class: `status is-${state}`, title: MEANINGS[state] }, h("i", { class: "dot", "aria-hidden": "true" }), state);
  const subject = alert.job_id
    ? h("a", { href: `#/jobs/${alert.job_id}`, dir: "auto" }, alert.title)
    : h("span", { dir: "auto" }, alert.title);
  const shownLevel = level === "info" ? null : h("span", { class: `chip level-${level}` }, level);
  return h(
    "tr",
    { class: "alert", data: { id: String(alert.id) } },
    h("td", { class: "a-state" }, badge),
    h("td", { class: "a-title" }, h("div", null, subject, " ", shownLevel), text("note", alert.content), text("why", reason(alert))),
    h("td", { class: "a-rule", dir: "auto" }, alert.rule),
    h("td", { class: "a-to", dir: "auto" }, alert.destination),
    h("td", { class: "a-time num" }, time(alert.occurred_at)),
  );
}

/** Return a sentence about a destination that does not accept alerts. */
export function outageWords({ destination, waiting, down_since: since, next_attempt_at: next, last_error: error }) {
  const parts = [
    `${destination} has accepted no alert since ${moment(fromText(since))}`,
    error && `: ${error}`,
    `. ${counted(waiting, "alert")} waiting`,
    next && `; the next attempt is at ${moment(fromText(next))}`,
    ".",
  ];
  return h("p", { class: "problem", dir: "auto" }, parts.filter(Boolean).join(""));
}

function reason({ state, last_error: error, attempts }) {
  if (state === "sent" || !error) return state === "suppressed" || state === "uncertain" ? MEANINGS[state] : null;
  return `Not sent${attempts > 1 ? ` in ${counted(attempts, "attempt")}` : ""}: ${error}`;
}

function text(name, words) {
  return words ? h("p", { class: name, dir: "auto" }, words) : null;
}

function time(given) {
  const at = fromText(given);
  return h("time", { datetime: given, title: dateTime(at) }, moment(at));
}
