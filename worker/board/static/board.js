// The board: the sessions in columns by status, live.
import { html, useEffect, useLayoutEffect, useRef, useState } from "./vendor/preact.js";
import { get, query } from "./lib/api.js";
import { count, counted, quoted } from "./lib/format.js";
import { Age, Command, Failure, Field, Frame, mount, useStatus } from "./lib/frame.js";
import { notifies, setNotifies, watchNotifications } from "./lib/notify.js";
import { follow, listen } from "./lib/stream.js";
import { inert, shown } from "./lib/text.js";
import { columns, matches, MOST_COLUMNS, of, ORDERS, waits } from "./lib/waits.js";

/** @typedef {import("./lib/api.js").Session} Session */
/** @typedef {{project: string, q: string, status: string[], not: string[], waiting: boolean,
 *   order: "changed" | "created" | "waiting"}} Filters */
/** @typedef {Omit<import("./lib/api.js").Sessions, "sessions" | "cursor">} Totals */

const CARDS = 50; // in a column
const PAGE = 200; // where there is one column
const AT_A_TIME = 4; // requests, as many as the server reads for
const RECOUNT = 1500; // milliseconds between two counts by the server, while sessions change
const RECHECK = 30_000; // milliseconds after which a session may have begun to wait without an event

/** @returns {Filters} */
function fromAddress() {
  const given = new URLSearchParams(location.search);
  const order = given.get("order");
  return {
    project: given.get("project") ?? "",
    q: given.get("q") ?? "",
    status: (given.get("status") ?? "").split(",").filter(Boolean),
    not: (given.get("not") ?? "").split(",").filter(Boolean),
    waiting: given.get("waiting") === "1",
    order: order === "created" || order === "waiting" ? order : "changed",
  };
}

/** @param {Filters} filters */
const toAddress = ({ project, q, status, not, waiting, order }) =>
  query({ project, q, status: status.join(","), not: not.join(","), waiting: waiting ? 1 : "", order: order === "changed" ? "" : order });

/**
 * What the server is asked.
 * @param {Filters} filters
 */
const asked = ({ project, q, status, not, waiting, order }) => ({
  project, q, status: status.join(","), not: not.join(","), waiting: waiting ? 1 : "", order: order === "created" ? order : "changed",
});

/** @type {Map<string, Session>} those that match and are loaded */
let known = new Map();
/** @type {WeakMap<Session, any>} a card stays the same node until its session changes */
let cards = new WeakMap();
/** @type {string[] | undefined} the statuses that have a column */
let alone;

/**
 * Whether there is one column, which shows all that it has.
 * @param {Filters} filters
 */
const isSingle = ({ status, not }) => status.length === 1 || not.length > 0;

function Board() {
  const { status } = useStatus();
  const [filters, setFilters] = useState(fromAddress);
  const [totals, setTotals] = useState(/** @type {Totals | null} */ (null));
  const [error, setError] = useState(/** @type {unknown} */ (null));
  const [, redraw] = useState(0);
  const now = useRef(filters);
  now.current = filters;
  const latest = useRef(totals);
  latest.current = totals;
  const turn = useRef(0);
  const recounts = useRef(0);

  /** @param {Filters} next */
  const choose = (next) => {
    history.pushState(null, "", `/${toAddress(next)}`);
    setFilters(next);
  };

  const load = async () => {
    const mine = ++turn.current;
    const current = now.current;
    setTotals((old) => old && { ...old, next: null }); // of what was shown until now
    try {
      const found = await sessions(current);
      if (mine !== turn.current) return;
      known = new Map(found.sessions.map((one) => [one.id, one]));
      cards = new WeakMap();
      alone = undefined;
      setTotals(found);
      setError(null);
      follow(found.cursor);
    } catch (failed) {
      if (mine === turn.current) setError(failed);
    }
  };

  const recount = () => {
    if (recounts.current) return;
    recounts.current = setTimeout(async () => {
      recounts.current = 0;
      const { project, q } = now.current;
      const found = await get("sessions", { project, q, limit: 1 }).catch(() => null);
      if (!found) return;
      const { counts, other, waiting, projects, project_count } = found;
      setTotals((old) => old && { ...old, counts, other, waiting, projects, project_count });
    }, RECOUNT);
  };

  useEffect(() => void load(), [toAddress(filters)]);
  useEffect(() => {
    const back = () => setFilters(fromAddress());
    addEventListener("popstate", back);
    watchNotifications();
    const recheck = setInterval(() => {
      cards = new WeakMap();
      recount();
      redraw((n) => n + 1);
    }, RECHECK);
    const stop = listen((change) => {
      if (change.type === "reset") load();
      if (change.type !== "sessions") return;
      for (const id of change.gone) known.delete(id);
      /** @type {Record<string, number>} */
      const moved = Object.create(null);
      for (const session of change.sessions) {
        const old = known.get(session.id);
        if (old && old.last_seq > session.last_seq) continue;
        if (matches(session, now.current)) known.set(session.id, session);
        else known.delete(session.id);
        if (old && old.status !== session.status) {
          moved[old.status] = (moved[old.status] ?? 0) - 1;
          moved[session.status] = (moved[session.status] ?? 0) + 1;
        }
      }
      const { project, q } = now.current;
      const told = !project && !q && change.counts ? { counts: change.counts, other: change.other ?? 0, waiting: change.waiting ?? 0 } : null;
      setTotals((totals) => totals && { ...totals, counts: added(totals.counts, moved), ...told });
      const { projects = [], project_count = 0 } = latest.current ?? {};
      const isNew = projects.length === project_count && change.sessions.some((one) => !projects.includes(one.project));
      if (!told || isNew) recount();
    });
    return () => (stop(), clearInterval(recheck), removeEventListener("popstate", back));
  }, []);

  const more = async () => {
    const mine = turn.current;
    const found = await get("sessions", { ...asked(filters), limit: PAGE, page: totals?.next });
    if (mine !== turn.current) return;
    for (const one of found.sessions) if (!known.has(one.id)) known.set(one.id, one);
    setTotals((old) => old && { ...old, next: found.next });
  };

  useKeptFocus();
  const waiting = totals?.waiting ?? 0;
  return html`<${Frame} page="Board" title=${`${waiting ? `(${count(waiting)}) ` : ""}Board`} wide>
    <h1 class="unseen">Board</h1>
    <${Tools} filters=${filters} choose=${choose} totals=${totals} />
    ${error && html`<${Failure} error=${error} again=${load} />`}
    ${totals ? html`<${Columns} filters=${filters} totals=${totals} more=${more} database=${status?.database} />` : !error && html`<p class="loading">Loading…</p>`}
  <//>`;
}

/**
 * Each status's newest sessions, in as few requests as will do.
 * @param {Filters} filters
 * @returns {Promise<import("./lib/api.js").Sessions>}
 */
async function sessions(filters) {
  const parameters = asked(filters);
  const found = await get("sessions", { ...parameters, limit: PAGE });
  if (isSingle(filters) || filters.waiting || !found.next) return withWaiting(filters, found);
  const layout = columns(found.counts);
  const wanted = layout.filter((one) => !filters.status.length || filters.status.includes(one));
  /** @param {(session: Session) => boolean} test */
  const got = (test) => found.sessions.filter(test).length;
  const lacking = wanted
    .filter((one) => got(({ status }) => status === one) < Math.min(of(found.counts, one), CARDS))
    .map((status) => ({ status, limit: CARDS }));
  const others = filters.status.length ? 0 : rest(found, layout);
  const isLacking = got(({ status }) => !layout.includes(status)) < Math.min(others, CARDS);
  const questions = isLacking ? [...lacking, { not: layout.join(","), limit: CARDS }] : lacking;
  const pages = await inTurns(questions, (question) => get("sessions", { ...parameters, ...question }));
  return withWaiting(filters, { ...found, sessions: [found, ...pages].flatMap((page) => page.sessions) });
}

/**
 * How many sessions have no column of their own.
 * @param {Totals} totals
 * @param {string[]} layout
 */
const rest = ({ counts, other }, layout) =>
  Object.keys(counts).reduce((sum, one) => sum + (layout.includes(one) ? 0 : counts[one]), other);

/**
 * The answers to some questions, of which a few are asked at a time.
 * @template Q, A
 * @param {Q[]} questions
 * @param {(question: Q) => Promise<A>} ask
 * @returns {Promise<A[]>}
 */
async function inTurns(questions, ask) {
  /** @type {A[]} */
  const answers = [];
  let next = 0;
  const work = async () => {
    while (next < questions.length) {
      const mine = next++;
      answers[mine] = await ask(questions[mine]);
    }
  };
  await Promise.all(Array.from({ length: AT_A_TIME }, work));
  return answers;
}

/**
 * In that order those that wait come first, wherever they stand by their last change.
 * @param {Filters} filters
 * @param {import("./lib/api.js").Sessions} found
 */
async function withWaiting(filters, found) {
  if (filters.order !== "waiting" || filters.waiting || !found.next) return found;
  const { sessions } = await get("sessions", { ...asked(filters), waiting: 1, limit: PAGE });
  return { ...found, sessions: [...found.sessions, ...sessions] };
}

/**
 * @param {Record<string, number>} counts
 * @param {Record<string, number>} moved
 */
function added(counts, moved) {
  const sum = { ...counts };
  for (const [status, by] of Object.entries(moved)) if (by > 0 || Object.hasOwn(sum, status)) sum[status] = Math.max(of(sum, status) + by, 0);
  return sum;
}

/** An update that moves a card takes the focus off it: give it back. */
function useKeptFocus() {
  const held = /** @type {HTMLElement | null} */ (document.activeElement?.closest?.(".card"))?.dataset.id;
  useLayoutEffect(() => {
    if (held === undefined || document.activeElement !== document.body) return;
    const card = /** @type {HTMLElement | undefined} */ ([...document.querySelectorAll(".card")].find((one) => /** @type {HTMLElement} */ (one).dataset.id === held));
    card?.focus({ preventScroll: true });
  });
}

/** @param {{filters: Filters, choose: (filters: Filters) => void, totals: Totals | null}} props */
function Tools({ filters, choose, totals }) {
  const [told, setTold] = useState(notifies);
  const typing = useRef(0);
  /** @param {any} event */
  const words = (event) => {
    const q = event.currentTarget.value;
    clearTimeout(typing.current);
    typing.current = setTimeout(() => choose({ ...fromAddress(), q }), 200);
  };
  const projects = [...new Set([...(totals?.projects ?? []), ...(filters.project ? [filters.project] : [])])];
  return html`<form class="tools" role="search" aria-label="filter" onSubmit=${(/** @type {Event} */ event) => event.preventDefault()}>
    <${Field} type="search" data-search aria-label="words in title, id or project" placeholder="Filter" value=${filters.q} onInput=${words} />
    <select aria-label="project" onChange=${(/** @type {any} */ event) => choose({ ...filters, project: event.currentTarget.value })}>
      <option value="" selected=${!filters.project}>all projects</option>
      ${projects.map((one) => html`<option value=${one} selected=${one === filters.project}>${inert(one)}</option>`)}
      ${totals && totals.project_count > totals.projects.length && html`<option disabled>and ${count(totals.project_count - totals.projects.length)} more: type a name in Filter</option>`}
    </select>
    <button type="button" class="toggle" aria-pressed=${String(filters.waiting)} onClick=${() => choose({ ...filters, waiting: !filters.waiting })}>
      Waits for me <b class="tally" aria-live="polite">${count(totals?.waiting ?? 0)}</b></button>
    <select aria-label="order" onChange=${(/** @type {any} */ event) => choose({ ...filters, order: event.currentTarget.value })}>
      <option value="changed" selected=${filters.order === "changed"}>last change first</option>
      <option value="waiting" selected=${filters.order === "waiting"}>longest wait first</option>
      <option value="created" selected=${filters.order === "created"}>newest first</option>
    </select>
    ${filters.status.map((one) => html`<button type="button" class="chip" onClick=${() => choose({ ...filters, status: filters.status.filter((other) => other !== one) })}
      aria-label=${`remove the filter ${inert(one)}`}>${shown(one)} ×</button>`)}
    ${filters.not.length > 0 && html`<button type="button" class="chip" onClick=${() => choose({ ...filters, not: [] })} aria-label="remove the filter other">other ×</button>`}
    <button type="button" class="toggle last" aria-pressed=${String(told)} title="A notification when a session becomes ready or review"
      onClick=${async () => setTold(await setNotifies(!told))}>Notify me</button>
  </form>`;
}

/** @param {{filters: Filters, totals: Totals, more: () => void, database?: string}} props */
function Columns({ filters, totals, more, database }) {
  const { counts } = totals;
  const isFiltered = Boolean(filters.project || filters.q || filters.waiting || filters.status.length || filters.not.length);
  if (!known.size && !isFiltered) {
    const command = `projector session queue -d ${quoted(database ?? "local.db")} -p web 'Fix the login form'`;
    return html`<div class="empty"><p>No session yet. A writer begins one with an INSERT into event_log, or this does:</p><${Command} text=${command} /></div>`;
  }
  if (!known.size)
    return html`<div class="empty"><p>No session matches. <a href="/">Show all</a></p></div>`;
  alone = columns(counts, alone);
  const layout = filters.status.length ? filters.status.slice(0, MOST_COLUMNS) : filters.not.length ? filters.not : alone;
  /** @type {Map<string, Session[]>} */
  const groups = new Map(layout.map((status) => [status, []]));
  /** @type {Session[]} */
  const others = [];
  for (const session of known.values())
    if (matches(session, filters)) (groups.get(session.status) ?? others).push(session);
  const one = isSingle(filters);
  const most = one ? Infinity : CARDS;
  const left = filters.waiting || filters.status.length ? null : rest(totals, layout);
  return html`<div class=${one ? "columns single" : "columns"}>
      ${!filters.not.length && layout.map((status) => column(status, { ...filters, status: [status] }, most,
        (groups.get(status) ?? []).sort(ORDERS[filters.order]), filters.waiting ? null : of(counts, status)))}
      ${(others.length > 0 || (left ?? 0) > 0) && column("", { ...filters, not: layout }, most, others.sort(ORDERS[filters.order]), left)}
    </div>
    ${one && totals.next && html`<p class="more"><button type="button" onClick=${more}>${count(PAGE)} more</button></p>`}`;
}

/** @type {Map<string, {inputs: unknown[], node: any}>} the columns as they were drawn last */
const drawn = new Map();

/**
 * A column stays the same node until something in it changes: most changes are in one or two.
 * @param {string} status "" for all that have no column of their own
 * @param {Filters} filters what its own page is asked for
 * @param {number} most
 * @param {Session[]} sessions
 * @param {number | null} total
 */
function column(status, filters, most, sessions, total) {
  const address = `/${toAddress(filters)}`;
  const shown = sessions.slice(0, most);
  const inputs = [address, cards, total, sessions.length, ...shown];
  const old = drawn.get(status);
  if (old && old.inputs.length === inputs.length && inputs.every((one, at) => one === old.inputs[at])) return old.node;
  const node = html`<${Column} key=${status} status=${status} address=${address} sessions=${shown} total=${total ?? sessions.length} cut=${shown.length < (total ?? sessions.length) && most !== Infinity} />`;
  drawn.set(status, { inputs, node });
  return node;
}

/**
 * @param {{status: string, address: string, sessions: Session[], total: number,
 *   cut: boolean}} props
 */
function Column({ status, address, sessions, total, cut }) {
  const name = status || "other";
  return html`<section class="column" aria-label=${`${inert(name)}: ${counted(total, "session")}`}>
    <h2><a href=${address}><span class=${`status s-${tone(name)}`}></span>${shown(name)}</a> <span class="tally">${count(total)}</span></h2>
    <ul>${sessions.map((session) => card(session, !status))}</ul>
    ${!total && html`<p class="none">none</p>`}
    ${cut && html`<p class="more"><a href=${address}>all ${count(total)}</a></p>`}
  </section>`;
}

/** @param {string} status */
const tone = (status) => (["ready", "in-progress", "review", "done"].includes(status) ? status : "other");

/**
 * @param {Session} session
 * @param {boolean} named whether its status stands on it
 */
function card(session, named) {
  const made = cards.get(session);
  if (made) return made;
  const calls = waits(session);
  const card = html`<li key=${session.id}><a class=${`card ${calls ? "waits" : ""}`} data-item data-id=${session.id} href=${`/session?id=${encodeURIComponent(session.id)}`}>
    <span class="title">${shown(session.title || session.id)}</span>
    <span class="facts">
      ${named && html`<span class="named" title=${inert(session.status)}>${shown(session.status)}</span>`}
      <span class="names"><span class="project" title=${inert(session.project)}>${shown(session.project)}</span>
      <span class="id" title=${inert(session.id)}>${shown(session.id)}</span></span>
      <span class="right">${session.last_role && html`<span class="role">${shown(session.last_role)}</span>`}
      <span>${counted(session.messages, "message")}</span>
      ${calls && html`<span class="unseen">waits for you</span>`}
      <${Age} time=${session.updated_at} /></span>
    </span></a></li>`;
  cards.set(session, card);
  return card;
}

mount(Board);
