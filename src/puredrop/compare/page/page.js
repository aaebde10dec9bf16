"use strict";
// Figures name their colours "@name"; the page's style sheet says what they are, in light and in dark.
(() => {
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
  const paint = (value) => {
    if (typeof value === "string") return value.startsWith("@") ? color(value.slice(1)) : value;
    if (Array.isArray(value)) return value.map(paint);
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, paint(inner)]));
    }
    return value;
  };
  const axis = (own) => ({ ...own, automargin: true, gridcolor: color("grid"), linecolor: color("line"), fixedrange: true });
  const draw = () => {
    for (const element of document.querySelectorAll(".figure")) {
      const figure = paint(JSON.parse(document.getElementById(element.id + "-data").textContent));
      const font = { family: getComputedStyle(document.body).fontFamily, size: 13, color: color("ink") };
      const layout = {
        ...figure.layout, font, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
        margin: { l: 60, r: 12, t: 28, b: 44 }, xaxis: axis(figure.layout.xaxis), yaxis: axis(figure.layout.yaxis),
      };
      Plotly.react(element, figure.data, layout, { responsive: true, displayModeBar: false });
    }
  };
  draw();
  dark.addEventListener("change", draw);
})();
