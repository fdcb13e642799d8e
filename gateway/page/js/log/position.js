// The line at the top of the log's view: kept in the address, and shown again when the page is opened with it.

/** The position; `wanted` is the number of the line to begin at until it is shown, else null. */
export class LogPosition {
  constructor(address) {
    this.address = address;
    this.wanted = Number(address.get("line")) || null;
  }

  /** Begin at no line: something else is to be shown. */
  forget() {
    this.wanted = null;
  }

  /** The index of the wanted line in a source of lines, null while it and a view of lines after it are not there. */
  restored(source, inView) {
    const index = source.indexOf(this.wanted);
    const isThere = index >= 0 && (source.count - index > inView || !source.hasNewer);
    if (isThere || (!source.hasNewer && !source.hasOlder)) this.forget();
    return isThere ? index : null;
  }

  /** Keep the line at an index in the address, none while the newest line is followed. */
  keep(source, index, isFollowing) {
    if (this.wanted) return;
    const seq = isFollowing ? null : source.lineAt(index)?.seq;
    if (seq !== undefined) this.address.set("line", seq && String(seq));
  }
}
