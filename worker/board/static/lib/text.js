// Text that does nothing to the page, and shows all that it is.
import { html } from "../vendor/preact.js";

/** @typedef {import("../vendor/preact.js").Child} Child */

// As worker/cli/inert.py: controls but line feed and tab, marks that reorder text, and characters
// that show nothing. A colour of a terminal is one match.
const CONTROL =
  /\x1b\[[0-9;]{0,20}m|[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u115f\u1160\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ud800-\udfff\ufeff\uffa0\ufff9-\ufffb\u{e0000}-\u{e0fff}]/gu;

/** @param {string} text */
const escaped = (text) =>
  Array.from(text, (one) => {
    const code = one.codePointAt(0) ?? 0;
    return code >= 32 && code < 127 ? one : `\\u${code > 65535 ? `{${code.toString(16)}}` : code.toString(16).padStart(4, "0")}`;
  }).join("");

/**
 * Text with its control and invisible characters as escapes, for titles and attributes.
 * @param {unknown} text
 * @returns {string}
 */
export function inert(text) {
  return String(text).replace(CONTROL, escaped);
}

/**
 * The same for the page, where the escapes are set apart from what was written.
 * @param {string} text
 * @returns {Child}
 */
export function shown(text) {
  const plain = text.includes("\r\n") ? text.replaceAll("\r\n", "\n") : text;
  if (plain.search(CONTROL) < 0) return plain;
  /** @type {Child[]} */
  const pieces = [];
  let end = 0;
  for (const found of plain.matchAll(CONTROL)) {
    pieces.push(plain.slice(end, found.index));
    pieces.push(html`<span class="control">${escaped(found[0])}</span>`);
    end = found.index + found[0].length;
  }
  pieces.push(plain.slice(end));
  return pieces;
}
