"use strict";
const $ = (id) => document.getElementById(id);
const make = (tag, text, cls) => {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (cls) node.className = cls;
  return node;
};
const draw = (tag, attributes, text) => {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  return node;
};
const known = (x) => x !== null && x !== undefined;
const number = (x, digits = 1) => known(x) ? x.toLocaleString("en", {maximumFractionDigits: digits}) : "–";
const span = (s) => !known(s) ? "–" : s === 0 ? "0" : s < 1 ? number(s * 1000, s < .1 ? 1 : 0) + " ms"
  : s < 120 ? number(s) + " s" : s < 7200 ? number(s / 60) + " min" : number(s / 3600) + " h";
const show = (node, text) => { node.textContent = text; node.hidden = !text; };
const pill = (text, is) => { const node = make("span", text, "pill"); node.dataset.is = is; return node; };
const JUDGED = {OK: "good", WARN: "warn", STALL: "bad", STOP: "bad"};
const KEPT = 600;
let points = [];  // [at_ms, watermark_age_s, lag_records, mirror_age_s, probe_s]

function tiles(server, lag) {
  const requests = server.requests, probe = lag?.probe, saved = requests.stages_ms?.overlap_saved;
  const age = lag?.watermark_age_s, seen = known(probe?.last_s), waits = probe?.open_s > 2;
  const rows = [
    ["everything is in Redis, as of", !lag ? "–" : !known(age) ? "?" : age === 0 ? "now" : span(age) + " ago",
     lag ? `${number(points.at(-1)?.[2], 0)} records wait` : "no monitor", lag && !known(age) || age > 5 ? "bad" : age > 1 ? "warn" : ""],
    ["an update matters after", waits ? "> " + span(probe.open_s) : seen ? span(probe.last_s) : "–",
     seen ? `p50 ${span(probe.p50_s)}, p99 ${span(probe.p99_s)}` : probe?.problem || "no probe yet", waits ? "bad" : ""],
    ["answers per second", number(requests.per_s),
     requests.total_ms ? `p50 ${span(requests.total_ms.p50 / 1000)}, p99 ${span(requests.total_ms.p99 / 1000)}` : "none yet", ""],
    ["saved by the overlap", saved ? span(saved.p50 / 1000) : "–", "user side beside retrieval, median", ""],
  ];
  $("tiles").replaceChildren(...rows.map(([name, value, note, is]) => {
    const box = make("li"), main = make("strong", value);
    if (is) main.dataset.is = is;
    box.append(make("span", name), main, make("span", note));
    return box;
  }));
}

function nice(most) {
  const step = 10 ** Math.floor(Math.log10(most));
  return [1, 2, 5, 10].map((n) => n * step).find((top) => top >= most * .999);
}

// lines: [{name, color, column}]; one y axis from 0; ten minutes from left to right, less while there is less.
function chart(id, lines, format, least) {
  const node = $(id), width = Math.max(node.clientWidth, 200), height = id === "records" ? 80 : 176;
  const left = 46, top = 8, bottom = 18, right = 4, end = points.at(-1)?.[0] ?? Date.now();
  const minutes = [1, 2, 4, 8, 10].find((n) => n * 60000 >= end - (points[0]?.[0] ?? end)) ?? 10, length = minutes * 60000, begin = end - length;
  const values = points.flatMap((point) => lines.map((line) => point[line.column]).filter(known));
  const most = nice(Math.max(least, ...values));
  const x = (at) => left + (at - begin) / length * (width - left - right);
  const y = (value) => top + (1 - value / most) * (height - top - bottom);
  const svg = draw("svg", {viewBox: `0 0 ${width} ${height}`, role: "img"});
  for (const value of [0, most / 2, most]) {
    svg.append(draw("line", {class: "rule", x1: left, x2: width - right, y1: y(value), y2: y(value)}));
    svg.append(draw("text", {x: left - 6, y: y(value) + 4, "text-anchor": "end"}, format(value)));
  }
  for (const share of width > 480 ? [1, .75, .5, .25, 0] : [1, .5, 0]) {
    const anchor = share === 0 ? "end" : share === 1 ? "start" : "middle", ago = share * minutes;
    const text = !ago ? "now" : ago < 1 ? `−${ago * 60} s` : `−${number(ago, 2)} min`;
    svg.append(draw("text", {x: x(end - ago * 60000), y: height - 3, "text-anchor": anchor}, text));
  }
  for (const line of lines) {
    let path = "", open = false, from = 0, last = 0, areas = "";
    for (const point of points) {
      const value = point[line.column];
      if (!known(value) || point[0] < begin) { if (open) areas += `L${x(last)} ${y(0)}L${x(from)} ${y(0)}Z`; open = false; continue; }
      const place = `${x(point[0]).toFixed(1)} ${y(value).toFixed(1)}`;
      path += (open ? "L" : "M") + place;
      areas += (open ? "L" : "M") + place;
      if (!open) from = point[0];
      open = true;
      last = point[0];
    }
    if (open) areas += `L${x(last)} ${y(0)}L${x(from)} ${y(0)}Z`;
    svg.append(draw("path", {class: "area", d: areas, style: `fill: var(--${line.color})`}), draw("path", {d: path, style: `stroke: var(--${line.color})`}));
  }
  const legend = make("div", undefined, "legend");
  const tell = (point) => legend.replaceChildren(...lines.map((line) => {
    const entry = make("span"), dot = make("i");
    dot.style.background = `var(--${line.color})`;
    entry.append(dot, `${line.name} `, make("b", point ? format(point[line.column]) : "–"));
    return entry;
  }), ...(point && point !== points.at(-1) ? [make("span", new Date(point[0]).toLocaleTimeString())] : []));
  tell(points.at(-1));
  svg.setAttribute("aria-label", lines.map((line) => `${line.name}: ${format(points.at(-1)?.[line.column])}`).join(", "));
  const cross = draw("line", {class: "cross", y1: top, y2: height - bottom, x1: left, x2: left, visibility: "hidden"});
  svg.append(cross);
  svg.addEventListener("pointermove", (event) => {
    const at = begin + (event.offsetX / svg.clientWidth * width - left) / (width - left - right) * length;
    const found = points.reduce((best, point) => !best || Math.abs(point[0] - at) < Math.abs(best[0] - at) ? point : best, null);
    if (!found) return;
    cross.setAttribute("visibility", "visible");
    cross.setAttribute("x1", x(found[0]));
    cross.setAttribute("x2", x(found[0]));
    tell(found);
  });
  svg.addEventListener("pointerleave", () => { cross.setAttribute("visibility", "hidden"); tell(points.at(-1)); });
  if (!node.matches(":hover")) node.replaceChildren(svg, legend);  // a reader's crosshair stays where it is
}

function histogram(freshness) {
  const counts = freshness.counts ?? [], edges = freshness.edges_s, all = counts.reduce((a, b) => a + b, 0), most = Math.max(1, ...counts);
  const names = [...edges.map((edge) => "<" + (edge < 1 ? edge * 1000 : edge + " s")), `≥${edges.at(-1)} s`];
  $("fresh-note").textContent = freshness.counts ? `${number(all, 0)} updates of the last minute, milliseconds from their event time.` : "This server has no mirror.";
  $("fresh").replaceChildren(...names.map((name, i) => {
    const box = make("div"), space = make("div", undefined, "space"), fill = make("div", undefined, "fill"), share = (counts[i] ?? 0) / most;
    fill.style.height = 92 * share + "%";
    space.append(fill);
    if (counts[i]) {
      const label = make("em", number(counts[i], 0));
      label.style.bottom = 92 * share + "%";
      space.append(label);
    }
    box.append(space, make("span", name));
    return box;
  }));
  $("fresh").setAttribute("aria-label", names.map((name, i) => `${name}: ${number(counts[i] ?? 0, 0)}`).join(", "));
}

// Bars on one time line: user side and retrieval begin together, join and score end the request.
function gantt(node, times) {
  const total = Math.max(times.total, .001), together = times.user + times.retrieval - times.overlap_saved;
  const begins = {user: 0, retrieval: 0, join: Math.max(0, total - times.join - times.score), score: Math.max(0, total - times.score), total: 0};
  node.replaceChildren(...Object.keys(begins).flatMap((stage) => {
    const track = make("div", undefined, "track"), bar = make("div", undefined, "bar"), name = make("span"), dot = make("i");
    bar.style.left = 100 * Math.min(begins[stage] / total, 1) + "%";
    bar.style.width = 100 * Math.min(times[stage] / total, 1) + "%";
    bar.style.background = dot.style.background = `var(--${stage})`;
    track.append(bar);
    name.append(dot, stage);
    return [name, track, make("span", number(times[stage], 2) + " ms", "n")];
  }));
  node.setAttribute("aria-label", Object.keys(begins).map((stage) => `${stage} ${number(times[stage], 2)} ms`).join(", ")
    + `; together ${number(together, 2)} ms, saved ${number(times.overlap_saved, 2)} ms`);
}

function chips(id, counts, none) {
  const found = Object.entries(counts ?? {}).filter(([, n]) => n).sort((a, b) => b[1] - a[1]);
  $(id).replaceChildren(...(found.length ? found.map(([name, n]) => {
    const chip = make("li", name);
    chip.append(make("b", number(n, 0)));
    return chip;
  }) : [make("li", none, "none")]));
}

function versions(server, told) {
  const held = server.versions ?? (server.model_version ? [{version: server.model_version, state: "active", percent: 100}] : []);
  const all = new Map((told ?? []).map((each) => [each.version, {...each, there: "not held here"}]));
  for (const each of held) all.set(each.version, {...all.get(each.version), ...each, there: "held here"});
  $("versions").replaceChildren(...(all.size ? [...all.values()].map((each) => {
    const row = make("div", undefined, "model"), build = each.rebuild, canary = each.percent > 0 && each.percent < 100;
    const state = canary ? `${each.state} ${number(each.percent)} %` : each.state;
    row.append(make("strong", each.version), pill(state, each.state === "active" ? "good" : each.state === "failed" ? "bad" : canary ? "warn" : ""));
    const facts = [each.there, known(each.rows) ? number(each.rows, 0) + " rows" : "", known(each.memory_mb) ? number(each.memory_mb, 0) + " MB" : "", each.problem ?? ""];
    if (build) facts.push(`rebuilt ${number(100 * build.done / build.total, 0)} %` + (known(build.eta_s) ? `, ready in ${span(build.eta_s)}` : ""));
    row.append(make("span", facts.filter(Boolean).join(" · "), "soft"));
    if (build || canary) {
      const track = make("div", undefined, "track"), bar = make("div");
      bar.style.width = (build ? 100 * build.done / build.total : each.percent) + "%";
      track.append(bar);
      row.append(track);
    }
    return row;
  }) : [make("p", "none yet: publish and activate one", "soft")]));
}

function cells(row, values, judged, reason) {
  values.forEach(([text, cls]) => row.append(make("td", text, cls)));
  const last = make("td");
  last.append(pill(judged, JUDGED[judged]), reason ? ` ${reason}` : "");
  row.append(last);
  return row;
}

function watched(lag) {
  const groups = new Map(), order = ["OK", "WARN", "STALL", "STOP"];
  for (const part of lag?.partitions ?? []) {
    const sum = groups.get(part.group) ?? {records: 0, oldest: 0, rate: 0, unread: false, status: "OK", reason: ""};
    sum.records += part.lag_records;
    sum.oldest = Math.max(sum.oldest, part.lag_s ?? 0);
    sum.unread ||= !known(part.lag_s);  // an age that nobody knows is not 0
    sum.rate += part.rate_per_s;
    if (order.indexOf(part.status) > order.indexOf(sum.status)) [sum.status, sum.reason] = [part.status, part.reason];
    groups.set(part.group, sum);
  }
  $("groups").replaceChildren(...[...groups].map(([name, sum]) =>
    cells(make("tr"), [[name], [number(sum.records, 0), "n"], [sum.unread ? "?" : span(sum.oldest), "n"], [number(sum.rate, 0), "n rate"]], sum.status, sum.reason)));
  $("servers").replaceChildren(...(lag?.mirrors ?? []).map((mirror) =>
    cells(make("tr"), [[mirror.server], [known(mirror.rows) ? number(mirror.rows, 0) : "in Redis", "n"], [span(mirror.applied_age_s), "n"]], mirror.status, mirror.reason)));
}

function gap(found) {
  $("gap").hidden = !found;
  if (!found) return;
  const needed = found.workers_needed, pace = known(found.worker_per_s) ? ` (${number(found.worker_per_s)} a second each)` : "";
  const there = `${number(found.workers, 0)} ${found.workers === 1 ? "worker" : "workers"}`;
  $("gap-note").replaceChildren(pill(there, found.workers < 1 || needed > found.workers ? "warn" : "good"), " " + (!known(needed)
    ? "How many are needed shows when one has worked for some seconds."
    : needed ? `${number(needed, 0)} would do what is asked for and, within a minute, what waits${pace}.` : "Nothing waits."));
  $("gaps").replaceChildren(...found.priorities.map((each) => {
    const row = make("tr");
    row.append(make("td", each.priority), ...[[number(each.waiting, 0)], [known(each.oldest_s) ? span(each.oldest_s) : "?"], [number(each.arrival_per_s), "n rate"],
      [number(each.service_per_s), "n rate"], [span(each.p50_s)], [span(each.p99_s)]].map(([text, cls]) => make("td", text, cls ?? "n")));
    return row;
  }));
}

function update(now) {
  const server = now.server, monitor = now.monitor, lag = monitor?.lag, reasons = server.reasons;
  points = points.concat(monitor?.history ?? []).slice(-KEPT);
  tiles(server, lag);
  chart("ages", [{name: "Redis", color: "user", column: 1}, {name: "mirrors", color: "score", column: 3}, {name: "probe", color: "retrieval", column: 4}], span, .1);
  chart("records", [{name: "waiting", color: "user", column: 2}], (n) => number(n, 0), 10);
  histogram(now.freshness);
  const stages = server.requests.stages_ms ?? {}, some = known(stages.total);
  $("stages-note").textContent = some ? `Medians of the last ${number(Math.min(server.requests.by_status[200], 2048), 0)} answers; without the overlap ${span(stages.overlap_saved.p50 / 1000)} more.` : "None was answered yet.";
  if (some) gantt($("stages"), Object.fromEntries(Object.entries(stages).map(([stage, found]) => [stage, found.p50])));
  chips("degraded", server.requests.degraded, "none");
  chips("letters", lag?.dead_letters, lag ? "none since the workers began" : "unknown");
  versions(server, monitor?.versions);
  watched(lag);
  gap(lag?.explanations);
  $("version").textContent = server.model_version ?? "no version";
  $("state").textContent = reasons.length ? "not ready: " + reasons.join("; ") : "ready";
  $("state").dataset.is = reasons.length ? "bad" : "good";
  show($("notice"), now.problem ? now.problem + ": lag, consumers and dead letters are not shown" : "");
  document.body.dataset.at = now.at_ms;
}

const events = new EventSource("/v1/overview/events");
events.addEventListener("now", (event) => update(JSON.parse(event.data)));
events.addEventListener("error", () => {
  $("state").textContent = "not reachable";
  $("state").dataset.is = "bad";
  points = [];
  show($("notice"), "This server does not answer; trying again.");
});

function answer(result) {
  const c = result.coverage, f = result.freshness;
  $("summary").textContent = `Version ${result.model_version}: ${number(c.scored, 0)} of ${number(c.candidates, 0)} candidates scored`
    + (c.recomputed ? `, ${c.recomputed} recomputed` : "") + (c.missing ? `, ${c.missing} missing` : "")
    + `. Row age p50 ${span(f.age_ms.p50 / 1000)}, oldest ${span(f.age_ms.max / 1000)}. Overlap saved ${number(result.timings_ms.overlap_saved, 2)} ms.`
    + (result.degraded.length ? ` Fell short of: ${result.degraded.join(", ")}.` : "");
  gantt($("bars"), result.timings_ms);
  $("items").replaceChildren(...result.items.map((item, i) => {
    const row = make("tr");
    row.append(make("td", i + 1, "n"), make("td", item.item_id), make("td", item.score.toFixed(4), "n"));
    return row;
  }));
  $("answer").hidden = false;
}

$("ask").addEventListener("submit", async (event) => {
  event.preventDefault();
  const form = new FormData(event.target), ids = form.get("candidates").split(/[\s,]+/).filter(Boolean);
  const body = {user_id: form.get("user"), k: Number(form.get("k"))};
  if (ids.length) body.candidates = ids;
  show($("rank-error"), "");
  try {
    const reply = await fetch("/v1/rank", {method: "POST", headers: {"content-type": "application/json"}, body: JSON.stringify(body)});
    const result = await reply.json();
    if (reply.ok) return answer(result);
    const fields = (result.errors ?? []).filter((e) => e.field).map((e) => `${e.field}: ${e.problem}`);
    show($("rank-error"), `${result.status} ${result.title}: ${fields.join("; ") || result.detail}`);
  } catch (error) {
    show($("rank-error"), `No answer: ${error.message}`);
  }
  $("answer").hidden = true;
});
