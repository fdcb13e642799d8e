// A scrolled list of any length with few elements: rows of one height, only those in view are made.
// Browsers bound an element's height; beyond MOST_PX small scrolls stay exact and long ones are scaled.

const MOST_PX = 8_000_000;
const OVERSCAN = 12;
const SETTLE_MS = 160;

/** `rowAt(index)` makes a row or returns the one given where it still fits; `onRange(first, last)` says what is in view. */
export class Scroller {
  constructor(root, { rowHeight, makeRow, onRange, onFollow }) {
    Object.assign(this, { root, rowHeight, makeRow, onRange, onFollow });
    this.count = 0;
    this.top = 0;
    this.isFollowing = true;
    this.lastScrollTop = 0;
    this.first = 0;
    this.spacer = document.createElement("div");
    this.spacer.className = "scroll-spacer";
    this.layer = document.createElement("div");
    this.layer.className = "scroll-layer";
    root.append(this.spacer, this.layer);
    root.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    this.resizing = new ResizeObserver(() => this.#resized());
    this.resizing.observe(root);
  }

  close() {
    this.resizing.disconnect();
    clearTimeout(this.settling);
  }

  get mostTop() {
    return Math.max(0, this.count * this.rowHeight - this.root.clientHeight);
  }

  /** Say how many rows there are; `shift` rows have come in front of what is in view. */
  setCount(count, shift = 0) {
    this.count = count;
    this.spacer.style.height = `${Math.min(MOST_PX, count * this.rowHeight)}px`;
    if (this.isFollowing) this.#moveTo(this.mostTop);
    else this.#moveTo(this.top + shift * this.rowHeight, shift !== 0);
  }

  /** Bring a row into the upper third of the view; this ends following. */
  show(index) {
    this.setFollowing(false);
    this.#moveTo(index * this.rowHeight - this.root.clientHeight / 3, true);
  }

  /** Bring a row to the top of the view; this ends following. */
  showAtTop(index) {
    this.setFollowing(false);
    this.#moveTo(index * this.rowHeight, true);
  }

  /** Scroll by rows, as keys do. */
  moveBy(rows) {
    const to = this.top + rows * this.rowHeight;
    if (rows < 0) this.setFollowing(false);
    this.#moveTo(to, true);
    if (this.top >= this.mostTop - 2) this.setFollowing(true);
  }

  setFollowing(isFollowing) {
    if (isFollowing) this.#moveTo(this.mostTop, true);
    if (isFollowing === this.isFollowing) return;
    this.isFollowing = isFollowing;
    this.onFollow(isFollowing);
  }

  /** Draw what is in view; `anew` makes all rows again. */
  draw(anew = false) {
    if (anew) this.layer.replaceChildren();
    const first = Math.max(0, Math.floor(this.top / this.rowHeight) - OVERSCAN);
    const inView = Math.ceil(this.root.clientHeight / this.rowHeight);
    const last = Math.min(this.count - 1, Math.floor(this.top / this.rowHeight) + inView + OVERSCAN);
    this.onRange(first, last, Math.floor(this.top / this.rowHeight), inView);
    this.#place(first, last);
    this.first = first;
    this.layer.style.transform = `translateY(${first * this.rowHeight + this.lastScrollTop - this.top}px)`;
  }

  // Rows that stay are left where they are: a selection of text outlives the scrolling.
  #place(first, last) {
    const rows = this.layer.children;
    if (this.first + rows.length <= first || this.first > last) this.layer.replaceChildren();
    if (rows.length === 0) this.first = first;
    for (; this.first < first && rows.length; this.first += 1) rows[0].remove();
    for (; this.first > first; this.first -= 1) this.layer.prepend(this.makeRow(this.first - 1, null));
    while (rows.length > last - first + 1) this.layer.lastElementChild.remove();
    for (let index = 0; index < rows.length; index += 1) {
      const row = this.makeRow(first + index, rows[index]);
      if (row !== rows[index]) rows[index].replaceWith(row);
    }
    for (let index = first + rows.length; index <= last; index += 1) this.layer.append(this.makeRow(index, null));
  }

  #scrolled() {
    const scrollTop = this.root.scrollTop;
    const moved = scrollTop - this.lastScrollTop;
    this.lastScrollTop = scrollTop;
    if (moved === 0) return this.draw();
    const most = this.root.scrollHeight - this.root.clientHeight;
    if (Math.abs(moved) > 2 * this.root.clientHeight) this.top = (scrollTop / Math.max(1, most)) * this.mostTop;
    else this.top = Math.min(this.mostTop, Math.max(0, this.top + moved));
    if (scrollTop <= 0) this.top = 0;
    if (scrollTop >= most - 1) this.top = this.mostTop;
    if (moved < 0) this.#follow(false);
    else if (this.top >= this.mostTop - 2) this.#follow(true);
    this.#settleLater();
    this.draw();
  }

  #follow(isFollowing) {
    if (isFollowing === this.isFollowing) return;
    this.isFollowing = isFollowing;
    this.onFollow(isFollowing);
  }

  #resized() {
    this.#moveTo(this.isFollowing ? this.mostTop : this.top, true);
  }

  #moveTo(top, always = false) {
    const before = this.top;
    this.top = Math.min(this.mostTop, Math.max(0, top));
    if (always || this.top !== before) this.#settle();
    this.draw();
  }

  // Where heights are scaled, the scrollbar is put where the view is, once it rests.
  #settleLater() {
    clearTimeout(this.settling);
    this.settling = setTimeout(() => {
      this.#settle();
      this.draw();
    }, SETTLE_MS);
  }

  #settle() {
    const most = this.root.scrollHeight - this.root.clientHeight;
    const wanted = this.mostTop <= most ? this.top : (this.top / this.mostTop) * most;
    if (Math.abs(this.root.scrollTop - wanted) > 0.5) this.root.scrollTop = wanted;
    this.lastScrollTop = this.root.scrollTop;
  }
}
