"use strict";
// One film holds the raw picture left and the anonymized one right; everything here is drawn from its two halves.
for (const viewer of document.querySelectorAll(".viewer")) {
  const find = (name) => viewer.querySelector(name);
  const { fps, frames, first, width, height } = Object.fromEntries(
    Object.entries(viewer.dataset).map(([name, value]) => [name, Number(value)]));
  const video = find("video"), canvas = find("canvas"), pen = canvas.getContext("2d");
  const over = find(".over"), split = find(".split"), zoom = find(".zoom"), scroll = find(".frame");
  const scale = Math.max(1, Math.round(480 / height)); // so that zoomed pixels have edges
  let x = width / 2, y = height / 2; // the middle of what is seen

  function draw() {
    const near = Number(zoom.value), w = width / near, h = height / near;
    x = Math.min(Math.max(x, w / 2), width - w / 2);
    y = Math.min(Math.max(y, h / 2), height - h / 2);
    const left = x - w / 2, top = y - h / 2, wide = width * scale, high = height * scale;
    const shownWide = over.checked ? wide : 2 * wide;
    if (canvas.width !== shownWide || canvas.height !== high) {
      canvas.width = shownWide;
      canvas.height = high;
    }
    pen.imageSmoothingEnabled = near < 2;
    if (over.checked) {
      const part = split.value / 100;
      pen.drawImage(video, width + left, top, w, h, 0, 0, wide, high);
      if (part > 0) pen.drawImage(video, left, top, w * part, h, 0, 0, wide * part, high);
      pen.fillStyle = "#fff";
      pen.fillRect(wide * part - 1, 0, 2, high);
    } else {
      pen.drawImage(video, left, top, w, h, 0, 0, wide, high);
      pen.drawImage(video, width + left, top, w, h, wide, 0, wide, high);
    }
    const place = now();
    if (document.activeElement !== scroll || !video.paused) scroll.value = place;
    find(".number").textContent = `${place + 1} / ${frames}`;
  }
  const now = () => Math.min(frames - 1, Math.floor(video.currentTime * fps + 1e-3));
  function show(place) {
    video.pause();
    video.currentTime = (Math.min(Math.max(place, 0), frames - 1) + 0.5) / fps; // the middle of a frame is never its neighbour
  }
  function begin() {
    if (first && !video.currentTime) show(first); // a motion model's first frames are black
    else draw();
  }
  function tick() {
    draw();
    if (!video.paused) requestAnimationFrame(tick);
  }
  find(".play").addEventListener("click", () => (video.paused ? video.play() : video.pause()));
  video.addEventListener("play", () => { find(".play").textContent = "Pause"; tick(); });
  video.addEventListener("pause", () => { find(".play").textContent = "Play"; draw(); });
  video.addEventListener("loadeddata", begin);
  video.addEventListener("seeked", draw);
  find(".back").addEventListener("click", () => show(now() - 1));
  find(".forth").addEventListener("click", () => show(now() + 1));
  scroll.addEventListener("input", () => show(Number(scroll.value)));
  over.addEventListener("change", () => { split.disabled = !over.checked; draw(); });
  for (const one of [split, zoom]) one.addEventListener("input", draw);
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step) { show(now() + step); event.preventDefault(); }
  });
  canvas.addEventListener("pointerdown", (event) => canvas.setPointerCapture(event.pointerId));
  canvas.addEventListener("pointermove", (event) => {
    if (!canvas.hasPointerCapture(event.pointerId)) return;
    const pixels = (over.checked ? width : 2 * width) / canvas.clientWidth / Number(zoom.value);
    x -= event.movementX * pixels;
    y -= event.movementY * pixels;
    draw();
  });
  if (video.readyState >= 2) begin();
}
