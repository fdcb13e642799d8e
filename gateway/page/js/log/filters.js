// The bar above the log: search, filters, go to a line or time, follow, and download.

import { address } from "../api.js";
import { debounced, h, setText } from "../dom.js";
import { isGiven } from "../format.js";

const LEVELS = ["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"];
const SEARCH_MS = 250;

/** The bar. `onFilter(filter)` is called when a filter changes, `onGoTo(text)` with the number of a line or a time. */
export class LogFilters {
  constructor({ path, onFilter, onGoTo, onFollow }) {
    this.path = path;
    this.onFilter = onFilter;
    const changed = () => this.#changed();
    this.search = h("input", {
      type: "search",
      class: "log-search",
      placeholder: "Search",
      "aria-label": "Search the log",
      spellcheck: "false",
      on: { input: debounced(changed, SEARCH_MS) },
    });
    this.stream = select(
      "Stream",
      [
        ["", "All output"],
        ["stdout", "stdout"],
        ["stderr", "stderr"],
      ],
      changed,
    );
    this.level = select(
      "Level",
      [["", "All levels"], ...LEVELS.map((level) => [level, level.toLowerCase()])],
      changed,
    );
    this.attempt = select("Attempt", [["", "All attempts"]], changed);
    this.attempt.classList.add("log-attempt");
    this.attempt.hidden = true;
    this.attempts = [];
    this.rank = select("Rank", [["", "All ranks"]], changed);
    this.rank.hidden = true;
    this.ranks = [];
    this.goTo = h("input", {
      type: "text",
      class: "log-goto",
      placeholder: "Go to line or time",
      "aria-label": "Go to line or time, like 1234 or 14:03:11",
      spellcheck: "false",
      on: { keydown: (event) => event.key === "Enter" && onGoTo(this.goTo.value.trim()) },
    });
    this.follow = h(
      "button",
      {
        class: "toggle",
        title: "Follow the newest line (f)",
        "aria-pressed": "true",
        on: { click: onFollow },
      },
      "Follow",
    );
    this.download = h(
      "a",
      {
        class: "button icon",
        download: "",
        title: "Download these lines as text",
        "aria-label": "Download these lines as text",
      },
      "⤓",
    );
    this.said = h("span", { class: "log-said quiet", role: "status" });
    this.root = h(
      "div",
      { class: "log-bar" },
      this.search,
      this.stream,
      this.level,
      this.attempt,
      this.rank,
      this.goTo,
      h("span", { class: "log-end" }, this.said, this.follow, this.download),
    );
    this.#link();
  }

  /** The active filters, as parameters of the gateway. */
  get filter() {
    const chosen = {
      search: this.search.value,
      log_type: this.stream.value,
      level: this.level.value,
      attempt: this.attempt.value,
      rank: this.rank.value,
    };
    return Object.fromEntries(Object.entries(chosen).filter(([, value]) => value));
  }

  /** Set the inputs to these filters, without starting a search. */
  restore({ search, log_type: stream, level, attempt, rank }) {
    if (isNumber(attempt)) this.setAttempts([Number(attempt)]);
    if (isNumber(rank)) this.addRank(Number(rank));
    for (const [field, text] of [
      [this.search, search],
      [this.stream, stream],
      [this.level, level],
      [this.attempt, attempt],
      [this.rank, rank],
    ])
      field.value = text ?? "";
    this.#link();
  }

  /** Clear all filters. */
  clear() {
    for (const field of [this.search, this.stream, this.level, this.attempt, this.rank]) field.value = "";
    this.#changed();
  }

  /**
   * Add attempts to the menu, which is shown if there are several; attempts that were sent late have numbers below 1.
   */
  setAttempts(numbers) {
    const offered = new Set([...this.attempts, ...numbers]);
    if (offered.size === this.attempts.length) return;
    this.attempts = [...offered].sort((a, b) => a - b);
    this.attempt.hidden = this.attempts.length < 2;
    const chosen = this.attempt.value;
    const options = this.attempts.map((number) => option(String(number), `Attempt ${number}`));
    this.attempt.replaceChildren(this.attempt.options[0], ...options);
    this.attempt.value = chosen;
  }

  /** Add the rank of a line to the menu, which is shown if there are several. */
  addRank(number) {
    if (!isGiven(number) || this.ranks.includes(number)) return;
    this.ranks = [...this.ranks, number].sort((a, b) => a - b);
    this.rank.hidden = this.ranks.length < 2;
    const chosen = this.rank.value;
    this.rank.replaceChildren(this.rank.options[0], ...this.ranks.map((each) => option(String(each), `Rank ${each}`)));
    this.rank.value = chosen;
  }

  setFollowing(isFollowing) {
    this.follow.setAttribute("aria-pressed", String(isFollowing));
  }

  say(words, isProblem = false) {
    setText(this.said, words);
    this.said.classList.toggle("problem", isProblem);
    this.said.classList.toggle("is-worth", isProblem || Object.keys(this.filter).length > 0);
  }

  #changed() {
    this.#link();
    this.onFilter(this.filter);
  }

  #link() {
    this.download.href = address(`${this.path}/download`, this.filter);
  }
}

function select(label, options, changed) {
  return h(
    "select",
    { "aria-label": label, on: { change: changed } },
    options.map(([value, words]) => option(value, words)),
  );
}

/** Return whether the text of a parameter is an integer; attempts that were sent late are 0, -1 … */
function isNumber(text) {
  return /^-?\d+$/.test(text ?? "");
}

function option(value, words) {
  return h("option", { value }, words);
}
