"use strict";

// Every so many milliseconds, while the page is visible. The service samples nothing: what the charts show is
// kept here, for as long as the page is open.
const INTERVAL = 2000;
const TIMEOUT = 5000;
const HISTORY = 300;

const CHARTS = { rate: "rate-chart", open: "open-chart", failed: "failed-chart", datagrams: "datagrams-chart" };
const DAY = 86400;

const history = [];
let before = null;
let timer = null;
let fetching = false;

const element = (id) => document.getElementById(id);
const number = (value) => value.toLocaleString("en", { maximumFractionDigits: 0 });
const plural = (count, noun) => `${number(count)} ${noun}${count === 1 ? "" : "s"}`;
const sum = (counts) => Object.values(counts).reduce((total, count) => total + count, 0);

function rateText(value) {
  return value.toLocaleString("en", { maximumFractionDigits: value < 10 ? 1 : 0 });
}

function duration(seconds) {
  const units = [["d", DAY], ["h", 3600], ["min", 60], ["s", 1]];
  const first = units.findIndex(([, size]) => seconds >= size);
  if (first < 0) return "0 s";
  const [name, size] = units[first];
  const whole = Math.floor(seconds / size);
  if (first === units.length - 1) return `${whole} ${name}`;
  const [smaller, part] = units[first + 1];
  const rest = Math.floor((seconds - whole * size) / part);
  return rest ? `${whole} ${name} ${rest} ${smaller}` : `${whole} ${name}`;
}

// All text from the service is set as text, never as markup.
function show(id, text, kind = "") {
  const found = element(id);
  if (found.textContent !== text) found.textContent = text;
  if (kind) found.className = kind;
}

function showRows(id, rows) {
  element(id).replaceChildren(...rows.map(([name, value]) => {
    const row = document.createElement("tr");
    const head = document.createElement("th");
    const cell = document.createElement("td");
    head.scope = "row";
    head.textContent = name;
    cell.textContent = value;
    row.append(head, cell);
    return row;
  }));
}

function svg(name, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function draw(name) {
  const top = Math.max(1, ...history.map((sample) => sample[name]));
  const from = history[0].at;
  const span = Math.max(60, history[history.length - 1].at - from);
  const points = history.map((s) => `${((s.at - from) / span) * 300},${100 - (s[name] / top) * 96}`);
  const last = history[history.length - 1];
  const chart = svg("svg", {
    viewBox: "0 0 300 100",
    preserveAspectRatio: "none",
    role: "img",
    "aria-label": `Now ${rateText(last[name])}, at most ${rateText(top)} in ${duration(last.at - from)}.`,
  });
  const end = ((last.at - from) / span) * 300;
  chart.append(
    svg("polygon", { class: "area", points: `0,100 ${points.join(" ")} ${end},100` }),
    svg("polyline", { class: "line", points: points.join(" ") }),
  );
  const legend = document.createElement("p");
  for (const text of [`0 to ${rateText(top)}`, duration(span)]) {
    const part = document.createElement("span");
    part.textContent = text;
    legend.append(part);
  }
  element(CHARTS[name]).replaceChildren(chart, legend);
}

function stateOf(status) {
  if (status.problem) return [`Not ready: ${status.problem}`, "bad"];
  if (!status.accepting) return ["Accepting is paused: clients wait in the accept queue", "odd"];
  if (status.workers.ready < status.workers.count) return ["Serving, but not with all workers", "odd"];
  return ["Serving", "good"];
}

function showCertificate(expiry, now) {
  element("certificate-tile").hidden = expiry === null;
  if (expiry === null) return;
  const left = expiry - now;
  const text = left <= 0 ? "expired" : left < 2 * DAY ? duration(left) : plural(Math.floor(left / DAY), "day");
  show("certificate", text, left <= 0 ? "bad" : left < 14 * DAY ? "odd" : "good");
  show("expiry", `until ${new Date(expiry * 1000).toISOString().slice(0, 16).replace("T", " ")} UTC`);
}

// Shown only for a service that has datagrams.
function showDatagrams(status) {
  const served = status.addresses.some((address) => address.startsWith("udp:"));
  for (const id of ["datagrams-tile", "datagrams-section", "datagrams-table"]) element(id).hidden = !served;
  const { received, greeted, sent_bytes: bytes, receive_errors: errors, ...ends } = status.datagrams;
  if (history.length > 0) show("datagram-rate", rateText(history[history.length - 1].datagrams));
  show("datagrams", `${number(greeted)} greeted of ${number(received)}`);
  const named = Object.entries(ends).map(([name, count]) => {
    const [end, ...why] = name.split("_");
    return [`${end}: ${why.join("_")}`, number(count)];
  });
  showRows("datagram-counters", [
    ["received", number(received)],
    ["dropped by the kernel", number(status.datagrams_dropped)],
    ["greeted", number(greeted)],
    ["bytes sent", number(bytes)],
    ["receive errors", number(errors)],
    ...named,
  ]);
}

function record(status) {
  const now = {
    at: status.uptime_s,
    greeted: status.greeted,
    failed: sum(status.failed),
    datagrams: status.datagrams.greeted || 0,
  };
  if (before !== null && now.at < before.at) {  // the service was restarted
    history.length = 0;
    before = null;
  }
  const seconds = before === null ? 0 : now.at - before.at;
  if (seconds > 0) {
    const rate = (name) => Math.max(0, now[name] - before[name]) / seconds;
    history.push({
      at: now.at, rate: rate("greeted"), failed: rate("failed"), datagrams: rate("datagrams"), open: status.open,
    });
    history.splice(0, history.length - HISTORY);
  }
  before = now;
}

function render(status) {
  const failed = sum(status.failed);
  show("version", status.version);
  show("addresses", status.addresses.join(", "));
  show("state", ...stateOf(status));
  element("state").classList.add("state");
  if (history.length > 0) {
    show("rate", rateText(history[history.length - 1].rate));
    Object.keys(CHARTS).forEach(draw);
  }
  show("greeted", `${number(status.greeted)} since the start`);
  show("open", number(status.open));
  show("open-more", `${number(status.lingering)} lingering, at most ${number(status.max_connections)}`);
  show("failed", number(failed));
  show("failed-share", status.accepted
    ? `${((100 * failed) / status.accepted).toLocaleString("en", { maximumFractionDigits: 2 })} % of accepted` : "");
  const { count, ready, restarts } = status.workers;
  show("workers", `${number(ready)} of ${number(count)}`, ready < count ? "odd" : "good");
  show("restarts", plural(restarts, "restart"));
  show("uptime", duration(status.uptime_s));
  const since = new Date((status.time - status.uptime_s) * 1000).toISOString();
  show("since", `since ${since.slice(0, 16).replace("T", " ")} UTC`);
  showCertificate(status.certificate_expiry, status.time);
  showDatagrams(status);
  const counts = (found) => Object.entries(found).map(([name, value]) => [name, number(value)]);
  showRows("failures", counts(status.failed));
  showRows("rejections", counts(status.rejected));
  showRows("counters", [
    ["accepted", number(status.accepted)],
    ["bytes sent", number(status.sent_bytes)],
    ["linger timeouts", number(status.linger_timeouts)],
    ["accept errors", number(status.accept_errors)],
    ["accepting paused", duration(status.paused_s)],
    ["reloads", number(status.reloads.ok)],
    ["failed reloads", number(status.reloads.failed)],
  ]);
}

async function refresh() {
  if (fetching || document.hidden) return;
  fetching = true;
  clearTimeout(timer);
  try {
    const response = await fetch("status.json", { cache: "no-store", signal: AbortSignal.timeout(TIMEOUT) });
    if (!response.ok) throw new Error(`status ${response.status}`);
    const status = await response.json();
    record(status);
    render(status);
    document.body.classList.remove("stale");
  } catch (error) {
    show("state", `The service does not respond (${error.message}). The figures are old.`, "state bad");
    document.body.classList.add("stale");
  } finally {
    fetching = false;
    timer = setTimeout(refresh, INTERVAL);
  }
}

document.addEventListener("visibilitychange", refresh);
refresh();
