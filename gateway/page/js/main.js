// Entry point of the page: requests the session, opens the view that the URL names, and builds the top bar.

import { openAlerts } from "./alerts/alerts.js";
import { onDenied } from "./api.js";
import { Connection } from "./connection.js";
import { h } from "./dom.js";
import { openJob } from "./job/job.js";
import { bindKeys, showKeys } from "./keys.js";
import { openList } from "./list/list.js";
import { logOut, loginView, whoAmI } from "./session.js";
import { nextTheme, theme } from "./theme.js";

const content = document.getElementById("content");
const crumbs = document.getElementById("crumbs");
const connection = new Connection(document.getElementById("connection"));
let close = () => {};
let isLocked = false;
let mayEdit = false;

const JOB = /^#\/jobs\/(\d+)(?:\?(.*))?$/;
const ALERTS = /^#\/alerts(?:\?(.*))?$/;
const LIST = /^(?:#\/?(?:\?(.*))?)?$/;

/** Open the view that the URL fragment names: `#/` is the list of jobs, `#/jobs/42` one job, `#/alerts` all alerts. */
function route() {
  if (isLocked) return;
  close();
  connection.hide();
  const view = { content, crumbs, connection, mayEdit };
  crumbs.replaceChildren();
  const [job, list, alerts] = [JOB, LIST, ALERTS].map((address) => address.exec(location.hash));
  if (job) close = openJob(view, job[1], new URLSearchParams(job[2]));
  else if (list) close = openList(view, new URLSearchParams(list[1]));
  else if (alerts) close = openAlerts(view, new URLSearchParams(alerts[1]));
  else close = showUnknown();
  window.scrollTo(0, 0);
}

function showUnknown() {
  document.title = "Page not found · trainwire";
  content.replaceChildren(
    h(
      "div",
      { class: "empty" },
      h("h2", null, "Page not found"),
      h("p", { dir: "auto" }, `Nothing is at ${location.hash.slice(0, 100)}.`),
      h("a", { class: "button", href: "#/" }, "All jobs"),
    ),
  );
  return () => {};
}

function askForToken() {
  if (isLocked) return;
  isLocked = true;
  close();
  close = () => {};
  connection.hide();
  crumbs.replaceChildren();
  document.title = "trainwire";
  content.replaceChildren(
    loginView(() => {
      isLocked = false;
      begin();
    }),
  );
}

function drawTools(session) {
  const themeButton = h("button", { class: "icon", on: { click: changeTheme } });
  const nameTheme = () => {
    themeButton.textContent = { auto: "◐", light: "☀", dark: "☾" }[theme()];
    const words = `Theme: ${theme() === "auto" ? "system" : theme()} (t)`;
    themeButton.title = words;
    themeButton.setAttribute("aria-label", words);
  };
  function changeTheme() {
    nextTheme();
    nameTheme();
  }
  nameTheme();
  const keys = h(
    "button",
    { class: "icon for-keyboards", title: "Keyboard shortcuts (?)", "aria-label": "Keyboard shortcuts", on: { click: showKeys } },
    "?",
  );
  const leave = async () => {
    await logOut().catch(() => {});
    askForToken();
  };
  const out =
    session.auth === "on" && session.role
      ? h("button", { class: "plain", title: `role: ${session.role}`, on: { click: leave } }, "Sign out")
      : null;
  const workers = session.flower_url
    ? h("a", { class: "button plain", href: session.flower_url, target: "_blank", rel: "noopener", title: "Flower" }, "Workers ↗")
    : null;
  const mayRead = session.auth === "off" || ["viewer", "admin"].includes(session.role);
  const alerts = mayRead ? h("a", { class: "button plain", href: "#/alerts" }, "Alerts") : null;
  document.getElementById("tools").replaceChildren(...[alerts, workers, out, themeButton, keys].filter(Boolean));
  bindKeys({
    "?": ["Keyboard shortcuts", showKeys],
    t: ["Theme: system, light, dark", changeTheme],
    a: ["Alerts", () => (location.hash = "#/alerts")],
    h: ["Home: the list of jobs", () => (location.hash = "#/")],
  });
}

async function begin() {
  let session = { auth: "off", role: null };
  try {
    session = await whoAmI();
  } catch {
    // No response: the view shows the error and retries.
  }
  mayEdit = session.auth === "off" || session.role === "admin";
  drawTools(session);
  if (session.auth === "on" && !session.role) askForToken();
  else route();
}

onDenied(askForToken);
window.addEventListener("hashchange", route);
begin();
