"use strict";
// Unpacks the libraries, draws the figures, and plays frames in the 3D view.  Nothing here asks the network.
(async () => {
  const byId = (id) => document.getElementById(id);
  if (typeof DecompressionStream === "undefined") { byId("too-old").hidden = false; return; }

  const unpack = async (name) => {
    const packed = byId("packed-" + name);
    const bytes = Uint8Array.from(atob(packed.textContent), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
    packed.remove();
  };
  const data = JSON.parse(byId("data").textContent);
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const dark = matchMedia("(prefers-color-scheme: dark)");

  // ---- 3D ----
  await unpack("chemiscope");
  const { elements, bonds, sets } = data.molecule;
  const partners = elements.map(() => ({ bonds: [], bondOrder: [] }));
  for (const [i, j, order] of bonds) {
    partners[i].bonds.push(j); partners[i].bondOrder.push(order);
    partners[j].bonds.push(i); partners[j].bondOrder.push(order);
  }
  const atomsOf = (flat) => elements.map((elem, i) => ({
    elem, x: flat[3 * i] / 1000, y: flat[3 * i + 1] / 1000, z: flat[3 * i + 2] / 1000,
    bonds: [...partners[i].bonds], bondOrder: [...partners[i].bondOrder], serial: i, index: i }));
  const viewer = $3Dmol.createViewer(byId("view"), { backgroundColor: colour("--paper") });
  let shown = null, frame = 0, timer = null, busy = false;

  const draw = async (n) => {
    frame = n;
    byId("slider").value = n;
    byId("frame").textContent = `${sets[shown].words[n]} (${n + 1} of ${sets[shown].frames.length})`;
    busy = true;
    await viewer.setFrame(n);
    viewer.render();
    busy = false;
  };
  const stop = () => {
    clearInterval(timer); timer = null;
    byId("play").textContent = "Play"; byId("play").setAttribute("aria-pressed", "false");
  };
  const play = () => {
    if (timer !== null) { stop(); return; }
    byId("play").textContent = "Pause"; byId("play").setAttribute("aria-pressed", "true");
    timer = setInterval(() => { if (!busy) draw((frame + 1) % sets[shown].frames.length); }, 120);
  };
  const show = async (name) => {
    stop();
    shown = name;
    viewer.removeAllModels();
    const model = viewer.addModel();
    model.addAtoms(atomsOf(sets[name].frames[0]));
    sets[name].frames.forEach((flat) => model.addFrame(atomsOf(flat)));
    viewer.setStyle({}, { stick: { radius: 0.13, colorscheme: "Jmol" }, sphere: { scale: 0.25, colorscheme: "Jmol" } });
    viewer.zoomTo();
    viewer.zoom(1.3);
    byId("slider").max = sets[name].frames.length - 1;
    document.querySelectorAll("[data-card]").forEach((card) => card.classList.toggle("shown", card.dataset.card === name));
    await draw(0);
  };
  document.querySelectorAll("button.show").forEach((b) => b.addEventListener("click", () => {
    show(b.dataset.set);
    byId("view").scrollIntoView({ block: "nearest", behavior: "smooth" });
  }));
  byId("play").addEventListener("click", play);
  byId("slider").addEventListener("input", (event) => { stop(); draw(Number(event.target.value)); });
  await show(Object.keys(sets)[0]);

  // ---- figures ----
  await unpack("plotly");
  const paint = () => ({ paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", "font.color": colour("--ink"),
    "xaxis.gridcolor": colour("--line"), "yaxis.gridcolor": colour("--line"), "xaxis.zerolinecolor": colour("--line"),
    "yaxis.zerolinecolor": colour("--line"), "legend.bgcolor": "rgba(0,0,0,0)" });
  const figures = Object.entries(data.figures);
  const drawn = figures.map(([id, figure]) =>
    Plotly.newPlot(byId(id), figure.data, figure.layout,
      { responsive: true, displaylogo: false, scrollZoom: false, modeBarButtonsToRemove: ["select2d", "lasso2d"] })
      .then(() => Plotly.relayout(byId(id), paint())));
  await Promise.all(drawn);
  dark.addEventListener("change", () => {
    viewer.setBackgroundColor(colour("--paper"));
    viewer.render();
    figures.forEach(([id]) => Plotly.relayout(byId(id), paint()));
  });
  document.body.dataset.ready = "yes";
})();
