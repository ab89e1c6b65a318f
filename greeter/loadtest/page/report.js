"use strict";
(() => {
  const root = document.documentElement;
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const timeCharts = Object.keys(figures).filter((id) => document.getElementById(id).dataset.axis === "time");
  const touch = matchMedia("(pointer: coarse)").matches;
  const config = {
    responsive: true,
    displaylogo: false,
    displayModeBar: touch ? false : "hover",
    // An explicit list: by default, plotly.js 4 has a button that uploads the chart.
    modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
    showSendToCloud: false,
    plotlyServerURL: "",
    topojsonURL: "",
  };

  // Replace references to variables of the style sheet, such as var(--failed).
  const paint = (value, style) => {
    if (Array.isArray(value)) {
      return value.map((inner) => paint(inner, style));
    }
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, paint(inner, style)]));
    }
    const name = typeof value === "string" && value.match(/^var\((--[a-z0-9_-]+)\)$/);
    return name ? style.getPropertyValue(name[1]).trim() : value;
  };

  const draw = () => {
    const style = getComputedStyle(root);
    for (const [id, figure] of Object.entries(figures)) {
      const { data, layout } = paint(figure, style);
      // Touch scrolls the page, a mouse zooms. The zoom is kept when the colours change.
      Plotly.react(id, data, { ...layout, dragmode: touch ? false : "zoom", uirevision: "same" }, config);
    }
  };

  // All charts over time show the same range.
  const follow = (id) => (change) => {
    const keys = Object.keys(change);
    if (!keys.some((key) => key.startsWith("xaxis."))) {
      return;
    }
    const { range, autorange } = document.getElementById(id).layout.xaxis;
    for (const other of timeCharts) {
      const axis = document.getElementById(other).layout.xaxis;
      const same = axis.range && range.every((end, index) => Math.abs(end - axis.range[index]) < 1e-9);
      if (other !== id && !(autorange ? axis.autorange : same)) {
        Plotly.relayout(other, autorange ? { "xaxis.autorange": true } : { "xaxis.range": [...range] });
      }
    }
  };

  draw();
  timeCharts.forEach((id) => document.getElementById(id).on("plotly_relayout", follow(id)));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  matchMedia("print").addEventListener("change", draw);
})();
