"use strict";
const root = document.documentElement;
root.classList.add("js");

// What a page remembers while it is reloaded; a browser may forbid it.
const memory = {
  get(key) { try { return sessionStorage.getItem(location.pathname + key); } catch { return null; } },
  set(key, value) { try { sessionStorage.setItem(location.pathname + key, value); } catch { /* not remembered */ } },
};

function themeSwitch() {
  const button = document.getElementById("theme");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme || (dark.matches ? "dark" : "light")) === "dark";
  const label = () => { button.textContent = isDark() ? "Light theme" : "Dark theme"; };
  if (memory.get("theme")) root.dataset.theme = memory.get("theme");
  button.hidden = false;
  button.onclick = () => { root.dataset.theme = isDark() ? "light" : "dark"; memory.set("theme", root.dataset.theme); label(); };
  dark.addEventListener("change", label);
  label();
}

function slider() {
  const input = document.getElementById("seen");
  if (!input) return;
  const places = JSON.parse(input.dataset.places);
  const output = input.parentElement.querySelector("output");
  const show = () => {
    const [seen, text] = places[input.value];
    output.textContent = text;
    input.setAttribute("aria-valuetext", text + " images seen");
    for (const steps of document.querySelectorAll(".steps")) {
      const grids = [...steps.children];
      const before = grids.filter((grid) => Number(grid.dataset.seen) <= seen);
      const shown = before[before.length - 1] || grids[0];
      for (const grid of grids) grid.classList.toggle("shown", grid === shown);
    }
  };
  // The newest place follows a run that goes on; any other stays where it is.
  const kept = places.findIndex((place) => String(place[0]) === memory.get("seen"));
  if (kept >= 0) input.value = kept;
  input.addEventListener("input", () => {
    memory.set("seen", Number(input.value) === places.length - 1 ? "" : places[input.value][0]);
    show();
  });
  input.parentElement.hidden = false;
  show();
}

// -- enlarging: one dialog, for a picture beside the others' of its prompt, or for a plot

function element(name, attributes = {}, ...children) {
  const made = Object.assign(document.createElement(name), attributes);
  made.append(...children);
  return made;
}

function enlarge(className, ...content) {
  const dialog = document.getElementById("large");
  const close = element("button", { type: "button", textContent: "Close", className: "close", onclick: () => dialog.close() });
  dialog.className = className;
  dialog.onkeydown = null;
  dialog.replaceChildren(close, ...content);
  dialog.onclick = (event) => { if (event.target === dialog) dialog.close(); };
  if (!dialog.open) dialog.showModal();
  return dialog;
}

function pictures(wall) {
  const grid = wall.querySelector(".pictures");
  if (!grid) return;
  const show = (at) => {
    const shown = [...document.querySelectorAll(".step")].filter((step) => step.checkVisibility());
    const most = Math.max(...shown.map((step) => step.querySelectorAll("img").length));
    at = (at + most) % most;
    const found = shown.map((step) => [step.dataset.who, step.querySelectorAll("img")[at], step.querySelectorAll("figcaption")[at]]);
    const caption = (found.find(([, , text]) => text) || [])[2];
    const figures = found.filter(([, image]) => image).map(([who, image]) => {
      const figure = element("figure", {}, image.cloneNode(), element("figcaption", { textContent: who }));
      figure.style.setProperty("--ratio", image.naturalWidth / image.naturalHeight);
      return figure;
    });
    const turn = (step, text, label) => element("button", { type: "button", textContent: text, ariaLabel: label, onclick: () => show(at + step) });
    const turns = most > 1 ? [element("p", { className: "turns" }, turn(-1, "←", "Prompt before"), turn(1, "→", "Next prompt"))] : [];
    const heading = element("h2", { textContent: caption ? caption.textContent : "" });
    enlarge("enlarged", heading, element("div", { className: "row" }, ...figures), ...turns).onkeydown = (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (step) show(at + step);
    };
  };
  for (const step of wall.querySelectorAll(".pictures")) {
    step.tabIndex = 0;
    step.setAttribute("aria-label", step.getAttribute("aria-label") + "; Enter enlarges them");
    step.onclick = (event) => { if (event.target.matches("img")) show([...step.querySelectorAll("img")].indexOf(event.target)); };
    // Not Enter itself, which would press the dialog's first button.
    step.onkeydown = (event) => { if (event.key === "Enter") { event.preventDefault(); show(0); } };
  }
}

// -- plots: Python says where everything is along each axis, in [0, 1]; here it is drawn, in pixels

const short = (value) => (Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(3))));
const count = (value) => (value >= 1e6 ? Number((value / 1e6).toPrecision(4)) + "M" : Math.round(value).toLocaleString("en"));
const escaped = (text) => text.replace(/[&<>"]/g, (letter) => `&#${letter.charCodeAt(0)};`);

function plot(figure, large) {
  const canvas = figure.querySelector(".canvas"), svg = canvas.querySelector("svg"), tip = canvas.querySelector(".tip");
  if (!svg) return;
  const data = JSON.parse(figure.querySelector("script").textContent);
  const [left, right, top, bottom] = data.frame;
  let [x, y] = data.shown, points = [], width, height;

  const draw = () => {
    const across = data.across[x], down = data.down[y];
    width = svg.clientWidth, height = svg.clientHeight;
    const place = (at) => left + at * (width - left - right), level = (at) => height - bottom - at * (height - top - bottom);
    const end = width - right, base = height - bottom;
    const text = (a, b, anchor, what) => `<text x="${a}" y="${b}" text-anchor="${anchor}">${escaped(what)}</text>`;
    const line = (css, x1, x2, y1, y2) => `<line class="${css}" x1="${x1}" x2="${x2}" y1="${y1}" y2="${y2}"/>`;
    const parts = down.held.map(([low, high]) => high > low
      ? `<rect class="span" x="${left}" y="${level(high)}" width="${end - left}" height="${Math.max(1, level(low) - level(high))}"/>`
      : line("held", left, end, level(high), level(high)));
    for (const [at, what] of down.ticks) parts.push(line("grid", left, end, level(at), level(at)), text(left - 6, level(at) + 4, "end", what));
    for (const [at, what] of across.ticks) parts.push(line("tick", place(at), place(at), base, base + 4), text(place(at), base + 17, "middle", what));
    parts.push(line("axis", left, end, base, base), text(end, height - 6, "end", across.label));
    points = data.series.map((series, i) => across.at[i].map((at, j) => {
      const up = down.at[i][j];
      return at === null || up === null ? null : { x: place(at), y: level(up), i, j };
    }));
    data.series.forEach((series, i) => {
      const found = points[i], alone = (j) => found[j] && !found[j - 1] && !found[j + 1];
      const steps = found.map((point, j) => point && `${found[j - 1] ? "L" : "M"}${point.x.toFixed(1)} ${point.y.toFixed(1)}`);
      if (series.joined) parts.push(`<path class="line ${series.css}" d="${steps.filter(Boolean).join("")}"/>`);
      found.forEach((point, j) => {
        if (!point || !(series.marked.includes(j) || alone(j))) return;
        parts.push(`<path class="${series.hollow ? "hollow" : "dot"} ${series.css}" transform="translate(${point.x} ${point.y})" d="${series.mark}"/>`);
        const spot = data.spots[x] && data.spots[x][i][j];
        if (spot) parts.push(text(point.x + spot[0], point.y + spot[1], spot[2], series.labels[j]));
      });
    });
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.innerHTML = parts.join("");
  };

  // Values under the pointer or by arrow keys: of all series at a place, or in a scatter plot of the nearest point.
  let at = -1;
  const stops = () => [...new Set(points.flat().filter(Boolean).map((point) => point.x))].sort((a, b) => a - b);
  const said = ({ i, j }) => {
    const series = data.series[i];
    if (!data.scatter) return `${series.name} ${short(series.y[j])}`;
    const label = series.labels[j] ? series.labels[j] + ": " : "";
    return `${label}${data.x} ${short(series.x[j])}, ${data.y} ${short(series.y[j])}`;
  };
  const hide = () => { tip.hidden = true; svg.querySelector(".cursor")?.remove(); };
  const show = (found) => {
    hide();
    const { x: here, i, j } = found[0], series = data.series[i];
    tip.textContent = [data.scatter ? series.name : count(series.x[j]) + " images", ...found.map(said)].join("\n");
    tip.hidden = false;
    if (!data.scatter) {
      const cursor = svg.querySelector(".axis").cloneNode();
      for (const [name, v] of Object.entries({ class: "cursor", x1: here, x2: here, y1: top, y2: height - bottom })) cursor.setAttribute(name, v);
      svg.append(cursor);
    }
    const room = canvas.clientWidth - tip.offsetWidth, wanted = here + (here > width / 2 ? -tip.offsetWidth - 10 : 10);
    tip.style.left = Math.max(0, Math.min(room, wanted)) + "px";
  };
  const nearest = (all, away) => all.reduce((a, b) => (away(b) < away(a) ? b : a));
  const showAt = (place) => {
    at = nearest(stops(), (stop) => Math.abs(stop - place));
    const near = points.map((found) => found.filter(Boolean)).filter((found) => found.length)
      .map((found) => nearest(found, (point) => Math.abs(point.x - at)));
    show(near.filter((point) => Math.abs(point.x - at) < 2));
  };
  canvas.onpointermove = (event) => {
    const box = svg.getBoundingClientRect(), px = event.clientX - box.left, py = event.clientY - box.top;
    if (!data.scatter) return showAt(px);
    show([nearest(points.flat().filter(Boolean), (point) => Math.hypot(point.x - px, point.y - py))]);
  };
  canvas.onpointerleave = canvas.onblur = hide;
  canvas.onkeydown = (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, Home: -1e9, End: 1e9 }[event.key];
    if (event.key === "Escape" && !tip.hidden) { event.preventDefault(); return hide(); }
    if (!step) return;
    event.preventDefault();
    const all = stops(), now = all.indexOf(at);
    const next = tip.hidden && Math.abs(step) === 1 ? (now < 0 ? all.length - 1 : now) : now + step;
    showAt(all[Math.max(0, Math.min(all.length - 1, next))]);
  };

  const csv = () => {
    const quoted = (text) => (/[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
    const head = data.scatter ? ["series", "label", data.x, data.y] : ["series", "images_seen", "seconds_of_training", data.y];
    const rows = data.series.flatMap((series) => series.x.map((images, j) => data.scatter
      ? [series.name, series.labels[j], images, series.y[j]]
      : [series.name, images, series.seconds ? series.seconds[j] : "", series.y[j] ?? ""]));
    const text = [head, ...rows].map((row) => row.map((cell) => quoted(String(cell))).join(",")).join("\n") + "\n";
    const link = element("a", { href: URL.createObjectURL(new Blob([text], { type: "text/csv" })), download: figure.dataset.key + ".csv" });
    link.click();
    URL.revokeObjectURL(link.href);
  };
  const choice = (label, names, chosen, choose) => element("label", {}, label + " ", element("select", { onchange: (event) => { choose(event.target.value); hide(); draw(); } },
    ...names.map((name) => element("option", { textContent: name, selected: name === chosen }))));
  if (large) {
    figure.querySelector("figcaption").after(element("p", { className: "controls" },
      choice("Horizontal", Object.keys(data.across), x, (name) => { x = name; }),
      choice("Vertical", Object.keys(data.down), y, (name) => { y = name; }),
      element("button", { type: "button", textContent: "Save CSV", onclick: csv })));
  } else {
    const open = () => {
      const copy = figure.cloneNode(true);
      copy.dataset.key = copy.id;
      copy.removeAttribute("id");
      copy.querySelector(".enlarge").remove();
      enlarge("enlarged", copy);
      plot(copy, true);
    };
    figure.querySelector("figcaption").append(element("button", { type: "button", className: "enlarge", textContent: "Enlarge", onclick: open }));
  }
  new ResizeObserver(() => { if (svg.clientWidth) { hide(); draw(); } }).observe(svg);
  if (svg.clientWidth) draw();
}

function start() {
  slider();
  document.querySelectorAll(".wall").forEach(pictures);
  document.querySelectorAll("main .plot").forEach((figure) => plot(figure, false));
}

// While `sidlsg report --live` serves the page: fetch it again when the run has written something.
function live() {
  let version = document.body.dataset.live;
  const status = document.getElementById("live");
  if (!version) return;
  const poll = async () => {
    try {
      const newest = await (await fetch("version", { cache: "no-store" })).text();
      if (newest !== version) {
        const page = new DOMParser().parseFromString(await (await fetch(".", { cache: "no-store" })).text(), "text/html");
        const focused = document.activeElement && document.activeElement.id;
        const open = [...document.querySelectorAll("details")].map((fold) => fold.open);
        for (const part of ["main", "footer time"]) document.querySelector(part).replaceWith(page.querySelector(part));
        document.querySelectorAll("details").forEach((fold, i) => { fold.open = Boolean(open[i]); });
        version = newest;
        start();
        if (focused) document.getElementById(focused)?.focus();
      }
      status.textContent = "Live: follows the run.";
    } catch {
      status.textContent = "No answer from sidlsg report: this is the run as it was last.";
    }
    setTimeout(poll, 1500);
  };
  poll();
}

themeSwitch();
start();
live();
