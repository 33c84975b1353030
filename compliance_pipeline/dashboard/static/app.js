// Time series on canvas (uPlot), theme, freshness, zoom. Everything else is HTML and SVG from the server, and links.
"use strict";
const $ = (selector, root = document) => root.querySelector(selector);
const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
const root = document.documentElement;
const css = name => getComputedStyle(root).getPropertyValue("--" + name).trim();
const num = v => v == null ? "–" : v.toLocaleString("en-GB");
const pad2 = v => String(v).padStart(2, "0");
const dur = v => v == null ? "–" : v < .9995 ? `${Math.round(v * 1e3)} ms` : v < 9.995 ? `${v.toFixed(2)} s` : v < 59.95 ? `${v.toFixed(1)} s`
  : v < 3599.5 ? `${Math.floor(Math.round(v) / 60)} min ${pad2(Math.round(v) % 60)} s` : `${Math.floor(v / 3600)} h ${pad2(Math.floor(v / 60) % 60)} min`;
const tick = v => v === 0 ? "0" : v < 1 ? `${+(v * 1e3).toPrecision(2)} ms` : v < 120 ? `${+v.toFixed(1)} s` : v < 7200 ? `${+(v / 60).toFixed(1)} min` : `${+(v / 3600).toFixed(1)} h`;

let page = null;                     // of #main: zone, span [from, to], grain, breaker openings, objective
const plots = new Map();
const formats = new Map();
function inZone(options, zone = page?.zone || "UTC") {
  const key = zone + JSON.stringify(options);
  if (!formats.has(key)) formats.set(key, new Intl.DateTimeFormat("en-GB", { ...options, timeZone: zone }));
  return formats.get(key);
}
const parts = t => Object.fromEntries(inZone({ day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", hourCycle: "h23" }).formatToParts(t * 1e3).map(p => [p.type, p.value]));
const moment = t => page.grain >= 86400 ? inZone({ weekday: "short", day: "numeric", month: "short" }).format(t * 1e3)
  : inZone({ weekday: "short", day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" }).format(t * 1e3);

// Ticks at midnights and round hours of the zone, which uPlot can't know.
const STEPS = [300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800, 345600, 604800, 1209600];
const wall = t => { const p = parts(t); return +p.hour * 3600 + +p.minute * 60; };           // seconds of the zone's clock
function midnight(t) {                                                   // of a day that has 23 or 25 hours too
  const guess = t - t % 60 - wall(t), off = wall(guess);
  return off > 43200 ? guess + 86400 - off : guess - off;
}
function timeTicks(u, _axis, from, to) {
  const most = Math.max(2, Math.floor((u.width - 60) / 64)), step = STEPS.find(s => (to - from) / s <= most) || STEPS.at(-1), out = [];
  if (step < 86400) {
    for (let day = midnight(from); day <= to; day = midnight(day + 93600)) {
      for (let clock = 0; clock < 86400; clock += step) {
        const t = day + 2 * clock - wall(day + clock);
        if (t >= from && t <= to && wall(t) === clock) out.push(t);
      }
    }
  } else {
    for (let t = midnight(from); t <= to; t = midnight(t + step + 7200)) if (t >= from) out.push(t);
  }
  return out.filter(t => (to - t) / (to - from) * u.width > 14);         // a label at the very end is cut off
}
const timeLabels = (_u, ticks) => ticks.map(t => { const p = parts(t); return p.hour === "00" && p.minute === "00" ? `${p.day} ${p.month}` : `${p.hour}:${p.minute}`; });

function options(el, x) {                                                // what all charts share
  const font = "12px Inter, system-ui", axis = { font, stroke: css("ink3"), ticks: { show: false } };
  return {
    width: el.clientWidth, height: el.clientHeight, legend: { show: false }, padding: [10, 8, 0, 0],
    scales: { x: { range: () => x.span || page.span } },
    cursor: { sync: x.alone ? undefined : { key: "time" }, y: false, points: { show: false }, drag: { x: !x.alone, y: false, setScale: false } },
    axes: [
      { ...axis, grid: { show: false }, values: timeLabels, splits: timeTicks, size: 26 },
      { ...axis, grid: { stroke: css("grid"), width: 1 }, values: (_u, ticks) => ticks.map(x.format), size: x.gutter || 50, space: x.space || 38, splits: x.splits },
    ],
    hooks: {
      drawClear: [shade], setCursor: [u => tip(u, x.tip)], draw: x.draw ? [x.draw] : [],
      setSelect: [u => { if (!x.alone && u.select.width > 8 && u.over.matches(":hover")) zoom(u.posToVal(u.select.left, "x"), u.posToVal(u.select.left + u.select.width, "x")); }],
    },
  };
}
function shade(u) {                                                      // while a breaker was open
  const { ctx, bbox: b } = u;
  ctx.fillStyle = css("shade");
  for (const [from, to] of page.openings) {
    const left = Math.max(u.valToPos(from, "x", true), b.left), right = Math.min(u.valToPos(to, "x", true), b.left + b.width);
    if (right >= b.left && left <= b.left + b.width) ctx.fillRect(left, b.top, Math.max(right - left, 2), b.height);
  }
}
function rule(u, y, text, color, dash = [5, 4]) {
  const { ctx, bbox: b } = u, at = Math.round(u.valToPos(y, "y", true)), k = devicePixelRatio, ink = css(color === "breach" ? "bad" : color);
  if (at < b.top - 1 || at > b.top + b.height + 1) return;
  ctx.save();
  ctx.strokeStyle = css(color); ctx.lineWidth = 1.3 * k; ctx.setLineDash(dash.map(v => v * k));
  ctx.beginPath(); ctx.moveTo(b.left, at); ctx.lineTo(b.left + b.width, at); ctx.stroke();
  ctx.font = `${12 * k}px Inter, system-ui`; ctx.textAlign = "left"; ctx.textBaseline = "alphabetic";
  const width = ctx.measureText(text).width;
  ctx.globalAlpha = .85; ctx.fillStyle = css("card"); ctx.fillRect(b.left + 2 * k, at - 18 * k, width + 6 * k, 15 * k);
  ctx.globalAlpha = 1; ctx.fillStyle = ink; ctx.fillText(text, b.left + 5 * k, at - 6 * k);
  ctx.restore();
}
function tip(u, words) {
  let box = $(".tip", u.over);
  if (!box) { box = document.createElement("div"); box.className = "tip"; u.over.append(box); }
  const i = u.cursor.idx;
  if (i == null || u.cursor.left < 0 || !u.over.matches(":hover")) { box.style.display = "none"; return; }
  box.style.display = "block";
  box.textContent = `${moment(u.data[0][i])}\n${words(u, i)}`;
  const width = u.over.clientWidth, x = u.cursor.left + (u.cursor.left > width / 2 ? -box.offsetWidth - 12 : 12);
  box.style.transform = `translate(${Math.min(Math.max(x, 0), Math.max(width - box.offsetWidth, 0))}px,4px)`;
}
const line = (color, width) => ({ stroke: css(color), width, points: { show: lonely, size: 4, fill: css(color), stroke: css(color) }, spanGaps: false });
// A bucket between two empty ones has no line: it gets a point.
const lonely = (u, s) => { const d = u.data[s]; return d.some((v, i) => v != null && d[i - 1] == null && d[i + 1] == null); };
const lonelyOnly = (u, s) => { const d = u.data[s]; return d.map((v, i) => v != null && d[i - 1] == null && d[i + 1] == null ? i : -1).filter(i => i >= 0); };
const dots = series => ({ ...series, points: { ...series.points, filter: lonelyOnly } });
// Bars fill their bucket exactly, which uPlot's own don't; drawn from zero, so of stacked ones the tallest comes first.
const unseen = { stroke: "transparent", width: 0, points: { show: false } };
function bars(u, series, color) {
  const { ctx, bbox: b } = u, [times] = u.data, zero = u.valToPos(0, "y", true);
  ctx.save(); ctx.beginPath(); ctx.rect(b.left, b.top, b.width, b.height); ctx.clip();
  u.data[series].forEach((v, i) => {
    if (!v) return;
    const left = u.valToPos(times[i], "x", true), width = u.valToPos(times[i + 1] || times[i] + page.grain, "x", true) - left, top = u.valToPos(v, "y", true);
    ctx.fillStyle = color(v);
    ctx.fillRect(left + width * .08, top, Math.max(width * .84, 1), zero - top);
  });
  ctx.restore();
}

const CHARTS = {
  bands(el, d, small) {
    const o = options(el, {
      format: tick, space: small ? 30 : 44,
      tip: (u, i) => u.data[4][i] ? `P50  ${dur(u.data[1][i])}\nP95  ${dur(u.data[2][i])}\nP99  ${dur(u.data[3][i])}\n${num(u.data[4][i])} recordings` : "No recordings",
      draw: small ? null : u => rule(u, page.objective, `${tick(page.objective)} objective`, "breach"),
    });
    o.scales.y = { range: (_u, _lo, hi) => [0, Math.max((hi || 1) * 1.06, small ? 0 : page.objective * 1.2)] };
    o.scales.n = { auto: false, range: [0, 1] };
    o.series = [{}, dots(line("p50", 2.2)), dots(line("p95", 1.7)), dots(line("p99", 1.3)), { show: false, scale: "n" }];
    o.bands = [{ series: [2, 1], fill: css("band1") }, { series: [3, 2], fill: css("band2") }];
    return [o, d];
  },
  stage: (el, d) => CHARTS.bands(el, d, true),
  heat(el, d) {                                                          // cells: [time, from s, to s, recordings]
    const cells = d.cells, most = Math.log(Math.max(1, ...cells.map(c => c[3])) + 1), ramp = colours();
    const low = Math.min(1, ...cells.map(c => c[1] || c[2] / 2)), high = Math.max(page.objective * 2, ...cells.map(c => c[2]));
    const all = new Map(d.times.map(t => [t, 0]));
    for (const c of cells) all.set(c[0], (all.get(c[0]) || 0) + c[3]);
    const log = v => Math.log2(Math.max(v, low));
    const marks = [.01, .03, .1, .3, 1, 3, 10, 30, 100, 300, 1000, 3600, 14400, 86400].filter(v => v >= low && v <= high).map(log);
    const o = options(el, {
      format: v => tick(+(2 ** v).toPrecision(3)), splits: () => marks, tip: (u, i) => `${num(u.data[1][i])} recordings`,
      draw: u => {
        const { ctx, bbox: b } = u;
        ctx.save(); ctx.beginPath(); ctx.rect(b.left, b.top, b.width, b.height); ctx.clip();
        for (const [t, from, to, n] of cells) {
          const x = Math.floor(u.valToPos(t, "x", true)), right = Math.ceil(u.valToPos(t + page.grain, "x", true)), top = Math.floor(u.valToPos(log(to), "y", true)), bottom = Math.ceil(u.valToPos(log(from), "y", true));
          ctx.fillStyle = ramp[Math.round(Math.log(n + 1) / most * 63)];
          ctx.fillRect(x, top, Math.max(right - x, 1), Math.max(bottom - top, 1));
        }
        ctx.restore();
        rule(u, log(page.objective), `${tick(page.objective)} objective`, "breach");
      },
    });
    o.scales.y = { range: [log(low), log(high)] };
    o.scales.n = { range: [0, 1e9] };
    o.series = [{}, { stroke: "transparent", points: { show: false }, scale: "n" }];
    return [o, [[...all.keys()], [...all.values()]]];
  },
  budget(el, d) {
    const times = d[0], o = options(el, {
      alone: true, span: [times[0], times.at(-1) + 21600], format: v => Math.round(v * 100) + "%",
      tip: (u, i) => `${u.data[1][i] == null ? "–" : (u.data[1][i] * 100).toFixed(1) + "%"} left\n${num(d[2][i])} of ${num(d[3][i])} late`, draw: u => rule(u, 0, "exhausted", "ink3", []),
    });
    o.scales.y = { range: (_u, lo) => [Math.min((lo ?? 0) - .08, -.05), 1.04] };
    const fill = u => {
      const { top, height } = u.bbox, zero = Math.min(1, Math.max(0, (u.valToPos(0, "y", true) - top) / height)), g = u.ctx.createLinearGradient(0, top, 0, top + height);
      for (const [at, color] of [[0, "band2"], [zero, "band2"], [zero, "shade"], [1, "shade"]]) g.addColorStop(at, css(color));
      return g;
    };
    o.series = [{}, { stroke: css("p95"), width: 2, points: { show: false }, paths: uPlot.paths.stepped({ align: 1 }), fill, fillTo: 0 }];
    return [o, [times, d[1]]];
  },
  burn(el, d) {
    const hot = css("breach"), calm = css("p95"), o = options(el, {
      format: v => `${+v.toFixed(2)}×`, space: 26, draw: u => { bars(u, 1, v => v > 1 ? hot : calm); rule(u, 1, "1×", "ink3", [4, 3]); },
      tip: (u, i) => u.data[1][i] == null ? "Nothing was due" : `Burn ${u.data[1][i].toFixed(2)}×\n${num(d[2][i])} of ${num(d[3][i])} late`,
    });
    o.scales.y = { range: (_u, _lo, hi) => [0, Math.max(2, (hi || 0) * 1.08)] };
    o.series = [{}, unseen];
    return [o, [d[0], d[1]]];
  },
  stack(el, d) {                                                         // {names, colours, times, values}
    const sums = [];
    d.values.reduce((below, row, k) => sums[k] = below.map((v, i) => v + (row[i] || 0)), d.times.map(() => 0));
    const colors = d.colours.map(css).reverse();
    const o = options(el, {
      format: num, space: 34, gutter: 44, draw: u => colors.forEach((color, k) => bars(u, k + 1, () => color)),
      tip: (_u, i) => d.names.map((name, k) => `${name}  ${num(d.values[k][i])}`).join("\n"),
    });
    o.scales.y = { range: (_u, _lo, hi) => [0, Math.max((hi || 0) * 1.08, 4)] };
    o.axes[1].incrs = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5, 5e5, 1e6];
    o.series = [{}, ...d.names.map(() => unseen)];
    return [o, [d.times, ...sums.reverse()]];
  },
};
function colours() {
  const cv = document.createElement("canvas"), ctx = cv.getContext("2d");
  cv.width = 64; cv.height = 1;
  const g = ctx.createLinearGradient(0, 0, 64, 0);
  ["seq0", "seq1", "seq2", "seq3"].forEach((name, i) => g.addColorStop(i / 3, css(name)));
  ctx.fillStyle = g; ctx.fillRect(0, 0, 64, 1);
  const px = ctx.getImageData(0, 0, 64, 1).data;
  return Array.from({ length: 64 }, (_, i) => `rgb(${px[i * 4]},${px[i * 4 + 1]},${px[i * 4 + 2]})`);
}

function draw() {
  for (const [el, plot] of plots) { plot.destroy(); plots.delete(el); }
  const facts = $("#page");
  page = facts ? JSON.parse(facts.textContent) : null;
  if (page) {
    for (const figure of $$("[data-chart]")) {
      const el = $(".plot", figure);
      el.replaceChildren();
      const [o, data] = CHARTS[figure.dataset.chart](el, JSON.parse($("script[type='application/json']", figure).textContent));
      plots.set(el, new uPlot(o, data, el));
    }
    for (const i of $$(".lg i[data-colour]")) i.style.background = css(i.dataset.colour);
  }
  root.dataset.ready = +(root.dataset.ready || 0) + 1;
}

// ---- links, zoom, refresh: each is a GET of a URL that says the whole view
function visit(url) {
  const a = document.createElement("a");
  a.href = url; a.hidden = true; a.setAttribute("hx-boost", "true");
  $("#main").append(a);
  htmx.process(a);
  a.click();
}
const refresh = headers => htmx.ajax("GET", location.href, { source: "#main", target: "#main", select: "#main", swap: "outerHTML show:none", headers });
function zoom(from, to) {                                                // to whole buckets of what is drawn
  const times = page.times, g = page.grain, last = times.length - 1;
  if (!times.length) return;
  let first = times.findIndex((t, i) => i === last || times[i + 1] > from), end = times.findIndex(t => t >= to);
  const until = end === -1 ? times[last] + g : times[end];
  const url = new URL(location.href), written = t => new Date(t * 1e3).toISOString().slice(0, 16) + "Z";
  url.searchParams.delete("range");
  url.searchParams.set("from", written(Math.max(times[first], page.span[0])));
  url.searchParams.set("to", written(Math.min(Math.max(until, times[first] + Math.min(g, 300)), page.span[1])));
  visit(url.pathname + url.search.replaceAll("%3A", ":"));
}
function say(text) { $("#live").textContent = ""; $("#live").textContent = text; }
function notice(text, url) {
  const box = $("#notice");
  box.hidden = !text;
  box.textContent = text || "";
  if (text) { const again = document.createElement("button"); again.className = "ghost"; again.textContent = "Try again"; again.onclick = () => { notice(""); if (url === location.href) refresh(); else visit(url); }; box.append(again); }
}
let focused = null;                                                      // by the keyboard, when the content was swapped
document.addEventListener("htmx:beforeSwap", () => {
  const at = document.activeElement, pick = at?.closest(".pick");
  focused = at?.matches("#main :focus-visible") ? { text: at.textContent.trim(), pick: pick && $("summary", pick).firstChild.textContent } : null;
});
function refocus() {
  if (!focused) return;
  const pick = focused.pick && $$(".pick").find(d => $("summary", d).firstChild.textContent === focused.pick);
  if (pick) pick.open = true;
  ($$("a", pick || $("#main")).find(a => a.textContent.trim() === focused.text && a.checkVisibility()) || $(".seg a"))?.focus();
  focused = null;
}
function afterwards(byItself) {
  notice("");
  dressed();
  draw();
  refocus();
  if (!byItself) say($(".verdict")?.textContent.trim() || $(".empty h1")?.textContent || "");
}
document.addEventListener("htmx:afterSwap", e => { if (e.target.id === "main") afterwards(e.detail.requestConfig?.headers["X-By-Itself"]); });
for (const kind of ["htmx:responseError", "htmx:sendError", "htmx:timeout", "htmx:swapError"])
  document.addEventListener(kind, e => notice("That could not be loaded; what is shown is from before.", new URL(e.detail.pathInfo?.finalRequestPath || location.href, location.href).href));

// ---- theme, zone, copy
const THEMES = ["auto", "light", "dark"];
function themed(theme) {
  root.dataset.theme = theme;
  document.cookie = `theme=${theme};path=/;max-age=31536000;samesite=lax`;
  $("#theme").setAttribute("aria-label", `Theme: ${theme}`);
  $("#theme").title = `Theme: ${theme}`;
  draw();
}
function dressed() {                                                     // what only works with JavaScript appears
  for (const id of ["copy", "theme"]) if ($("#" + id)) $("#" + id).hidden = false;
  const own = $(".own-zone"), zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
  if (own && zone && !$$(".zones .menu a").some(a => a !== own && a.textContent.trim() === zone)) {
    own.href = own.getAttribute("href").replace("tz=ZONE", `tz=${zone}`);
    own.textContent = zone; own.hidden = false;
  }
}
document.addEventListener("click", e => {
  if (!e.target.closest(".pick")) $$(".pick[open]").forEach(d => { d.open = false; });
  const button = e.target.closest("button, a");
  if (!button) return;
  if (button.id === "theme") themed(THEMES[(THEMES.indexOf(root.dataset.theme) + 1) % 3]);
  if (button.id === "copy") navigator.clipboard?.writeText(location.href).then(() => { button.textContent = "Copied"; say("Link copied"); setTimeout(() => { button.textContent = "Copy link"; }, 2000); });
  if (page && button.classList.contains("newer")) { e.preventDefault(); refresh(); }
});
document.addEventListener("keydown", e => {
  const open = e.key === "Escape" && $(".pick[open]");
  if (open) { open.open = false; $("summary", open).focus(); }
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { if (root.dataset.theme === "auto") draw(); });
let resized;
addEventListener("resize", () => {
  clearTimeout(resized);
  resized = setTimeout(() => { for (const [el, plot] of plots) plot.setSize({ width: el.clientWidth, height: el.clientHeight }); }, 120);
});

// ---- freshness: asked for now and then; the page renews itself when nobody is busy with it, and else offers to
const EVERY_MS = 10_000, QUIET_MS = 20_000;
let touched = Date.now();
for (const kind of ["pointermove", "pointerdown", "keydown", "wheel", "touchstart"]) addEventListener(kind, () => { touched = Date.now(); }, { passive: true });
const isBusy = () => Date.now() - touched < QUIET_MS || $("main details[open]:not([data-open])") || $("audio")?.paused === false || ["INPUT", "TEXTAREA", "SELECT"].includes(document.activeElement?.tagName) || String(getSelection());
async function freshen() {
  const badge = $("#fresh");
  if (document.hidden || !badge) return;
  try {
    const answer = await fetch("/api/freshness", { headers: { Accept: "application/json" }, signal: AbortSignal.timeout(8000) });
    if (!answer.ok) { stale(badge, { 401: "signed out, reload to sign in", 403: "not allowed any more, reload", 503: "no figures are published now" }[answer.status] || "the server has an error"); return; }
    const said = await answer.json(), isNewer = said.number !== +badge.dataset.number;
    badge.className = `fresh ${said.state}`;
    $(".words", badge).textContent = ` · ${said.words}`;
    if (!isNewer) { const time = $("time", badge); time.dateTime = said.data_to; const p = parts(Date.parse(said.data_to) / 1e3); time.textContent = `${p.day} ${p.month} ${p.hour}:${p.minute}`; }
    $(".newer", badge).hidden = !isNewer;
    if (isNewer && page && !isBusy()) refresh({ "X-By-Itself": "1" });
  } catch { stale(badge, "the server does not answer"); }
}
function stale(badge, why) {
  badge.className = "fresh stale";
  if ($(".words", badge)) $(".words", badge).textContent = ` · ${why}`;
}
setInterval(freshen, EVERY_MS);
document.addEventListener("visibilitychange", freshen);
addEventListener("pageshow", e => { if (e.persisted) freshen(); });

dressed();
document.fonts.load("12px Inter").finally(draw);
