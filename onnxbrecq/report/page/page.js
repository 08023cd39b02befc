"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const phone = matchMedia("(max-width: 640px)");
  const id = (name) => document.getElementById(name);
  let wanted = "";

  // plotly reads a little HTML in what it shows: names stay text.
  const text = (value) =>
    String(value).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const short = (value) => (value.length > 60 ? value.slice(0, 28) + "…" + value.slice(-30) : value);
  const label = (value) => text(short(value));
  const color = (name) => getComputedStyle(document.body).getPropertyValue(name).trim();
  const fits = (name) => !wanted || name.toLowerCase().includes(wanted);
  const figure = (value, digits = 3) => (value === null ? "–" : Number(value).toPrecision(digits));

  function layout(more) {
    const axis = {
      gridcolor: color("--grid"), linecolor: color("--line"), zeroline: false, automargin: true,
      tickfont: { size: 11 }, title: { font: { size: 12 } }, fixedrange: phone.matches,
    };
    const { xaxis = {}, yaxis = {}, ...rest } = more;
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: "system-ui, sans-serif", color: color("--soft"), size: 12 },
      margin: { l: 46, r: 12, t: 34, b: 40 }, hovermode: "closest", bargap: 0.18,
      hoverlabel: { bgcolor: color("--card"), bordercolor: color("--line"), font: { color: color("--ink") }, align: "left" },
      legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, font: { size: phone.matches ? 10 : 12 } },
      xaxis: { ...axis, ...xaxis }, yaxis: { ...axis, ...yaxis }, ...rest,
    };
  }

  function draw(name, traces, more) {
    const where = id(name);
    if (!where) return;
    Plotly.react(where, traces, layout(more), { displayModeBar: false, responsive: true });
  }

  const shades = () => ({ 2: color("--warn"), 3: "#f2a33a", 4: color("--accent"), 8: color("--accent-2"), 16: color("--idle") });

  function bits() {
    const layers = data.layers, ticks = [2, 3, 4, 8].concat(layers.some((l) => l.activation_bits > 8) ? [16] : []);
    const shade = shades();
    const hover = layers.map((l) =>
      `<b>${label(l.name)}</b><br>${text(l.op)}<br>weights ${l.weight_bits ?? "float"} bits, data ${l.activation_bits ?? "float"} bits` +
      `<br>${l.parameters.toLocaleString("en")} parameters<br>${l.macs.toLocaleString("en")} MACs`);
    const x = layers.map((_, i) => i + 1);
    draw("chart-bits", [
      { type: "bar", name: "weights", x, y: layers.map((l) => l.weight_bits ?? 0), text: hover, hoverinfo: "text", textposition: "none",
        marker: { color: layers.map((l) => shade[l.weight_bits] ?? color("--idle")), opacity: layers.map((l) => (fits(l.name) ? 1 : 0.15)), cornerradius: 4 } },
      { type: "scatter", mode: "markers", name: "data", x, y: layers.map((l) => l.activation_bits), text: hover, hoverinfo: "text",
        marker: { color: color("--ink"), size: 8, symbol: "line-ew", line: { width: 2, color: color("--ink") }, opacity: layers.map((l) => (fits(l.name) ? 0.9 : 0.1)) } },
    ], { xaxis: { title: { text: "layer" }, showgrid: false }, yaxis: { title: { text: "bits" }, tickvals: ticks, range: [0, Math.max(...ticks) + 0.8] } });
  }

  function growth() {
    const x = data.growth.map((_, i) => i + 1);
    const line = (key, name, shade, dash) => ({
      type: "scatter", mode: "lines+markers", name, x, y: data.growth.map((b) => b[key]), connectgaps: true,
      text: data.growth.map((b) => `<b>${label(b.name)}</b><br>${name}: ${figure(b[key])}` +
        (b[key] > 0 ? ` (${(-10 * Math.log10(b[key])).toFixed(1)} dB)` : "")),
      hoverinfo: "text", line: { color: shade, width: 2.5, dash, shape: "linear" },
      marker: { size: 8, color: shade, opacity: data.growth.map((b) => (fits(b.name) ? 1 : 0.15)) },
    });
    const after = line("after", data.learned ? "reconstructed" : "as written", color("--accent"), "solid");
    const seen = data.growth.flatMap((b) => [b.before, b.after]).filter((e) => e > 0);
    const decades = Math.log10(Math.max(...seen) / Math.min(...seen));
    const known = data.growth.some((b) => b.before !== null);
    if (known) { after.fill = "tonexty"; after.fillcolor = color("--accent") + "1f"; }
    draw("chart-growth", known ? [line("before", "rounded to nearest", color("--warn"), "dot"), after] : [after],
      { xaxis: { title: { text: "block" }, dtick: x.length < 24 ? 1 : undefined }, yaxis: { type: "log", title: { text: "relative squared error" }, exponentformat: "power", dtick: decades > 1.5 ? 1 : "D2" } });
  }

  const middles = (edges) => edges.slice(1).map((edge, i) => (edge + edges[i]) / 2);

  function weights(where, layer) {
    if (!layer.weights) { id(where)?.classList.add("hidden"); return; }
    const { edges, shares } = layer.weights, width = edges[1] - edges[0];
    const gap = layer.levels.length > 1 ? Math.min(...layer.levels.slice(1).map((l, i) => l[0] - layer.levels[i][0])) : 1;
    const traces = [{
      type: "scatter", mode: "lines", name: "float", x: middles(edges), y: shares.map((s) => s * gap / width), fill: "tozeroy",
      line: { color: color("--accent"), width: 1.5, shape: "spline" }, fillcolor: color("--accent") + "33", hoverinfo: "skip",
    }];
    const sparse = layer.levels.length <= 40;
    traces.push({
      type: "bar", name: "rounded", x: layer.levels.map((l) => l[0]), y: layer.levels.map((l) => l[1]), width: sparse ? gap * 0.16 : gap * 0.9,
      marker: { color: color("--accent-2"), opacity: sparse ? 1 : 0.55 }, hovertemplate: "integer %{x}: %{y:.1%}<extra></extra>",
    });
    draw(where, traces, { showlegend: false, margin: { l: 34, r: 6, t: 8, b: 34 }, xaxis: { title: { text: "weight, in steps" }, showgrid: false },
      yaxis: { tickformat: ".0%", nticks: 4 } });
  }

  function values(where, layer) {
    if (!layer.data) { id(where)?.classList.add("hidden"); return; }
    const { edges, shares } = layer.data, shapes = [];
    if (layer.low !== null) {
      shapes.push({ type: "rect", xref: "x", yref: "paper", x0: layer.low, x1: layer.high, y0: 0, y1: 1, line: { width: 0 }, fillcolor: color("--accent-2") + "22", layer: "below" });
      const count = Math.round((layer.high - layer.low) / layer.step);
      for (let i = 0; count <= 32 && i <= count; i++) {
        const x = layer.low + i * layer.step;
        shapes.push({ type: "line", xref: "x", yref: "paper", x0: x, x1: x, y0: 0, y1: 1, line: { color: color("--accent-2"), width: 1 }, layer: "below" });
      }
      for (const x of [layer.low, layer.high])
        shapes.push({ type: "line", xref: "x", yref: "paper", x0: x, x1: x, y0: 0, y1: 1, line: { color: color("--accent-2"), width: 1.5, dash: "dot" } });
    }
    draw(where, [{
      type: "bar", x: middles(edges), y: shares, width: edges[1] - edges[0], marker: { color: color("--accent"), line: { width: 0 } },
      hovertemplate: "%{x:.3g}: %{y:.2%}<extra></extra>",
    }], { showlegend: false, bargap: 0, shapes, margin: { l: 40, r: 6, t: 8, b: 34 }, xaxis: { title: { text: "data" }, showgrid: false },
      yaxis: { type: "log", dtick: 2, exponentformat: "power", tickfont: { size: 10 } } });
  }

  function latency() {
    const rows = [...data.latencies].reverse();
    if (!rows.length) return;
    const names = rows.map((l) => `batch ${l.batch}, ${l.threads} thread${l.threads > 1 ? "s" : ""}`);
    const bar = (name, key, shade) => ({ type: "bar", orientation: "h", name, y: names, x: rows.map((l) => l[key] / l.batch), marker: { color: shade, cornerradius: 4 }, hovertemplate: "%{y}<br>" + name + ": %{x:.3g} ms a sample<extra></extra>" });
    const quantized = bar("quantized", "latency_ms", color("--accent-2"));
    quantized.text = rows.map((l) => `${l.speedup.toFixed(2)}×` + (l.interval_95 && !phone.matches ? ` (${l.interval_95[0].toFixed(2)} to ${l.interval_95[1].toFixed(2)})` : ""));
    quantized.textposition = "outside"; quantized.cliponaxis = false; quantized.textfont = { size: 11, color: color("--ink") };
    const longest = Math.max(...rows.map((l) => Math.max(l.float_latency_ms, l.latency_ms * 1.35) / l.batch));
    draw("chart-latency", [bar("float", "float_latency_ms", color("--idle")), quantized],
      { barmode: "group", xaxis: { title: { text: "milliseconds a sample" }, range: [0, longest * 1.03] }, yaxis: { showgrid: false } });
  }

  function front() {
    if (!data.front) return;
    const points = data.front.points, hover = (p) => `<b>${label(p.label)}</b><br>${figure(p.cost, 4)} ${text(data.front.unit)}<br>loss ${figure(p.loss)}`;
    const chosen = points.filter((p) => p.chosen);
    draw("chart-front", [
      { type: "scatter", mode: "lines+markers", name: "front", x: points.map((p) => p.cost), y: points.map((p) => p.loss), text: points.map(hover), hoverinfo: "text",
        line: { color: color("--accent"), shape: "hv", width: 2 }, marker: { size: 7, color: color("--card"), line: { color: color("--accent"), width: 2 } } },
      { type: "scatter", mode: "markers", name: "this model", x: chosen.map((p) => p.cost), y: chosen.map((p) => p.loss), text: chosen.map(hover), hoverinfo: "text",
        marker: { size: 14, color: color("--accent-2"), symbol: "diamond" } },
    ], { xaxis: { title: { text: text(data.front.unit) } }, yaxis: { type: "log", title: { text: "predicted loss" }, exponentformat: "power" } });
  }

  function all() {
    bits(); growth(); latency(); front();
    data.worst.forEach((layer, i) => { weights(`weights-${i}`, layer); values(`data-${i}`, layer); });
  }

  function search() {
    wanted = id("search").value.trim().toLowerCase();
    let hits = 0;
    for (const element of document.querySelectorAll("[data-name]")) {
      const shown = fits(element.dataset.name);
      element.classList.toggle("hidden", !shown);
      hits += shown;
    }
    for (const element of document.querySelectorAll("[data-mark]")) element.classList.toggle("dim", !fits(element.dataset.mark));
    id("hits").textContent = wanted ? String(hits) : "";
    bits(); growth();
  }

  function sortable(table) {
    const number = (cell) => { const found = parseFloat(cell.replace(/,/g, "")); return Number.isNaN(found) ? null : found; };
    table.tHead.addEventListener("click", (event) => {
      const head = event.target.closest("th");
      if (!head) return;
      const falling = head.getAttribute("aria-sort") !== "descending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", falling ? "descending" : "ascending");
      const key = (row) => row.cells[head.cellIndex].textContent;
      const rows = [...table.tBodies[0].rows].sort((a, b) => {
        const x = number(key(a)), y = number(key(b));
        const order = x !== null && y !== null ? x - y : x === null && y === null ? key(a).localeCompare(key(b)) : x === null ? -1 : 1;
        return falling ? -order : order;
      });
      table.tBodies[0].append(...rows);
    });
  }

  id("search").addEventListener("input", search);
  document.querySelectorAll("table.sortable").forEach(sortable);
  dark.addEventListener("change", all);
  phone.addEventListener("change", all);
  all();
  document.body.dataset.ready = "yes";
})();
