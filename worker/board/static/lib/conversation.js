// A window of a conversation's messages: what is loaded of it, and how it moves.
import { get } from "./api.js";

/** @typedef {import("./api.js").Message} Message */
/** @typedef {import("./api.js").Window} Window */

export const STEP = 100;
export const MOST = 300; // messages that are on the page at a time

/**
 * Add the messages that came after those of a window; those that it has already are passed over.
 * @param {Window} window
 * @param {number} total
 * @param {Message[]} messages
 * @param {boolean} following whether the oldest may go to make room
 * @returns {Window} without them where the window does not reach them
 */
export function append(window, total, messages, following) {
  const fresh = messages.filter(({ n }) => n > window.last);
  if (!fresh.length || fresh[0].n !== window.last + 1 || (!following && window.messages.length + fresh.length > MOST))
    return { ...window, total };
  const all = [...window.messages, ...fresh].slice(-MOST);
  return { total, messages: all, first: all[0].n, last: all[all.length - 1].n };
}

/**
 * Put the messages before those of a window; the newest go to make room.
 * @param {Window} window
 * @param {Window} earlier
 * @returns {Window}
 */
export function prepend(window, earlier) {
  const all = [...earlier.messages.filter(({ n }) => n < window.first), ...window.messages].slice(0, MOST);
  return joined(window.total, all);
}

/**
 * @param {number} total
 * @param {Message[]} messages
 * @returns {Window}
 */
export function joined(total, messages) {
  return { total, messages, first: messages[0]?.n ?? 0, last: messages[messages.length - 1]?.n ?? 0 };
}

/**
 * All messages of a stretch; an answer may end early.
 * @param {string} id
 * @param {number} first
 * @param {number} last
 * @param {string} [at] a point in the past
 * @returns {Promise<Window>}
 */
export async function stretch(id, first, last, at) {
  /** @type {Message[]} */
  const messages = [];
  for (let from = Math.max(first, 1); ; ) {
    const found = at ? await get("session/at", { id, at, first: from, last }) : await get("session/messages", { id, first: from, last });
    messages.push(...found.messages);
    if (!found.messages.length || found.last >= Math.min(last, found.total)) return joined(found.total, messages);
    from = found.last + 1;
  }
}

/**
 * A window with one message replaced, such as by all of it.
 * @param {Window} window
 * @param {Message} entry
 */
export const replaced = (window, entry) => ({
  ...window,
  messages: window.messages.map((one) => (one.n === entry.n ? entry : one)),
});
