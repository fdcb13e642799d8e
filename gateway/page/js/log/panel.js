// The log of a job: all lines, or those that match a filter; it follows the newest line until the user scrolls up.

import { get } from "../api.js";
import { h, oncePerFrame, setText } from "../dom.js";
import { count, counted, fromNs } from "../format.js";
import { hasEnded } from "../words.js";
import { lineDetail } from "./detail.js";
import { LogFilters } from "./filters.js";
import { LogMatches } from "./matches.js";
import { LogPages } from "./pages.js";
import { LogPosition } from "./position.js";
import { lineRow } from "./row.js";
import { Scroller } from "./scroller.js";
import { destination } from "./times.js";

const ROW_HEIGHT = 19;
const PARAMETERS = ["search", "log_type", "level", "attempt", "rank"]; // of the gateway and of the address

/** The log panel of one job. */
export class LogPanel {
  constructor(jobId, address) {
    this.address = address;
    this.path = `/jobs/${jobId}/logs`;
    this.filter = {};
    this.total = 0;
    this.shift = 0;
    this.unseen = 0;
    this.filters = new LogFilters({
      path: this.path,
      onFilter: (filter) => {
        this.position.forget();
        this.#setFilter(filter);
      },
      onGoTo: (text) => this.#goTo(text),
      onFollow: () => this.toggleFollow(),
    });
    this.view = h("div", {
      class: "log-view",
      tabindex: "0",
      role: "log",
      "aria-live": "off",
      "aria-label": "Log lines",
      on: { click: (event) => this.#clicked(event), keydown: (event) => this.#key(event) },
    });
    this.newer = h("button", {
      class: "newer",
      hidden: true,
      on: { click: () => this.toggleFollow(true) },
    });
    this.empty = h("p", { class: "log-empty quiet", hidden: true });
    this.drawer = h("div", { class: "log-drawer" });
    this.root = h(
      "section",
      { class: "log", "aria-label": "Log" },
      this.filters.root,
      h("div", { class: "log-frame" }, this.view, this.empty, this.newer),
      this.drawer,
    );
    this.update = oncePerFrame(() => this.#update());
    this.pages = new LogPages((query, signal) => get(this.path, query, signal), this.update);
    this.source = this.pages;
    this.scroller = new Scroller(this.view, {
      rowHeight: ROW_HEIGHT,
      makeRow: (index, before) => this.#row(index, before),
      onRange: (first, last, top) => {
        this.source.need(first, last);
        this.position.keep(this.source, top, this.scroller.isFollowing);
      },
      onFollow: (isFollowing) => this.#followed(isFollowing),
    });
    this.position = new LogPosition(address);
    this.filters.restore(Object.fromEntries(PARAMETERS.map((name) => [name, address.get(name)])));
  }

  close() {
    this.pages.close();
    if (this.source !== this.pages) this.source.close();
    this.scroller.close();
  }

  /** Add the lines of a snapshot or of an event. */
  add(lines) {
    this.pages.add(lines);
    if (lines.length) this.setTotal(lines.at(-1).seq);
  }

  /** Set the number of lines of the job. */
  setTotal(total) {
    if (total > this.total && !this.scroller.isFollowing) this.unseen += total - this.total;
    this.total = Math.max(this.total, total);
    this.view.style.setProperty("--digits", String(this.total).length);
    this.pages.setTotal(total);
    if (this.source !== this.pages) this.source.setTotal(total);
    this.update();
  }

  begin(snapshot, isFirst) {
    if (snapshot.logs) this.add(snapshot.logs);
    this.setTotal(snapshot.job.rows.logs);
    if (!isFirst) return;
    if (this.position.wanted) this.scroller.setFollowing(false);
    if (Object.keys(this.filters.filter).length) this.#setFilter(this.filters.filter);
    this.update();
  }

  take(event) {
    if (event.type !== "training_log") return;
    if (event.lines) this.add(event.lines);
    else if (event.last_seq) this.setTotal(event.last_seq);
  }

  setJob(job) {
    this.filters.setAttempts([job.attempt, ...(job.attempts ?? []).map(({ attempt }) => attempt)]);
    this.hasEnded = hasEnded(job);
    setText(this.empty, this.#emptyWords());
  }

  opened() {
    this.update();
  }

  /** Start or stop following the newest line. */
  toggleFollow(isFollowing = !this.scroller.isFollowing) {
    this.scroller.setFollowing(isFollowing);
  }

  focusSearch() {
    this.filters.search.focus();
    this.filters.search.select();
  }

  focusLines() {
    this.view.focus({ preventScroll: true });
  }

  focusGoTo() {
    this.filters.goTo.focus();
    this.filters.goTo.select();
  }

  /** Show the first line at or after a time in milliseconds since 1970. */
  async goToTime(ms) {
    try {
      const found = await get(this.path, { at: new Date(ms).toISOString(), limit: 1 });
      if (found.items.length) this.#showSeq(found.items[0].seq);
      else this.toggleFollow(true);
    } catch (problem) {
      this.filters.say(problem.message, true);
    }
  }

  /** Close the details of a line; return whether they were open. */
  closeDetail() {
    const wasOpen = this.drawer.childElementCount > 0;
    this.drawer.replaceChildren();
    this.selected = null;
    if (wasOpen) this.scroller.draw(true);
    return wasOpen;
  }

  #setFilter(filter) {
    if (this.source !== this.pages) this.source.close();
    this.filter = filter;
    for (const name of PARAMETERS) this.address.set(name, filter[name]);
    this.shift = 0;
    if (Object.keys(filter).length === 0) this.source = this.pages;
    else {
      const fetchLines = (query, signal) => get(this.path, { ...this.filter, ...query }, signal);
      this.source = new LogMatches(
        fetchLines,
        this.total,
        (shift) => {
          this.shift += shift;
          this.update();
        },
        this.position.wanted ?? undefined,
      );
    }
    this.scroller.draw(true);
    this.scroller.setCount(this.source.count);
    this.scroller.setFollowing(this.position.wanted === null);
    this.update();
  }

  #update() {
    this.scroller.setCount(this.source.count, this.shift);
    this.shift = 0;
    if (this.position.wanted && this.source.count) {
      const index = this.position.restored(this.source, Math.ceil(this.view.clientHeight / ROW_HEIGHT));
      if (index !== null) this.scroller.showAtTop(index);
    }
    this.empty.hidden = this.source.count > 0;
    setText(this.empty, this.#emptyWords());
    this.#say();
    this.newer.hidden = this.scroller.isFollowing || this.unseen === 0;
    setText(this.newer, `↓ ${counted(this.unseen, "new line")}`);
  }

  #emptyWords() {
    if (this.source === this.pages) return this.hasEnded ? "No output." : "No output yet.";
    return this.source.hasOlder ? `Searching above line ${count(this.source.oldest)}…` : "No matching lines.";
  }

  #say() {
    const { problem } = this.source;
    if (problem) return this.filters.say(`${problem.message} Retrying…`, true);
    if (this.source === this.pages) return this.filters.say(counted(this.total, "line"));
    return this.filters.say(
      `${count(this.source.count)}${this.source.hasOlder ? "+" : ""} of ${counted(this.total, "line")}`,
    );
  }

  /** Note the rank of a line; ranks are shown as soon as there are lines of two ranks. */
  #noteRank(rank) {
    this.filters.addRank(rank);
    this.root.classList.toggle("has-ranks", this.filters.ranks.length > 1);
  }

  #row(index, before) {
    const line = this.source.lineAt(index);
    if (before && before.line === line && (line || before.index === index)) return before;
    const row = lineRow(line, index + 1, this.filter.search);
    row.line = line;
    if (line) this.#noteRank(line.rank);
    row.index = index;
    if (line && line.seq === this.selected) row.classList.add("is-selected");
    return row;
  }

  #followed(isFollowing) {
    if (isFollowing) this.unseen = 0;
    this.filters.setFollowing(isFollowing);
    this.update();
  }

  #goTo(text) {
    const line = this.source.lineAt(Math.max(0, this.scroller.first)) ?? this.pages.lineAt(this.total - 1);
    const to = destination(text, line ? fromNs(line.ts) : Date.now());
    if (!to) return this.filters.say("Not a line or time: use 1234, or 14:03:11", true);
    if (to.seq) this.#showSeq(to.seq);
    else this.goToTime(to.at);
    this.view.focus({ preventScroll: true });
  }

  #showSeq(seq) {
    this.position.forget();
    if (this.source !== this.pages) this.filters.clear();
    this.selected = Math.min(seq, this.total);
    this.scroller.show(this.pages.indexOf(seq));
    this.scroller.draw(true);
  }

  #clicked(event) {
    const row = event.target.closest(".line");
    if (!row?.line || !getSelection().isCollapsed) return;
    this.selected = row.line.seq;
    this.scroller.setFollowing(false);
    const isFiltered = this.source !== this.pages;
    const onShowAround = isFiltered ? (seq) => this.#showSeq(seq) : null;
    this.drawer.replaceChildren(
      lineDetail(row.line, { needle: this.filter.search, onShowAround, onClose: () => this.closeDetail() }),
    );
    this.scroller.draw(true);
  }

  #key(event) {
    const page = Math.max(1, Math.floor(this.view.clientHeight / ROW_HEIGHT) - 2);
    const rows = {
      ArrowDown: 1,
      ArrowUp: -1,
      PageDown: page,
      PageUp: -page,
      " ": page,
      Home: -this.source.count,
      End: this.source.count,
    }[event.key];
    if (rows === undefined) return;
    event.preventDefault();
    this.scroller.moveBy(rows);
  }
}
