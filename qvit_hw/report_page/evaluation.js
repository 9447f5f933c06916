// SPDX-License-Identifier: Apache-2.0
(() => {
  // The point nearest to the pointer (or the finger) says what it is, below its chart.
  for (const plot of document.querySelectorAll("[data-plot]")) {
    const readout = plot.nextElementSibling;
    const hint = readout.textContent;
    let shown = null;
    plot.addEventListener("pointermove", (event) => {
      let best = null;
      let least = 60 ** 2;
      for (const point of plot.querySelectorAll("[data-t]")) {
        if (point.closest("[hidden]")) continue;
        const box = point.getBoundingClientRect();
        const distance = (box.x + box.width / 2 - event.clientX) ** 2 + (box.y + box.height / 2 - event.clientY) ** 2;
        if (distance < least) [best, least] = [point, distance];
      }
      if (best === shown) return;
      shown?.classList.remove("near");
      best?.classList.add("near");
      shown = best;
      readout.textContent = best ? best.dataset.t : hint;
    });
  }

  for (const legend of document.querySelectorAll(".legend")) {
    const plot = legend.parentElement.querySelector("[data-plot]");
    legend.addEventListener("change", (event) => {
      const series = plot.querySelector(`g.${event.target.value}`);
      if (series) series.toggleAttribute("hidden", !event.target.checked);
    });
  }
})();
