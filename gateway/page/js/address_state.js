// The state of a view in the page's URL, so that a reload, the back button and a copied link restore the same view.

import { isGiven } from "./format.js";

const PAUSE_MS = 150; // browsers limit how often an address may change
const PRESSES = ["pointerdown", "keydown"];

/** The parameters in the URL of a view; `path` is like `#/jobs/42`, `query` has the initial parameters. */
export class AddressState {
  constructor(path, query) {
    this.path = path;
    this.query = query;
    // A press may open another view: the history keeps this one as it is.
    this.flush = () => this.timer && this.write();
    for (const kind of PRESSES) addEventListener(kind, this.flush, true);
  }

  /** Return the value of a parameter, null if it is absent. */
  get(name) {
    return this.query.get(name);
  }

  /** Return all values of a parameter that may be repeated. */
  all(name) {
    return this.query.getAll(name);
  }

  /**
   * Set a parameter to a text or a list of texts; null, "" or an empty list removes it. The URL changes after a pause.
   */
  set(name, given) {
    const texts = [given].flat().filter((text) => isGiven(text) && text !== "");
    if (texts.join("\n") === this.all(name).join("\n")) return;
    this.query.delete(name);
    for (const text of texts) this.query.append(name, text);
    this.timer ??= setTimeout(() => this.write(), PAUSE_MS);
  }

  /** Update the URL now, without the pause. */
  write() {
    clearTimeout(this.timer);
    this.timer = null;
    if (!this.isClosed) history.replaceState(null, "", this.hash);
  }

  get hash() {
    // Commas and slashes are not escaped: names of metrics contain them, and the URL stays readable.
    const query = String(this.query).replaceAll("%2C", ",").replaceAll("%2F", "/");
    return query ? `${this.path}?${query}` : this.path;
  }

  /** Stop updating the URL, because another view uses it now. */
  close() {
    clearTimeout(this.timer);
    for (const kind of PRESSES) removeEventListener(kind, this.flush, true);
    this.isClosed = true;
  }
}
