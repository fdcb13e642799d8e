// What the page shows, kept in its address: a reload, the back button and a copied link give the same view again.

const PAUSE_MS = 150; // browsers limit how often an address may change

/** The parameters of the view at `path`, like `#/jobs/42`; `query` are those it was opened with. */
export class AddressState {
  constructor(path, query) {
    this.path = path;
    this.query = query;
  }

  /** The text of a parameter, null where it is not given. */
  get(name) {
    return this.query.get(name);
  }

  /** All texts of a repeated parameter. */
  all(name) {
    return this.query.getAll(name);
  }

  /** Set a parameter: a text, a list of texts, or null, "" or an empty list to remove it. */
  set(name, given) {
    const texts = [given].flat().filter((text) => text !== null && text !== undefined && text !== "");
    if (texts.join("\n") === this.all(name).join("\n")) return;
    this.query.delete(name);
    for (const text of texts) this.query.append(name, text);
    this.timer ??= setTimeout(() => this.write(), PAUSE_MS);
  }

  /** Write the address now. */
  write() {
    clearTimeout(this.timer);
    this.timer = null;
    if (!this.isClosed) history.replaceState(null, "", this.hash);
  }

  get hash() {
    // Commas and slashes are as they are: names of metrics have them, and people read addresses.
    const query = String(this.query).replaceAll("%2C", ",").replaceAll("%2F", "/");
    return query ? `${this.path}?${query}` : this.path;
  }

  /** Write no more: another view has the address now. */
  close() {
    clearTimeout(this.timer);
    this.isClosed = true;
  }
}
