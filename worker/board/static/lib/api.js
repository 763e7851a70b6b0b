// The API of the server, version 1 (docs/board-api.json).
import { key } from "./key.js";

/** @typedef {{id: string, project: string, status: string, title: string, messages: number,
 *   last_role: string | null, created_at: number, updated_at: number, last_seq: number,
 *   waiting: boolean}} Session */
/** @typedef {{n: number, time?: number | null, message: Record<string, any>}} Message when it came:
 *   null where that is too far back, and none in a difference */
/** @typedef {{cursor: string, counts: Record<string, number>, other: number, waiting: number,
 *   projects: string[], project_count: number, sessions: Session[], next: string | null}} Sessions */
/** @typedef {{cursor: string, session: Session, fields: Record<string, any>, total: number,
 *   first: number, last: number, messages: Message[], quarantined?: number[]}} Conversation */
/** @typedef {{total: number, first: number, last: number, messages: Message[]}} Window */
/** @typedef {{seq: number, time: number, type: string | null, bytes: number,
 *   reason: string | null, note: string | null, says: string}} Event */

/** What the server said in place of an answer: what happened, and what to do. */
export class ApiError extends Error {
  /**
   * @param {number} status 0 where there was no answer
   * @param {string} error
   * @param {string | null} hint
   */
  constructor(status, error, hint) {
    super(error);
    this.status = status;
    this.hint = hint;
  }
}

/**
 * @param {string} path below /api/v1/
 * @param {Record<string, unknown>} [parameters] those that are undefined, null or "" are left out
 * @returns {Promise<any>}
 */
export function get(path, parameters = {}) {
  return ask(`/api/v1/${path}${query(parameters)}`, { headers: { Accept: "application/json" } });
}

/**
 * @param {string} path
 * @param {unknown} body
 * @returns {Promise<any>}
 */
export function post(path, body) {
  const headers = { Accept: "application/json", "Content-Type": "application/json" };
  return ask(`/api/v1/${path}`, { method: "POST", headers, body: JSON.stringify(body) });
}

/**
 * `?a=1&b=2`, or "" where nothing is left.
 * @param {Record<string, unknown>} parameters
 */
export function query(parameters) {
  const given = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters))
    if (value !== undefined && value !== null && value !== "") given.append(name, String(value));
  const text = given.toString();
  return text && `?${text}`;
}

/**
 * @param {string} url
 * @param {RequestInit} options
 */
async function ask(url, options) {
  let answer;
  try {
    const headers = { ...options.headers, "Projector-Key": key() };
    answer = await fetch(url, { cache: "no-store", ...options, headers });
  } catch {
    throw new ApiError(0, "The board does not answer.", "Start it again: `projector board`");
  }
  let body;
  try {
    body = await answer.json();
  } catch {
    body = null;
  }
  if (answer.ok && body !== null) return body;
  throw new ApiError(answer.status, body?.error ?? `The board answered with ${answer.status}.`, body?.hint ?? null);
}
