"use strict";
// Draws the charts in the page's own colours, places their labels, lets videos play while they are in sight, and
// makes the page ready for paper. Everything it needs is in the page.
(() => {
  const root = document.documentElement;
  const charts = [...document.querySelectorAll(".chart")];
  const stillness = matchMedia("(prefers-reduced-motion: reduce)");
  const darkness = matchMedia("(prefers-color-scheme: dark)");
  const paper = matchMedia("print");
  const CONFIG = { displayModeBar: false, responsive: false, scrollZoom: false, doubleClick: false, showTips: false };
  const PAPER_PX = 660;
  const LINE_LETTERS = 42;  // of an axis's title on a phone
  let printing = false;

  // ---- charts

  function coloured(node, style) {
    if (typeof node === "string") {
      const name = /^var\((--[\w-]+)\)$/.exec(node);
      return name ? style.getPropertyValue(name[1]).trim() : node;
    }
    if (Array.isArray(node)) return node.map((one) => coloured(one, style));
    if (node === null || typeof node !== "object") return node;
    return Object.fromEntries(Object.entries(node).map(([key, one]) => [key, coloured(one, style)]));
  }

  function draw(chart) {
    const told = JSON.parse(document.getElementById(chart.dataset.figure).textContent);
    const { data, layout } = coloured(told, getComputedStyle(root));
    const width = printing ? PAPER_PX : Math.floor(chart.getBoundingClientRect().width);
    if (!width) return;  // in a closed part of the page, where the browser gives it no room: drawn when that opens
    chart.drawnWidth = width;
    Object.assign(layout, { width, autosize: false });
    layout.font.family = getComputedStyle(document.body).fontFamily;
    if (width < 480) {
      layout.font.size = 11;
      const words = layout.xaxis.title.text.replace(" (", "<br>(");
      layout.xaxis.title.text = words.indexOf("<br>") > LINE_LETTERS ? words.replace(": ", ":<br>") : words;
    }
    Plotly.react(chart, data, layout, CONFIG);
    placeLabels(chart);
  }

  // Labels beside their points, clear of points, bars and each other; a thin line leads to those that had to move away.
  function placeLabels(chart) {
    const full = chart._fullLayout;
    const traces = chart.data.filter((trace) => trace.meta === "labelled");
    if (!traces.length) return;
    const pen = document.createElement("canvas").getContext("2d");
    const size = Math.max(10, full.font.size - 1);
    const taken = [];
    const points = [];
    for (const trace of traces) {
      trace.x.forEach((x, i) => {
        const [px, py] = [full.xaxis.l2p(x), full.yaxis.l2p(trace.y[i])];
        taken.push([px - 8, py - 8, px + 8, py + 8]);
        for (const box of bars(trace, i, full, px, py)) taken.push(box);
        points.push({ x, y: trace.y[i], px, py, text: trace.text[i], strong: trace.marker.size > 14 });
      });
    }
    for (const box of noteBoxes(chart)) taken.push([...box, 30]);
    points.sort((a, b) => b.strong - a.strong || crowd(b, points) - crowd(a, points));
    const labels = points.map((point) => {
      pen.font = `${point.strong ? "bold " : ""}${size}px ${full.font.family}`;
      const half = [pen.measureText(point.text).width / 2 + 3, size / 2 + 2];
      const best = bestPlace(point, half, taken, full._size);
      taken.push([...best.box, 30]);  // a label hides a label, a point only touches it
      const far = best.distance > 34;
      return {
        x: point.x, y: point.y, xref: "x", yref: "y", ax: best.dx, ay: best.dy, axref: "pixel", ayref: "pixel",
        text: point.strong ? `<b>${point.text}</b>` : point.text, font: { size }, showarrow: true, arrowhead: 0,
        arrowwidth: 1, standoff: 6, arrowcolor: far ? full.xaxis.linecolor : "rgba(0,0,0,0)", borderpad: 1,
      };
    });
    const kept = (chart.layout.annotations || []).filter((note) => !note.showarrow);
    Plotly.relayout(chart, { annotations: [...kept, ...labels] });
  }

  function bars(trace, i, full, px, py) {
    const found = [];
    const [ex, ey] = [trace.error_x || {}, trace.error_y || {}];
    if (ex.array) found.push([full.xaxis.l2p(trace.x[i] + ex.array[i]), py - 2, full.xaxis.l2p(trace.x[i] - ex.arrayminus[i]), py + 2]);
    if (ey.array) found.push([px - 2, full.yaxis.l2p(trace.y[i] + ey.array[i]), px + 2, full.yaxis.l2p(trace.y[i] - ey.arrayminus[i])]);
    return found.map(([a, b, c, d]) => [Math.min(a, c), Math.min(b, d), Math.max(a, c), Math.max(b, d)]);
  }

  function noteBoxes(chart) {
    const frame = chart.querySelector(".nsewdrag")?.getBoundingClientRect();
    if (!frame) return [];
    return [...chart.querySelectorAll(".annotation")].map((note) => {
      const box = note.getBoundingClientRect();
      return [box.left - frame.left, box.top - frame.top, box.right - frame.left, box.bottom - frame.top];
    });
  }

  const crowd = (one, points) => points.filter((other) => Math.hypot(one.px - other.px, one.py - other.py) < 60).length;

  function bestPlace(point, [halfWidth, halfHeight], taken, frame) {
    let best = null;
    for (const radius of [0, 8, 18, 30, 44, 60, 78, 98]) {
      for (let turn = 0; turn < 16; turn += 1) {
        const angle = (turn * Math.PI) / 8;
        const dx = Math.cos(angle) * (halfWidth + 9 + radius);
        const dy = Math.sin(angle) * (halfHeight + 9 + radius);
        const [x, y] = [point.px + dx, point.py + dy];
        const box = [x - halfWidth, y - halfHeight, x + halfWidth, y + halfHeight];
        const outside = Math.max(0, -box[0]) + Math.max(0, box[2] - frame.w) + Math.max(0, -box[1]) + Math.max(0, box[3] - frame.h);
        const cost = taken.reduce((sum, other) => sum + overlap(box, other), 0) + 40 * outside + 1.5 * radius + 4 * Math.abs(Math.sin(2 * angle));
        const distance = Math.hypot(Math.max(0, Math.abs(dx) - halfWidth), Math.max(0, Math.abs(dy) - halfHeight)) + radius / 2;
        if (!best || cost < best.cost) best = { cost, box, dx, dy, distance };
      }
    }
    return best;
  }

  function overlap(a, b) {
    const [width, height] = [Math.min(a[2], b[2]) - Math.max(a[0], b[0]), Math.min(a[3], b[3]) - Math.max(a[1], b[1])];
    return width > 0 && height > 0 ? (b[4] || 1) * (20 + width * height) : 0;
  }

  const drawAll = () => charts.forEach(draw);
  const resized = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      if (!printing && Math.floor(target.getBoundingClientRect().width) !== target.drawnWidth) draw(target);
    }
  });
  charts.forEach((chart) => { draw(chart); resized.observe(chart); });
  darkness.addEventListener("change", drawAll);

  // ---- videos: they play while in sight, unless motion is unwanted or somebody has paused them

  const sight = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (!isIntersecting) target.pause();
      else if (!stillness.matches && !target.held) target.play().catch(() => {});
    }
  }, { threshold: 0.25 });
  for (const video of document.querySelectorAll("video")) {
    const button = video.closest("figure").querySelector(".play");
    const words = button.getAttribute("aria-label").replace(/^Play/, "");
    const toggle = () => {
      video.held = !video.paused;
      if (video.held) video.pause();
      else video.play().catch(() => {});
    };
    const tell = () => {
      button.textContent = video.paused ? "Play" : "Pause";
      button.setAttribute("aria-label", button.textContent + words);
    };
    for (const control of [video, button]) control.addEventListener("click", toggle);
    for (const change of ["play", "pause"]) video.addEventListener(change, tell);
    sight.observe(video);
  }
  stillness.addEventListener("change", () => {
    if (stillness.matches) document.querySelectorAll("video").forEach((video) => video.pause());
  });

  // ---- paper: everything open, light colours, charts as wide as the page

  function toPaper() {
    if (printing) return;
    printing = true;
    root.dataset.theme = "light";
    for (const part of document.querySelectorAll("details")) {
      part.wasOpen = part.open;
      part.open = true;
    }
    drawAll();
  }

  function fromPaper() {
    if (!printing) return;
    printing = false;
    delete root.dataset.theme;
    for (const part of document.querySelectorAll("details")) part.open = part.wasOpen;
    drawAll();
  }

  addEventListener("beforeprint", toPaper);
  addEventListener("afterprint", fromPaper);
  paper.addEventListener("change", () => (paper.matches ? toPaper() : fromPaper()));
})();
