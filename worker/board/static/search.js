// Search in what people and agents said.
import { html, useEffect, useState } from "./vendor/preact.js";
import { get, query } from "./lib/api.js";
import { count, counted, quoted } from "./lib/format.js";
import { Age, Command, Failure, Field, Frame, mount, useFollow, useStatus } from "./lib/frame.js";
import { watchNotifications } from "./lib/notify.js";
import { inert, shown } from "./lib/text.js";

/** @typedef {{session: string, project: string, title: string, n: number | null, seq: number,
 *   role: string | null, time: number, snippet: {text: string, mark: boolean}[]}} Result */
/** @typedef {{q: string, project: string, role: string, since: string, order: string}} Asked */

const PAGE = 50;
const MOST = 200;

/** @returns {Asked} */
function fromAddress() {
  const given = new URLSearchParams(location.search);
  const [q, project, role, since, order] = ["q", "project", "role", "since", "order"].map((name) => given.get(name) ?? "");
  return { q, project, role, since, order: order || "newest" };
}

function Search() {
  useFollow();
  const { status } = useStatus();
  const isOff = status?.board?.search === false;
  const [asked, setAsked] = useState(fromAddress);
  const [limit, setLimit] = useState(PAGE);
  const [projects, setProjects] = useState(/** @type {string[]} */ ([]));
  const [found, setFound] = useState(/** @type {{results: Result[], more: boolean, behind?: number, partly?: boolean} | null} */ (null));
  const [error, setError] = useState(/** @type {unknown} */ (null));
  const [busy, setBusy] = useState(false);

  useEffect(() => {
    watchNotifications();
    get("sessions", { limit: 1 }).then((answer) => setProjects(answer.projects), () => {});
    const back = () => setAsked(fromAddress());
    addEventListener("popstate", back);
    return () => removeEventListener("popstate", back);
  }, []);
  useEffect(() => {
    let gone = false;
    setError(null);
    if (!asked.q.trim()) return setFound(null);
    setBusy(true);
    get("search", { ...asked, limit }).then(
      (answer) => gone || (setFound(answer), setBusy(false)),
      (failed) => gone || (setError(failed), setFound(null), setBusy(false)),
    );
    return () => {
      gone = true;
    };
  }, [query(asked), limit]);

  /** @param {Partial<Asked>} change */
  const choose = (change) => {
    const next = { ...asked, ...change };
    history.pushState(null, "", `/search${query({ ...next, order: next.order === "newest" ? "" : next.order })}`);
    setLimit(PAGE);
    setAsked(next);
  };
  /** @param {any} event */
  const submitted = (event) => {
    event.preventDefault();
    choose({ q: event.currentTarget.elements.q.value });
  };
  /** @param {string} name */
  const chosen = (name) => (/** @type {any} */ event) => choose({ [name]: event.currentTarget.value });
  return html`<${Frame} page="Search" title=${asked.q ? `${asked.q}, search` : "Search"}>
    <h1 class="unseen">Search</h1>
    <form class="tools" role="search" onSubmit=${submitted}>
      <${Field} type="search" name="q" data-search aria-label="words" placeholder="Words that were said" value=${asked.q} autofocus />
      <button class="main">Search</button>
      <select aria-label="project" onChange=${chosen("project")}><option value="">all projects</option>
        ${[...new Set([...projects, ...(asked.project ? [asked.project] : [])])].map((one) => html`<option value=${one} selected=${one === asked.project}>${inert(one)}</option>`)}</select>
      <select aria-label="said by" onChange=${chosen("role")}>${["", "user", "assistant"].map((one) => html`<option value=${one} selected=${one === asked.role}>${one || "said by anyone"}</option>`)}</select>
      <label>since <${Field} type="date" value=${asked.since.slice(0, 10)} onChange=${chosen("since")} /></label>
      <select aria-label="order" onChange=${chosen("order")}>${["newest", "best"].map((one) => html`<option value=${one} selected=${one === asked.order}>${one} first</option>`)}</select>
    </form>
    ${error && html`<${Failure} error=${error} />`}
    ${isOff && !error && html`<div class="empty"><p>Search is off in this database. A daemon that runs with it fills its index; end one that runs without it first:</p><${Command} text=${`projector run -d ${quoted(status.database)} --with search`} /></div>`}
    ${!found && !error && !isOff && html`<p class="empty">${busy ? "Searching…" : "Search in what people and agents said, in all sessions. All words must be in one message."}</p>`}
    <p class="unseen" role="status">${found && !busy && `${found.results.length} results`}</p>
    ${found?.behind ? html`<p class="cut">${counted(found.behind, "newest event")} ${found.behind === 1 ? "is" : "are"} not searched yet.</p>` : null}
    ${found?.partly && html`<p class="cut">Only the newest 100,000 events with these words were looked at. Add a word to look further back.</p>`}
    ${found && !found.results.length && html`<p class="empty">Nothing was found. <code>word*</code> finds what begins so; messages that were replaced later are not searched.</p>`}
    ${found && html`<ol class="results">${found.results.map((one) => html`<li key=${`${one.session} ${one.seq} ${one.n}`}><${Hit} found=${one} /></li>`)}</ol>
      ${found.more && html`<p class="more">${limit < MOST ? html`<button type="button" onClick=${() => setLimit(MOST)}>More</button>` : html`There are more than ${count(MOST)}: add a word.`}</p>`}`}
  <//>`;
}

/** @param {{found: Result}} props */
function Hit({ found }) {
  const address = `/session${query({ id: found.session })}${found.n ? `#m${found.n}` : ""}`;
  return html`<a class="card hit" data-item href=${address}>
    <span class="title">${shown(found.title || found.session)}</span>
    <span class="snippet">${found.snippet.map(({ text, mark }) => (mark ? html`<mark>${shown(text)}</mark>` : shown(text)))}</span>
    <span class="facts"><span class="project">${shown(found.project)}</span><span class="id">${shown(found.session)}</span>
      <span class="right"><span class="role">${shown(found.role ?? "")}</span>${found.n && html`<span>${count(found.n)}</span>`}<${Age} time=${found.time} /></span></span>
  </a>`;
}

mount(Search);
