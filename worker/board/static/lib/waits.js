// Which sessions wait for a person; the server has the same rule.

/** @typedef {import("./api.js").Session} Session */

const STILL = 60_000; // milliseconds without a change after an answer

/**
 * @param {Session} session
 * @param {number} [now]
 */
export function waits(session, now = Date.now()) {
  if (session.status === "ready" || session.status === "review") return true;
  return session.last_role === "assistant" && session.status !== "done" && now - session.updated_at >= STILL;
}

/** @type {Record<"changed" | "created" | "waiting", (a: Session, b: Session) => number>} */
export const ORDERS = {
  changed: (a, b) => b.last_seq - a.last_seq,
  created: (a, b) => b.created_at - a.created_at || b.last_seq - a.last_seq,
  waiting: (a, b) =>
    Number(waits(b)) - Number(waits(a)) || (waits(a) ? a.updated_at - b.updated_at : b.updated_at - a.updated_at),
};

const KNOWN = ["ready", "in-progress", "review", "done"];
export const MOST_COLUMNS = 12;
const MOST_LENGTH = 199; // characters of a status that the server gives whole

/**
 * The statuses that have a column of their own: those that are known, and then those of most
 * sessions. One that has a column keeps it and its place while it has sessions.
 * @param {Record<string, number>} counts
 * @param {string[]} [before] those that had one
 */
export function columns(counts, before = KNOWN) {
  const kept = before.filter((one) => KNOWN.includes(one) || of(counts, one) > 0);
  const fresh = Object.keys(counts).filter((one) => counts[one] > 0 && !kept.includes(one) && isAskable(one));
  fresh.sort((a, b) => counts[b] - counts[a] || (a < b ? -1 : 1));
  return [...kept, ...fresh].slice(0, MOST_COLUMNS);
}

/**
 * Whether a status can stand in a list of them.
 * @param {string} status
 */
const isAskable = (status) => status !== "" && !status.includes(",") && status.length <= MOST_LENGTH;

/**
 * A number by name, 0 where there is none, whatever the name is.
 * @param {Record<string, number>} counts
 * @param {string} name
 */
export const of = (counts, name) => (Object.hasOwn(counts, name) ? counts[name] : 0);

/**
 * Whether a session is one that the filters ask for.
 * @param {Session} session
 * @param {{project: string, q: string, status: string[], not: string[], waiting: boolean}} filters
 */
export function matches(session, { project, q, status, not, waiting }) {
  if (project && session.project !== project) return false;
  if (not.includes(session.status)) return false;
  if (status.length && !status.includes(session.status)) return false;
  if (waiting && !waits(session)) return false;
  if (!q) return true;
  const said = `${session.title}\n${session.id}\n${session.project}`.toLowerCase();
  return q.toLowerCase().split(/\s+/).every((word) => said.includes(word));
}
