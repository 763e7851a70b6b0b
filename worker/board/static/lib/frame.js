// What every page has: navigation, how the daemon and the connection are, the list of keys.
import { html, render, useEffect, useRef, useState } from "../vendor/preact.js";
import { ApiError, get } from "./api.js";
import { age, count, counted, iso, moment, quoted, sentence, zone } from "./format.js";
import { keyboard, MAP } from "./keys.js";
import { follow, listen, watchConnection } from "./stream.js";
import { inert, shown } from "./text.js";

/** @typedef {import("../vendor/preact.js").Child} Child */
/** @typedef {import("./stream.js").Connection} Connection */

const RETRY = 3000; // milliseconds after which what could not be read is asked for again
const PAGES = [["/", "Board"], ["/search", "Search"], ["/health", "Health"], ["/quarantine", "Quarantine"]];

/**
 * Draw a page.
 * @param {unknown} page its component
 * @param {Record<string, () => void>} [keys]
 */
export function mount(page, keys = {}) {
  const app = /** @type {Element} */ (document.getElementById("app"));
  app.replaceChildren();
  render(html`<${page} />`, app);
  keyboard({ ...keys, "?": () => /** @type {HTMLDialogElement} */ (document.getElementById("keys")).showModal() });
}

/** @typedef {{status: any, error: ApiError | null, connection: Connection}} Standing */

/** @type {Standing} */
let standing = { status: null, error: null, connection: { state: "connecting", since: 0, login: false } };
/** @type {Set<(standing: Standing) => void> | null} */
let users = null;

/** @param {Partial<Standing>} news */
function learn(news) {
  standing = { ...standing, ...news };
  for (const user of users ?? []) user(standing);
}

/** Whether an error may pass by itself: no answer, or a database that cannot be read now. */
const passes = (/** @type {unknown} */ error) => error instanceof ApiError && [0, 502, 503, 504].includes(error.status);

let asksAgain = 0;

async function askStatus() {
  clearTimeout(asksAgain);
  try {
    learn({ status: await get("status"), error: null });
  } catch (error) {
    learn({ error: /** @type {ApiError} */ (error) });
    if (passes(error)) asksAgain = setTimeout(askStatus, RETRY);
  }
}

/**
 * The status of the database as `projector status` has it, kept up to date; null until it came.
 * @returns {Standing}
 */
export function useStatus() {
  const [now, setNow] = useState(standing);
  useEffect(() => {
    if (!users) {
      users = new Set();
      listen((change) => {
        if (change.type === "status") learn({ status: change.status, error: null });
        else if (change.type === "trouble") learn({ error: new ApiError(503, change.error, change.hint) });
        else if (standing.error) learn({ error: null });
      });
      watchConnection((connection) => {
        const before = standing.connection.state;
        learn({ connection });
        // Why it is lost, too: the board may answer that it cannot read the database.
        if (connection.state !== before && (connection.state === "lost" || before === "lost")) askStatus();
      });
      askStatus();
    }
    users.add(setNow);
    setNow(standing);
    return () => void users?.delete(setNow);
  }, []);
  return now;
}

/**
 * What a page that shows no session does to be told of the status.
 */
export function useFollow() {
  useEffect(() => {
    followAll();
  }, []);
}

/** Be told of what changes, as soon as the database can be read. */
export async function followAll() {
  try {
    follow((await get("sessions", { limit: 1 })).cursor);
  } catch (error) {
    if (passes(error)) setTimeout(followAll, RETRY);
  }
}

/**
 * @param {{page: string, title: string, children?: Child, wide?: boolean}} props
 */
export function Frame({ page, title, children, wide = false }) {
  const { status, error, connection } = useStatus();
  useEffect(() => {
    document.title = `${inert(title)} · projector`;
  }, [title]);
  return html`<a class="skip" href="#main">Skip to the content</a>
    <header class="top">
      <nav aria-label="pages">
        ${PAGES.map(([address, name]) => html`<a href=${address} aria-current=${page === name ? "page" : null}>${name}${
          name === "Quarantine" && undismissed(status) > 0 && html` <span class="badge">${count(undismissed(status))}</span>`
        }</a>`)}
      </nav>
      <span class="database" title=${inert(status?.database ?? "")}>${shown(status ? nameOf(status.database) : "")}</span>
      <${Dot} connection=${connection} status=${status} error=${error} />
      <button type="button" class="plainly" aria-label="keyboard" title="keys: ?" onClick=${openKeys}>?</button>
    </header>
    <${Notices} status=${status} error=${error} connection=${connection} />
    <main id="main" tabindex="-1" class=${wide ? "wide-page" : ""}>
      ${children}
    </main>
    <footer>Times are those of ${zone()}.</footer>
    <dialog id="keys" aria-labelledby="keys-title">
      <form method="dialog">
        <h2 id="keys-title">Keys</h2>
        <dl>${MAP.map(([key, what]) => html`<div><dt>${key.split(/(, | )/).map((one) => (one.trim() && one !== ", " ? html`<kbd>${one}</kbd>` : one))}</dt><dd>${what}</dd></div>`)}</dl>
        <button autofocus>Close</button>
      </form>
    </dialog>`;
}

function openKeys() {
  /** @type {HTMLDialogElement} */ (document.getElementById("keys")).showModal();
}

/** @param {string} database */
const nameOf = (database) => database.replace(/^[a-z]+:\/\/[^/]*\//, "").split("/").pop() || database;

/** @param {any} status */
const undismissed = (status) =>
  (status?.projections ?? []).reduce((/** @type {number} */ sum, /** @type {any} */ one) => Math.max(sum, one.quarantined - one.dismissed), 0);

/** @param {{connection: Connection, status: any, error: ApiError | null}} props */
function Dot({ connection, status, error }) {
  const daemon = status?.daemon?.alive && !status.daemon.stopped;
  const word = error && error.status > 0 ? "database not read" : connection.state === "lost" ? "reconnecting" : connection.state === "connecting" ? "connecting" : daemon || !status ? "live" : "no daemon";
  return html`<span class="dot ${word.replaceAll(" ", "-")}" role="img" aria-label=${word} title=${word}></span>`;
}

/**
 * What stands above a page while something is not as it should be.
 * @param {{status: any, error: ApiError | null, connection: Connection}} props
 */
function Notices({ status, error, connection }) {
  const found = notices(status, error, connection);
  return html`<div class="notices">${found.map(
    (one) => html`<div class="notice ${one.tone}" key=${one.key}><span>${one.text}</span>${one.command && html` <${Command} text=${one.command} />`}</div>`,
  )}</div>`;
}

/**
 * @param {any} status
 * @param {ApiError | null} error
 * @param {Connection} connection
 * @returns {{key: string, tone: string, text: Child, command?: string | null}[]}
 */
export function notices(status, error, connection) {
  /** @type {{key: string, tone: string, text: Child, command?: string | null}[]} */
  const found = [];
  if (connection.login || error?.status === 401) {
    return [{ key: "login", tone: "bad", text: html`This browser is not logged in, or the token has changed. <a href="/login">Log in</a>` }];
  }
  if (connection.state === "lost" && !(error && error.status > 0))
    found.push({ key: "lost", tone: "warn", text: html`Reconnecting to the board. What is shown is as of ${moment(connection.since)}.` });
  else if (error) found.push({ key: "error", tone: "bad", text: html`${shown(sentence(error.message))} <${Hint} text=${error.hint && sentence(error.hint[0].toUpperCase() + error.hint.slice(1))} />` });
  if (!status) return found;
  const database = quoted(status.database);
  if (!status.daemon.alive)
    found.push({ key: "none", tone: "warn", text: html`No daemon is running: what is shown is as of event ${count(position(status))}${
      status.newest > position(status) ? html` of ${count(status.newest)}` : ""}. Start one:`, command: `projector run -d ${database}` });
  else if (status.daemon.stopped) found.push({ key: "stopped", tone: "warn", text: "The daemon is suspended.", command: status.daemon.pid ? `kill -CONT ${status.daemon.pid}` : null });
  else if (status.daemon.trouble)
    found.push({ key: "trouble", tone: "warn", text: `The daemon has waited for ${LACKED[status.daemon.trouble.lacks] ?? "something"} since ${moment(status.daemon.trouble.since)}. See why:`, command: `projector doctor -d ${database}` });
  for (const one of status.projections ?? []) {
    const state = one.state?.state;
    if (!one.fits_log)
      found.push({ key: `fit ${one.name}`, tone: "bad", text: html`event_log was truncated or replaced: checkpoint ${one.name} does not match.`, command: `projector replay -d ${database}` });
    if (state === "failed")
      found.push({ key: `failed ${one.name}`, tone: "bad", text: html`Projection ${shown(one.name)} has been failing since ${moment(one.state.since)}: ${shown(one.state.why)}` });
    else if (state === "rebuilding" && status.daemon.alive)
      found.push({ key: `rebuild ${one.name}`, tone: "calm", text: html`Projection ${shown(one.name)} is being rebuilt: ${count(one.state.events)} of about ${counted(one.state.total, "event")}.` });
    else if (status.daemon.alive && (one.lag_seconds ?? 0) > 5 && one.lag_events > 0)
      found.push({ key: `lag ${one.name}`, tone: "warn", text: html`Projection ${shown(one.name)} is ${counted(one.lag_events, "event")} behind.` });
  }
  for (const one of status.held_back_by ?? [])
    found.push({ key: `held ${one.who}`, tone: "warn", text: shown(`Events are held back by ${one.who}.`), command: one.cure });
  return found;
}

/** @type {Record<string, string>} what a daemon may wait for */
const LACKED = { lock: "a lock", space: "disk space", limit: "memory, a thread or a file descriptor", database: "the database" };

/** @param {any} status */
const position = (status) => status.projections?.find((/** @type {any} */ one) => one.name === "session_index")?.position ?? 0;

/**
 * A command to copy.
 * @param {{text: string}} props
 */
export function Command({ text }) {
  const [copied, setCopied] = useState(false);
  const copy = async () => {
    await navigator.clipboard?.writeText(text);
    setCopied(true);
    setTimeout(() => setCopied(false), 1500);
  };
  return html`<span class="command"><code>${shown(text)}</code><button type="button" class="plainly" onClick=${copy}
    aria-label=${`copy ${inert(text)}`}>${copied ? "copied" : "copy"}</button></span>`;
}

/**
 * How long ago, kept up to date.
 * @param {{time: number, ago?: boolean}} props
 */
export function Age({ time, ago = false }) {
  const [, setText] = useState("");
  useEffect(() => {
    const tick = () => setText(age(time));
    tickers.add(tick);
    return () => void tickers.delete(tick);
  }, [time]);
  return html`<time datetime=${iso(time)} title=${`${moment(time)}, ${iso(time)}`}>${age(time)}${ago && age(time) !== "now" && " ago"}</time>`;
}

/** @type {Set<() => void>} */
const tickers = new Set();
const tickAll = () => document.hidden || tickers.forEach((tick) => tick());
setInterval(tickAll, 5000);
document.addEventListener("visibilitychange", tickAll);

/**
 * A field that keeps what somebody types while the page is drawn again. It takes another value only
 * where nobody is in it, such as that of an address gone back to.
 * @param {Record<string, any> & {value: string, onInput?: (event: any) => void}} props
 */
export function Field({ value, onInput, ...others }) {
  const [typed, setTyped] = useState(value);
  const field = useRef(/** @type {Element | null} */ (null));
  useEffect(() => {
    if (document.activeElement !== field.current) setTyped(value);
  }, [value]);
  /** @param {any} event */
  const input = (event) => {
    setTyped(event.currentTarget.value);
    onInput?.(event);
  };
  return html`<input ...${others} ref=${field} value=${typed} onInput=${input} />`;
}

/**
 * What the program said went wrong, in its own words, with its hint.
 * @param {{error: unknown, again?: () => void}} props
 */
export function Failure({ error, again }) {
  const said = error instanceof ApiError ? error : new ApiError(-1, String(error), null);
  const standing = useStatus().error;
  const latest = useRef(again);
  latest.current = again;
  const isRetried = Boolean(again) && passes(said);
  useEffect(() => {
    if (!isRetried) return;
    const timer = setInterval(() => latest.current?.(), RETRY);
    return () => clearInterval(timer);
  }, [isRetried]);
  if (isRetried && standing?.message === said.message) // it stands above the page
    return html`<p class="loading">It is tried again every few seconds. <button type="button" onClick=${again}>Try now</button></p>`;
  return html`<div class="failure" role="alert">
    <p>${shown(said.message)}</p>
    ${said.status === 401 ? html`<p><a href="/login">Log in</a></p>` : said.hint && html`<p><${Hint} text=${said.hint} /></p>`}
    ${again && html`<p><button type="button" onClick=${again}>Try again</button></p>`}
  </div>`;
}

/**
 * What to do; the commands in it can be copied.
 * @param {{text: string | null}} props
 */
export function Hint({ text }) {
  return (text ?? "").split(/`([^`]+)`/).map((one, index) => (index % 2 ? html`<${Command} text=${one} />` : shown(one)));
}

/**
 * An answer of the API: undefined until it came, and asked for again by `again`.
 * @template T
 * @param {() => Promise<T>} ask
 * @param {unknown[]} inputs
 * @returns {{value: T | undefined, error: unknown, again: () => Promise<void>}}
 */
export function useAnswer(ask, inputs) {
  const [answer, setAnswer] = useState(/** @type {{value: T | undefined, error: unknown}} */ ({ value: undefined, error: null }));
  const turn = useRef(0);
  const newest = useRef(0);
  const again = async () => {
    const mine = ++turn.current;
    try {
      const value = await ask();
      if (mine > newest.current) setAnswer({ value, error: null });
    } catch (error) {
      if (mine > newest.current) setAnswer((old) => ({ value: old.value, error }));
    }
    newest.current = Math.max(newest.current, mine); // an answer to an older question is passed over
  };
  useEffect(() => void again(), inputs);
  return { ...answer, again };
}
