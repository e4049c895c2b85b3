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
      const figures = [...steps.children];
      const before = figures.filter((figure) => Number(figure.dataset.seen) <= seen);
      const shown = before[before.length - 1] || figures[0];
      for (const figure of figures) figure.classList.toggle("shown", figure === shown);
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

function tooltips(figure) {
  const canvas = figure.querySelector(".canvas"), svg = canvas.querySelector("svg"), tip = canvas.querySelector(".tip");
  const data = JSON.parse(figure.querySelector("script").textContent);
  const stops = [...new Set(data.series.flat().map((point) => point[0]))].sort((a, b) => a - b);
  if (!stops.length) return;
  const size = svg.viewBox.baseVal;
  const cursor = svg.querySelector(".axis").cloneNode();
  cursor.setAttribute("class", "cursor");
  let at = stops.length - 1;
  const nearest = (points, x) => points.reduce((a, b) => (Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a));
  const show = (points) => {
    const x = points[0][0];
    tip.textContent = [points[0][2], ...points.map((point) => point[3])].join("\n");
    tip.hidden = false;
    for (const [name, value] of Object.entries({ x1: x, x2: x, y1: 10, y2: size.height - 40 })) cursor.setAttribute(name, value);
    if (!data.scatter) svg.append(cursor);
    const scale = canvas.clientWidth / size.width, room = canvas.clientWidth - tip.offsetWidth;
    const wanted = x * scale + (x > size.width / 2 ? -tip.offsetWidth - 10 : 10);
    tip.style.left = Math.max(0, Math.min(room, wanted)) + "px";
  };
  const showAt = (x) => {
    at = stops.indexOf(stops.reduce((a, b) => (Math.abs(b - x) < Math.abs(a - x) ? b : a)));
    const near = data.series.filter((points) => points.length).map((points) => nearest(points, stops[at]));
    show(near.filter((point) => Math.abs(point[0] - stops[at]) < 2));
  };
  const hide = () => { tip.hidden = true; cursor.remove(); };
  canvas.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect(), scale = size.width / box.width;
    const x = (event.clientX - box.left) * scale, y = (event.clientY - box.top) * scale;
    if (!data.scatter) return showAt(x);
    const away = (point) => Math.hypot(point[0] - x, point[1] - y);
    show([data.series.flat().reduce((a, b) => (away(b) < away(a) ? b : a))]);
  });
  canvas.addEventListener("pointerleave", hide);
  canvas.addEventListener("blur", hide);
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, Home: -stops.length, End: stops.length }[event.key];
    if (event.key === "Escape") return hide();
    if (!step) return;
    event.preventDefault();
    showAt(stops[Math.max(0, Math.min(stops.length - 1, tip.hidden && Math.abs(step) === 1 ? at : at + step))]);
  });
}

function start() {
  slider();
  document.querySelectorAll(".plot").forEach(tooltips);
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
