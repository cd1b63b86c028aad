"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const narrow = matchMedia("(max-width: 700px)");
  const places = [...document.querySelectorAll(".plot")];
  const axis = { automargin: true, zeroline: false, tickfont: { size: 11 } };
  const base = {
    legend: { orientation: "h", yref: "container", y: 0, yanchor: "bottom" },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", hoverlabel: { namelength: -1 },
    hoverdistance: -1, font: { family: "system-ui, sans-serif", size: 12 }, dragmode: narrow.matches ? false : "zoom",
  };
  const settings = { responsive: true, displayModeBar: false };

  // the legend's rows are below the axis, each with room of its own
  const sizes = (place, data, layout) => {
    const entries = layout.showlegend ? data.filter((line) => line.showlegend !== false) : [];
    const wide = Math.max(0, ...entries.map((line) => 50 + 7 * line.name.length));
    const each = Math.max(1, Math.floor((place.clientWidth - 80) / wide));
    const room = 20 * Math.ceil(entries.length / each);
    return { height: 300 + room, margin: { l: 56, r: 24, t: 8, b: 50 + room } };
  };
  for (const place of places) {
    const { data, layout } = figures[place.id];
    const own = { ...base, ...sizes(place, data, layout), ...layout };
    for (const name of ["xaxis", "yaxis", "yaxis2"]) if (own[name]) own[name] = { ...axis, ...own[name] };
    for (const line of data) line.steps = line.x;
    Plotly.newPlot(place, data, own, settings);
  }

  const press = (button, on) => button.setAttribute("aria-pressed", String(on));
  for (const button of document.querySelectorAll("button[data-plot]")) {
    const place = document.getElementById(button.dataset.plot);
    button.addEventListener("click", () => {
      const on = button.getAttribute("aria-pressed") !== "true";
      press(button, on);
      const name = button.dataset.axis;
      if (name === "time") {
        const given = figures[place.id].data.map((line) => (on ? line.customdata : line.steps));
        Plotly.update(place, { x: given }, { "xaxis.title.text": on ? "seconds of training" : "step", "xaxis.autorange": true });
      } else {
        Plotly.relayout(place, { [`${name}axis.type`]: on ? "log" : "linear", [`${name}axis.autorange`]: true });
      }
    });
  }

  const folded = [...document.querySelectorAll("details")];
  const onPaper = 660; // pixels: the width of a page between its margins
  addEventListener("beforeprint", () => {
    for (const one of folded) { one.dataset.open = one.open; one.open = true; }
    for (const place of places) Plotly.relayout(place, { width: onPaper });
  });
  addEventListener("afterprint", () => {
    for (const one of folded) one.open = one.dataset.open === "true";
    for (const place of places) Plotly.relayout(place, { width: null, autosize: true });
  });
})();
