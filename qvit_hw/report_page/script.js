// SPDX-License-Identifier: Apache-2.0
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];

  document.getElementById("theme").addEventListener("click", () => {
    const root = document.documentElement;
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });

  const value = (row, column) => {
    const cell = row.children[column];
    const text = cell.dataset.v ?? cell.textContent.trim();
    return cell.classList.contains("n") ? Number.parseFloat(text.replaceAll(",", "")) : text;
  };
  for (const table of all("table.sortable")) {
    const heads = all("thead th", table);
    heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const body = table.tBodies[0];
      const rows = [...body.rows].sort((a, b) => {
        const [x, y] = [value(a, column), value(b, column)];
        return typeof x === "number" ? x - y : x.localeCompare(y, undefined, { numeric: true });
      });
      body.append(...(down ? rows.reverse() : rows));
    }));
  }

  for (const filters of all(".filters[data-for]")) {
    const rows = all(`table[data-kind="${filters.dataset.for}"] tbody tr`);
    const apply = () => {
      const text = filters.querySelector("input[type=search]").value.toLowerCase();
      const ops = new Set(all("input:checked", filters).map((box) => box.value));
      for (const row of rows) {
        row.hidden = !ops.has(row.dataset.op) || !row.dataset.name.toLowerCase().includes(text);
      }
    };
    filters.addEventListener("input", apply);
  }

  const layer = document.getElementById("head-layer");
  if (layer) {
    const head = document.getElementById("head-head");
    const figures = all(".head");
    const show = () => {
      for (const figure of figures) {
        figure.hidden = figure.dataset.layer !== layer.value || figure.dataset.head !== head.value;
      }
    };
    const offer = () => {
      const kept = head.value;
      const options = figures.filter((figure) => figure.dataset.layer === layer.value).map((figure) => figure.dataset.head);
      head.replaceChildren(...options.map((option) => new Option(option)));
      if (options.includes(kept)) head.value = kept;
      show();
    };
    layer.addEventListener("change", offer);
    head.addEventListener("change", show);
    const first = figures.find((figure) => "open" in figure.dataset);
    layer.value = first.dataset.layer;
    offer();
    head.value = first.dataset.head;
    show();
  }

  for (const timeline of all(".timeline")) {
    const readout = timeline.nextElementSibling;
    const hint = readout.textContent;
    let shown = null;
    timeline.addEventListener("pointermove", (event) => {
      const bar = event.target.closest("[data-t]");
      if (bar === shown) return;
      shown?.classList.remove("near");
      bar?.classList.add("near");
      shown = bar;
      readout.textContent = bar ? bar.dataset.t : hint;
    });
  }
})();
