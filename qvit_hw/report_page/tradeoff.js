// SPDX-License-Identifier: Apache-2.0
(() => {
  const source = document.getElementById("data");
  if (!source) return;
  const { points, axes } = JSON.parse(source.textContent);
  const plot = document.getElementById("plot");
  const detail = document.getElementById("detail");
  const form = document.getElementById("controls");
  const rows = new Map([...document.querySelectorAll("#points tbody tr")].map((row) => [Number(row.dataset.number), row]));
  const palette = ["#2f7cb4", "#d9702b", "#2e9a62", "#9a5bb8", "#c4a02a", "#4aa6b5", "#b5559a", "#8a6a4a"];
  const higher = new Set(["sqnr_db", "percent"]);
  const words = (value) => String(value).replace("sqrt2", "√2");
  const number = (value) => value.toLocaleString("en", { maximumFractionDigits: 1 });
  let chosen = null;

  const shown = () => {
    const allowed = [...form.querySelectorAll("[data-filter]")].map((set) => [
      set.dataset.filter,
      new Set([...set.querySelectorAll("input:checked")].map((box) => box.value)),
    ]);
    return points.filter((point) =>
      allowed.every(([name, values]) => values.has(String(point.choice[name])))
      && point.sqnr_db >= Number(form.sqnr.value) - 1e-9
      && point.lut <= Number(form.lut.value) && point.cycles <= Number(form.cycles.value)
      && (!form.best.checked || point.front));
  };

  // The best of the points on these two axes, from one end to the other.
  const frontier = (found, x, y) => {
    const sign = (axis) => (higher.has(axis) ? -1 : 1);
    const ordered = [...found].sort((a, b) => sign(x) * (a[x] - b[x]) || sign(y) * (a[y] - b[y]));
    let best = Infinity;
    return ordered.filter((point) => {
      const value = sign(y) * point[y];
      if (value >= best) return false;
      best = value;
      return true;
    });
  };

  const colours = () => {
    const style = getComputedStyle(document.documentElement);
    return Object.fromEntries(["fg", "muted", "line", "panel", "accent"].map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
  };

  const draw = () => {
    const found = shown();
    const [x, y, by] = [form.x.value, form.y.value, form.colour.value];
    const theme = colours();
    form.sqnr_out.value = `${Number(form.sqnr.value).toFixed(1)} dB`;
    form.lut_out.value = `${number(Number(form.lut.value))} LUT`;
    form.cycles_out.value = `${number(Number(form.cycles.value))} cycles`;
    document.getElementById("shown").textContent = `${found.length} of ${points.length} points`;
    for (const [key, row] of rows) row.hidden = !found.some((point) => point.number === key);
    const usable = found.filter((point) => point[x] !== null && point[y] !== null);
    const line = frontier(usable, x, y);
    const traces = [{
      x: line.map((point) => point[x]), y: line.map((point) => point[y]),
      mode: "lines", line: { color: theme.muted, width: 1.2, dash: "dot" }, hoverinfo: "skip", showlegend: false,
    }];
    const groups = [...new Set(points.map((point) => point.choice[by]))].sort((a, b) => (a > b ? 1 : -1));
    groups.forEach((value, place) => {
      const mine = usable.filter((point) => point.choice[by] === value);
      const colour = palette[place % palette.length];
      traces.push({
        x: mine.map((point) => point[x]), y: mine.map((point) => point[y]),
        customdata: mine.map((point) => point.number),
        text: mine.map((point) => `#${point.number}<br>${number(point.sqnr_db)} dB, ${number(point.lut)} LUT, ${number(point.cycles)} cycles`),
        hovertemplate: "%{text}<extra></extra>", mode: "markers", name: `${by.replace("_", " ")} ${words(value)}`,
        marker: {
          size: mine.map((point) => (point.number === chosen ? 17 : point.front ? 11 : 8)),
          color: mine.map((point) => (point.front ? colour : "rgba(0,0,0,0)")),
          line: { color: mine.map((point) => (point.number === chosen ? theme.fg : colour)), width: mine.map((point) => (point.number === chosen ? 3 : 1.6)) },
        },
      });
    });
    const axis = (name) => ({
      title: { text: axes[name], standoff: 8 },
      gridcolor: theme.line, zeroline: false, linecolor: theme.line, automargin: true, nticks: 6, exponentformat: "none", separatethousands: true,
    });
    Plotly.react(plot, traces, {
      xaxis: axis(x), yaxis: axis(y), margin: { l: 56, r: 14, t: 12, b: 60 },
      paper_bgcolor: theme.panel, plot_bgcolor: theme.panel,
      font: { color: theme.muted, size: 12, family: "system-ui, sans-serif" },
      hoverlabel: { bgcolor: theme.panel, font: { color: theme.fg } },
      legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, itemsizing: "constant" }, hovermode: "closest", dragmode: false,
    }, { responsive: true, displaylogo: false, displayModeBar: false });
  };

  const make = (tag, text, parent, name) => {
    const made = document.createElement(tag);
    if (text !== null) made.textContent = text;
    if (name) made.className = name;
    parent?.append(made);
    return made;
  };

  const show = (key) => {
    chosen = key;
    for (const [other, row] of rows) row.classList.toggle("chosen", other === key);
    const point = points.find((each) => each.number === key);
    detail.replaceChildren();
    make("h3", `Point ${key}${point.front ? ", on the front" : ""}`, detail);
    const told = [`${number(point.sqnr_db)} dB`];
    if (point.percent !== null) told.push(`top-1 ${point.percent.toFixed(2)} %`);
    told.push(`${number(point.lut)} LUT`, `${point.dsp} DSP`, `${point.bram} block RAMs`, `${number(point.cycles)} cycles an image`, `weights ${number(point.kilobytes)} kB`);
    if (point.mhz) told.push(`${number(point.mhz)} MHz on ECP5`);
    make("p", told.join(" · "), detail);
    const list = make("dl", null, detail);
    for (const [name, value] of Object.entries(point.choice)) {
      const given = point.commands[0].includes(`${name}=`) ? "changed" : "";
      const entry = make("div", null, list, given);
      make("dt", name.replaceAll("_", " "), entry);
      make("dd", words(value), entry);
    }
    make("p", "Build it:", detail, "muted");
    make("pre", point.commands.join("\n"), detail);
    const button = make("button", "Copy", detail);
    button.type = "button";
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(point.commands.join("\n"));
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(detail.querySelector("pre"));
        button.textContent = "Selected: copy it";
      }
    });
    draw();
  };

  form.addEventListener("input", draw);
  form.addEventListener("submit", (event) => event.preventDefault());
  for (const [key, row] of rows) {
    row.addEventListener("click", () => show(key));
    row.addEventListener("keydown", (event) => { if (event.key === "Enter") show(key); });
  }
  document.getElementById("theme").addEventListener("click", () => setTimeout(draw));
  draw();
  plot.on("plotly_click", (event) => {
    const [hit] = event.points;
    if (hit.customdata !== undefined) show(hit.customdata);
  });
  show(frontier(points, "lut", "sqnr_db").at(-1).number);
})();
