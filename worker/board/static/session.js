// One session: its conversation, live, newest part first.
import { html, useEffect, useLayoutEffect, useRef, useState } from "./vendor/preact.js";
import { ApiError, get, query } from "./lib/api.js";
import { append, joined, MOST, prepend, replaced, STEP, stretch } from "./lib/conversation.js";
import { count, counted, moment } from "./lib/format.js";
import { Age, Failure, Frame, mount, useAnswer } from "./lib/frame.js";
import { pretty } from "./lib/json.js";
import { Message } from "./lib/message.js";
import { watchNotifications } from "./lib/notify.js";
import { follow, listen } from "./lib/stream.js";
import { inert, shown } from "./lib/text.js";
import { waits } from "./lib/waits.js";

/** @typedef {import("./lib/api.js").Conversation} Conversation */
/** @typedef {import("./lib/api.js").Window} Window */
/** @typedef {import("./lib/api.js").Session} Row */

const NEAR = 48; // pixels from the end that count as the end
const RETRY = 1000; // milliseconds between two tries to fetch what is new

const given = new URLSearchParams(location.search);
const id = given.get("id") ?? "";
const at = given.get("at");

/** The number of a message that the address names. */
const named = () => Number(/^#m(\d{1,15})$/.exec(location.hash)?.[1] ?? 0);
const isAtEnd = () => scrollY + innerHeight >= document.documentElement.scrollHeight - NEAR;
const toEnd = () => scrollTo({ top: document.documentElement.scrollHeight, behavior: "instant" });

/** @type {WeakMap<object, any>} a message stays the same node until it changes */
const drawn = new WeakMap();
/** @type {() => void} */
let goToEnd = () => {};
/** @type {(by: 1 | -1) => void} */
let move = () => {};

function Session() {
  const [found, setFound] = useState(/** @type {Conversation | null} */ (null));
  const [part, setPart] = useState(/** @type {Window | null} */ (null));
  const [error, setError] = useState(/** @type {unknown} */ (null));
  const [seen, setSeen] = useState(0); // the newest message that was at hand when the reader was at the end
  const [chosen, setChosen] = useState(named);
  const following = useRef(!named() && !at);
  /** @type {{current: {element: Element, top: number} | null}} */
  const held = useRef(null);
  const latest = useRef(part);
  latest.current = part;

  /** Keep what the reader looks at where it is while messages are put above it. */
  const hold = () => {
    const element = [...document.querySelectorAll(".message")].find((one) => one.getBoundingClientRect().bottom > 0);
    if (element) held.current = { element, top: element.getBoundingClientRect().top };
  };

  const load = async (/** @type {number} */ n) => {
    try {
      const answer = /** @type {Conversation} */ (await (at ? get("session/at", { id, at }) : get("session", { id })));
      const far = n && (n < answer.first || n > answer.last);
      setFound({ ...answer, session: answer.session ?? rowOf(answer) });
      setPart(far ? await stretch(id, n - STEP / 2, n + STEP / 2, at ?? undefined) : joined(answer.total, answer.messages));
      setSeen(answer.total);
      setError(null);
      if (!at) follow(answer.cursor, { id, n: answer.total });
    } catch (failed) {
      setError(failed);
    }
  };

  /** Fetch what the row of the list has, and the stream did not bring; a large view comes later. */
  const catchUp = async (/** @type {number} */ total, tries = 10) => {
    const now = latest.current;
    if (!now || now.total >= total) return;
    if (!following.current) return setPart((old) => old && { ...old, total: Math.max(old.total, total) });
    const news = await stretch(id, now.last + 1, now.last + STEP).catch(() => null);
    if (news) setPart((old) => old && append(old, Math.max(old.total, news.total), news.messages, following.current));
    if (tries) setTimeout(() => catchUp(total, tries - 1), RETRY);
  };

  useEffect(() => {
    load(named());
    watchNotifications();
    const scrolled = () => {
      following.current = !at && isAtEnd() && (latest.current?.last ?? 0) >= (latest.current?.total ?? 0);
      if (following.current && latest.current) setSeen(latest.current.total);
    };
    const resized = () => following.current && toEnd();
    const jumped = () => go(named());
    addEventListener("scroll", scrolled, { passive: true });
    addEventListener("resize", resized);
    addEventListener("hashchange", jumped);
    // Opening a fold at the end moves the end, not the reader.
    document.addEventListener("toggle", scrolled, true);
    const stop = at ? () => {} : listen((change) => {
      if (change.type === "reset") load(following.current ? 0 : (latest.current?.first ?? 0) + STEP / 2);
      if (change.type === "messages" && change.session === id) {
        if (change.replaced) load(0);
        else setPart((old) => old && append(old, change.total, change.messages, following.current));
      }
      if (change.type !== "sessions") return;
      if (change.gone.includes(id)) setError(new ApiError(404, "The session is no longer in the database.", null));
      const row = change.sessions.find((one) => one.id === id);
      if (!row) return;
      setFound((old) => old && { ...old, session: row, fields: { ...old.fields, status: row.status, project: row.project, updatedAt: row.updated_at } });
      if (latest.current && row.messages < latest.current.total) load(0);
      setTimeout(() => catchUp(row.messages), 0); // the stream's messages come before the row
    });
    return () => {
      stop();
      removeEventListener("scroll", scrolled);
      removeEventListener("resize", resized);
      removeEventListener("hashchange", jumped);
      document.removeEventListener("toggle", scrolled, true);
    };
  }, []);

  useLayoutEffect(() => {
    if (!part) return;
    if (held.current) {
      scrollBy({ top: held.current.element.getBoundingClientRect().top - held.current.top, behavior: "instant" });
      held.current = null;
    } else if (following.current) {
      toEnd();
      setSeen(part.total);
    }
  }, [part]);
  useLayoutEffect(() => {
    if (chosen && part) document.getElementById(`m${chosen}`)?.scrollIntoView({ block: "start", behavior: "instant" });
  }, [chosen, Boolean(part)]);

  const go = async (/** @type {number} */ n) => {
    const now = latest.current;
    if (!n || !now) return;
    following.current = false;
    if (n < now.first || n > now.last) setPart(await stretch(id, n - STEP / 2, n + STEP / 2, at ?? undefined));
    setChosen(0);
    setChosen(n);
  };
  const earlier = async () => {
    if (!part || part.first <= 1) return;
    const found = await stretch(id, part.first - STEP, part.first - 1, at ?? undefined);
    hold();
    following.current = false;
    setPart((old) => old && prepend(old, found));
  };
  const later = async () => {
    if (!part || part.last >= part.total) return;
    const found = await stretch(id, part.last + 1, part.last + STEP, at ?? undefined);
    hold();
    setPart((old) => old && joined(found.total, [...old.messages, ...found.messages.filter(({ n }) => n > old.last)].slice(-MOST)));
  };
  goToEnd = async () => {
    if (!part) return;
    following.current = !at;
    if (part.last < part.total) setPart(await stretch(id, part.total - STEP + 1, part.total + STEP, at ?? undefined));
    else toEnd();
    setSeen(part.total);
  };
  move = (by) => void (by > 0 ? later() : earlier());
  const whole = async (/** @type {number} */ n) => {
    const entry = await get("session/message", { id, n });
    setPart((old) => old && replaced(old, entry));
  };

  const news = part ? part.total - seen : 0;
  const session = found?.session;
  return html`<${Frame} page="" title=${session?.title || id || "Session"}>
    ${error && html`<${Failure} error=${error} again=${() => load(0)} />`}
    ${!found && !error && html`<p class="loading">Loading…</p>`}
    ${found && session && part && html`<div class="session">
      <${Head} found=${found} session=${session} total=${part.total} />
      <${Facts} found=${found} total=${part.total} />
      <${Quarantined} seqs=${found.quarantined ?? []} />
      <section class="conversation" aria-label="conversation">
        <${Edge} name="earlier" rest=${part.first - 1} move=${earlier} />
        ${part.messages.map((entry) => message(entry, whole, entry.n === chosen))}
        ${!part.total && html`<p class="empty">No message yet.</p>`}
        <${Edge} name="later" rest=${part.total - part.last} move=${later} end=${goToEnd} />
      </section>
    </div>
    <div class="news" role="status" aria-live="polite">${news > 0 && !at && html`<button type="button" onClick=${goToEnd}>${count(news)} new ↓</button>`}</div>`}
  <//>`;
}

/**
 * The row of the list, where that one does not have the session yet.
 * @param {Conversation} found
 * @returns {Row}
 */
function rowOf({ fields, total }) {
  const { project, status, createdAt, updatedAt } = fields;
  return { id, project, status, title: "", messages: total, last_role: null, created_at: createdAt, updated_at: updatedAt, last_seq: 0, waiting: false };
}

/**
 * @param {import("./lib/api.js").Message} entry
 * @param {(n: number) => Promise<void>} whole
 * @param {boolean} chosen
 */
function message(entry, whole, chosen) {
  const made = drawn.get(entry);
  if (made && made.props.chosen === chosen) return made;
  const node = html`<${Message} key=${entry.n} entry=${entry} whole=${at ? undefined : whole} chosen=${chosen} />`;
  drawn.set(entry, node);
  return node;
}

/** @param {{found: Conversation, session: Row, total: number}} props */
function Head({ found, session, total }) {
  return html`<div class="head">
    <h1 title=${inert(session.title || session.id)}>${shown(session.title || session.id)}</h1>
    <p class="facts">
      <a class="pill s-${session.status}" href=${`/${query({ status: session.status })}`}>${shown(session.status)}</a>
      <a class="extra" href=${`/${query({ project: session.project })}`}>${shown(session.project)}</a>
      <span class="extra">${counted(total, "message")}</span>
      ${at ? html`<b>as of ${/^\d+$/.test(at) ? `event ${at}` : inert(at)} (${moment(found.fields.updatedAt)})</b> <a href=${`/session${query({ id })}`}>now</a>`
        : html`<span class="extra">changed <${Age} time=${session.updated_at} ago /></span>`}
      ${!at && waits(session) && html`<b class="waiting">waits for you</b>`}
      ${found.quarantined?.length ? html`<a class="badge" href=${`/quarantine${query({ seq: found.quarantined[0] })}`}>${count(found.quarantined.length)} quarantined</a>` : null}
      <a href=${`/session/history${query({ id, at })}`}>History</a>
    </p>
  </div>`;
}

/**
 * That the conversation lacks some of what was written to it.
 * @param {{seqs: number[]}} props
 */
function Quarantined({ seqs }) {
  if (!seqs.length) return null;
  const named = seqs.slice(0, 5).map((seq, n) => html`${n ? ", " : ""}<a href=${`/quarantine${query({ seq })}`}>event ${count(seq)}</a>`);
  return html`<p class="lacking">${counted(seqs.length, "event")} of this session could not be folded, so what ${seqs.length === 1 ? "it says is" : "they say is"} not shown here: ${named}${
    seqs.length > 5 && html`, and <a href="/quarantine">others</a>`}.</p>`;
}

/** @param {{found: Conversation, total: number}} props */
function Facts({ found, total }) {
  const [open, setOpen] = useState(false);
  return html`<aside class="sheet" aria-label="fields">
    <dl>${Object.entries(found.fields).map(([name, value]) => html`<div><dt>${shown(NAMES[name] ?? name)}</dt><dd>${field(name, value)}</dd></div>`)}<div><dt>messages</dt><dd>${count(total)}</dd></div></dl>
    ${!at && html`<details onToggle=${(/** @type {any} */ event) => setOpen(event.currentTarget.open)}>
      <summary>Which event set each field</summary>
      ${open && html`<${Origins} seq=${found.session.last_seq} />`}
    </details>`}
  </aside>`;
}

const NAMES = /** @type {Record<string, string>} */ ({ createdAt: "created", updatedAt: "changed" });

/**
 * @param {string} name
 * @param {unknown} value
 */
const field = (name, value) =>
  name.endsWith("At") && typeof value === "number" ? moment(value) : shown(typeof value === "string" ? value : pretty(value));

/** @param {{seq: number}} props */
function Origins({ seq }) {
  const { value, error } = useAnswer(() => get("session/why", { id }), [seq]);
  if (error) return html`<${Failure} error=${error} />`;
  if (!value) return html`<p class="loading">Reading the session's events…</p>`;
  return html`<dl>${Object.entries(value.fields).map(([name, from]) => html`<div><dt>${shown(NAMES[name] ?? name)}</dt>
    <dd><a href=${`/session/history${query({ id, at: from.seq })}`}>${shown(from.type)}</a> ${moment(from.time)}</dd></div>`)}</dl>`;
}

/** @param {{name: string, rest: number, move: () => void, end?: () => void}} props */
function Edge({ name, rest, move, end }) {
  if (rest <= 0) return null;
  return html`<p class="edge"><button type="button" onClick=${move}>${counted(rest, `${name} message`)}: show ${count(Math.min(rest, STEP))}</button>
    ${end && html` <button type="button" onClick=${end}>To the end</button>`}</p>`;
}

mount(Session, { e: () => goToEnd(), "[": () => move(-1), "]": () => move(1) });
