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
const MOST_COLUMNS = 6;

/**
 * The statuses that have a column, in order, and those that share the last one.
 * @param {Iterable<string>} statuses
 * @returns {{columns: string[], together: string[]}}
 */
export function columns(statuses) {
  const others = [...new Set(statuses)].filter((one) => !KNOWN.includes(one)).sort();
  const alone = others.length > MOST_COLUMNS - KNOWN.length ? MOST_COLUMNS - KNOWN.length - 1 : others.length;
  return { columns: [...KNOWN, ...others.slice(0, alone)], together: others.slice(alone) };
}

/**
 * Whether a session is one that the filters ask for.
 * @param {Session} session
 * @param {{project: string, q: string, status: string[], waiting: boolean}} filters
 */
export function matches(session, { project, q, status, waiting }) {
  if (project && session.project !== project) return false;
  if (status.length && !status.includes(session.status)) return false;
  if (waiting && !waits(session)) return false;
  if (!q) return true;
  const said = `${session.title}\n${session.id}\n${session.project}`.toLowerCase();
  return q.toLowerCase().split(/\s+/).every((word) => said.includes(word));
}
