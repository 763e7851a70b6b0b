// The keyboard: letters that go to a page, and steps through the items of one.

/** What `?` shows. */
export const MAP = [
  ["j, k", "next or previous item"],
  ["Enter", "open it"],
  ["/", "search or filter"],
  ["g b", "board"],
  ["g s", "search"],
  ["g h", "health"],
  ["g q", "quarantine"],
  ["e", "end of the conversation, and follow it"],
  ["[, ]", "earlier or later messages"],
  ["?", "this list"],
  ["Esc", "close it, or leave a field"],
];
const PAGES = /** @type {Record<string, string>} */ ({ b: "/", s: "/search", h: "/health", q: "/quarantine" });

let waitsForLetter = 0;

/**
 * Listen until the page is gone.
 * @param {Record<string, () => void>} [own] keys of this page
 */
export function keyboard(own = {}) {
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    const target = /** @type {HTMLElement} */ (event.target);
    const writes = target.closest("input:not([type=checkbox], [type=range], [type=radio]), textarea, select");
    if (event.key === "Escape" && writes) {
      event.preventDefault(); // a browser would empty a search field
      return target.blur();
    }
    if (writes || document.querySelector("dialog[open]")) return;
    const went = event.timeStamp - waitsForLetter < 1500 && PAGES[event.key];
    waitsForLetter = 0;
    if (went) location.assign(went);
    else if (event.key === "g") waitsForLetter = event.timeStamp;
    else if (event.key === "j") step(1);
    else if (event.key === "k") step(-1);
    else if (event.key === "/") field();
    else if (own[event.key]) own[event.key]();
    else return;
    event.preventDefault();
  });
}

/** @param {1 | -1} by */
function step(by) {
  const items = /** @type {HTMLElement[]} */ ([...document.querySelectorAll("[data-item]")]);
  if (!items.length) return;
  const at = items.findIndex((item) => item.contains(document.activeElement));
  const next = at < 0 ? (by > 0 ? seen(items) : items.length - 1) : Math.min(Math.max(at + by, 0), items.length - 1);
  items[next].focus();
  items[next].scrollIntoView({ block: "nearest" });
}

/**
 * The first that is not above the window.
 * @param {HTMLElement[]} items
 */
function seen(items) {
  return Math.max(items.findIndex((item) => item.getBoundingClientRect().top >= 0), 0);
}

function field() {
  const search = /** @type {HTMLInputElement | null} */ (document.querySelector("[data-search]"));
  if (search) search.select(), search.focus();
  else location.assign("/search");
}
