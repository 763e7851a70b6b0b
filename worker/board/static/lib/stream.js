// One stream of changes for all tabs. The tab that holds the lock reads it and tells the others;
// when that tab goes, the next one takes over at the cursor that came last.
import { ApiError, get } from "./api.js";
import { key } from "./key.js";

/** @typedef {import("./api.js").Session} Session */
/** @typedef {import("./api.js").Message} Message */
/** @typedef {{type: "sessions", sessions: Session[], gone: string[], counts?: Record<string, number>,
 *   other?: number, waiting?: number}
 *   | {type: "messages", session: string, total: number, messages: Message[], replaced?: boolean}
 *   | {type: "status", status: any} | {type: "reset"}
 *   | {type: "trouble", error: string, hint: string | null}} Change */
/** @typedef {{state: "connecting" | "live" | "lost", since: number, login: boolean}} Connection */
/** @typedef {{id: string, n: number}} Open a session that a tab shows, and its messages so far */

const MOST_SESSIONS = 16; // that the server follows for one stream
const MOST_LETTERS = 200_000; // of their ids in an address
const SLOWEST = 5000; // milliseconds between two tries

const me = Math.random().toString(36).slice(2);
const channel = new BroadcastChannel("projector-board");
/** @type {Set<(change: Change) => void>} */
const listeners = new Set();
/** @type {Set<(connection: Connection) => void>} */
const watchers = new Set();
/** @type {Connection} */
let connection = { state: "connecting", since: Date.now(), login: false };
let cursor = ""; // the newest that this tab heard of
/** @type {Open | null} */
let mine = null;

// What only the leading tab uses.
let leading = false;
/** @type {EventSource | null} */
let source = null;
/** @type {Map<string, Open | null>} */
const tabs = new Map();
/** @type {Map<string, number>} */
let followed = new Map();
let wait = 250;
let timer = 0;

/**
 * Call with each change from now on. Call it before the first answer is asked for, and `follow`
 * with the cursor of that answer: then nothing is missed.
 * @param {(change: Change) => void} listener
 * @returns {() => void} to stop
 */
export function listen(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

/**
 * @param {(connection: Connection) => void} watcher
 * @returns {() => void} to stop
 */
export function watchConnection(watcher) {
  watchers.add(watcher);
  watcher(connection);
  return () => watchers.delete(watcher);
}

/**
 * @param {string} since the cursor of what this tab shows
 * @param {Open | null} [session] whose messages it wants too
 */
export function follow(since, session = null) {
  const first = cursor === "";
  cursor ||= since;
  mine = session;
  if (first) navigator.locks.request("projector-board", lead);
  want();
}

/** Say what this tab shows, to whoever leads. */
function want() {
  send({ kind: "want", tab: me, open: mine, cursor });
}

/** Whether this is the tab that reads the stream. */
export const isLeading = () => leading;

/**
 * Say something to all tabs; to this one first, which has drawn it before the others are told.
 * @param {any} said
 */
function send(said) {
  hear(said);
  queueMicrotask(() => channel.postMessage(said));
}

/** @param {any} said */
function hear(said) {
  switch (said.kind) {
    case "want":
      if (leading) wanted(said);
      break;
    case "bye":
      tabs.delete(said.tab);
      break;
    case "who":
      if (said.tab !== me && cursor) want();
      break;
    case "try":
      if (leading && !source) open();
      break;
    case "connection":
      connection = said.connection;
      for (const watcher of watchers) watcher(connection);
      break;
    case "change":
      cursor = said.cursor || cursor;
      for (const listener of listeners) listener(said.change);
  }
}

channel.onmessage = (event) => hear(event.data);
addEventListener("pagehide", () => channel.postMessage({ kind: "bye", tab: me }));
addEventListener("pageshow", (event) => event.persisted && location.reload());
// A hidden tab's clock is slow: while the stream is lost, those that are seen ask the leader to try.
setInterval(() => {
  if (connection.state !== "live" && !document.hidden) send({ kind: "try" });
}, SLOWEST);

/** Lead until this tab is gone. */
async function lead() {
  leading = true;
  tabs.set(me, mine);
  channel.postMessage({ kind: "who", tab: me });
  open();
  await new Promise(() => {});
}

/** @param {{tab: string, open: Open | null}} said */
function wanted(said) {
  tabs.set(said.tab, said.open);
  if (source && said.open && !followed.has(said.open.id)) open();
  else if (said.tab !== me) tell(connection);
}

/** Read the stream, from the last cursor and with the sessions that tabs show. */
function open() {
  clearTimeout(timer);
  source?.close();
  let room = MOST_LETTERS;
  const sessions = /** @type {Open[]} */ ([...tabs.values()].filter(Boolean)).slice(-MOST_SESSIONS).reverse()
    .filter(({ id }) => (room -= encodeURIComponent(id).length) > 0);
  followed = new Map(sessions.map(({ id, n }) => [id, followed.get(id) ?? n]));
  const asked = new URLSearchParams({ since: cursor, key: key() });
  for (const [id, n] of followed) {
    asked.append("session", id);
    asked.append("n", String(n));
  }
  source = new EventSource(`/api/v1/changes?${asked}`);
  source.onopen = () => {
    wait = 250;
    if (connection.state !== "live") tell({ state: "live", since: Date.now(), login: false });
  };
  source.onerror = () => lost();
  for (const type of ["sessions", "messages", "status", "reset", "trouble"])
    source.addEventListener(type, (event) => pass(type, /** @type {MessageEvent} */ (event)));
}

/**
 * @param {string} type
 * @param {MessageEvent} event
 */
function pass(type, event) {
  const data = JSON.parse(event.data || "{}");
  if (type === "messages") followed.set(data.session, data.total);
  if (type === "reset") followed.clear();
  const change = type === "status" ? { type, status: data } : { ...data, type };
  send({ kind: "change", change, cursor: event.lastEventId });
}

async function lost() {
  source?.close();
  source = null;
  if (connection.state !== "lost") tell({ state: "lost", since: Date.now(), login: false });
  timer = setTimeout(open, wait);
  wait = Math.min(wait * 2, SLOWEST);
  try {
    await get("status");
  } catch (error) {
    const login = error instanceof ApiError && error.status === 401;
    if (!source && login !== connection.login) tell({ ...connection, state: "lost", login });
  }
}

/** @param {Connection} now */
function tell(now) {
  send({ kind: "connection", connection: now });
}
