// A notification when a session becomes `ready` or `review`, off until somebody asks for it.
import { get } from "./api.js";
import { isLeading, listen } from "./stream.js";
import { inert } from "./text.js";

const CALLS = ["ready", "review"];
const SETTING = "projector-notify";
/** @type {Map<string, string> | null} */
let statuses = null; // of the sessions that were seen; null until those that call already are known

/** Whether it is asked for and allowed. */
export const notifies = () =>
  "Notification" in window && localStorage.getItem(SETTING) === "on" && Notification.permission === "granted";

/**
 * Ask for notifications, or for none.
 * @param {boolean} on
 * @returns {Promise<boolean>} whether there are any now
 */
export async function setNotifies(on) {
  localStorage.setItem(SETTING, on ? "on" : "off");
  if (on && "Notification" in window) await Notification.requestPermission();
  return notifies();
}

/** Show them from now on, in the tab that reads the stream. */
export function watchNotifications() {
  const learn = async () => {
    const { sessions } = await get("sessions", { status: CALLS.join(","), limit: 200 });
    statuses = new Map(sessions.map((/** @type {any} */ one) => [one.id, one.status]));
  };
  learn().catch(() => {});
  listen((change) => {
    if (change.type === "reset") learn().catch(() => {});
    if (change.type !== "sessions" || !statuses) return;
    for (const session of change.sessions) {
      const before = statuses.get(session.id);
      statuses.set(session.id, session.status);
      if (before === session.status || !CALLS.includes(session.status) || !isLeading() || !notifies()) continue;
      const shown = new Notification(inert(session.title || session.id).slice(0, 200), {
        body: inert(`${session.project}: ${session.status}`).slice(0, 200),
        tag: session.id,
        icon: "/static/icon.svg",
      });
      shown.onclick = () => {
        focus();
        location.assign(`/session?id=${encodeURIComponent(session.id)}`);
      };
    }
  });
}
