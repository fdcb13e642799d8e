// The line at the top of the log's view, stored in the page's URL and restored when the page is opened.

/** The scroll position; `wanted` is the number of the line to restore, null once it is shown or if there is none. */
export class LogPosition {
  constructor(address) {
    this.address = address;
    this.wanted = Number(address.get("line")) || null;
  }

  /** Restore no line, because something else is shown. */
  forget() {
    this.wanted = null;
  }

  /**
   * Return the index of the line to restore in a source of lines; null until that line and one view of lines after it
   * are loaded.
   */
  restored(source, inView) {
    const index = source.indexOf(this.wanted);
    const isThere = index >= 0 && (source.count - index > inView || !source.hasNewer);
    if (isThere || (!source.hasNewer && !source.hasOlder)) this.forget();
    return isThere ? index : null;
  }

  /** Store the line at an index in the URL; no line while the newest one is followed. */
  keep(source, index, isFollowing) {
    if (this.wanted) return;
    const seq = isFollowing ? null : source.lineAt(index)?.seq;
    if (seq !== undefined) this.address.set("line", seq && String(seq));
  }
}
