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
  const axis = (own) => ({ zeroline: false, ...own, automargin: true, gridcolor: color("grid"), linecolor: color("line"), fixedrange: true });
  const draw = () => {
    for (const element of document.querySelectorAll(".figure")) {
      const figure = paint(JSON.parse(document.getElementById(element.id + "-data").textContent));
      // A bar's own error bar is dark on dark.
      for (const trace of figure.data) if (trace.type === "bar" && trace.error_y) trace.error_y.color = color("ink");
      const font = { family: getComputedStyle(document.body).fontFamily, size: 13, color: color("ink") };
      const layout = {
        ...figure.layout, font, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
        legend: figure.layout.legend || { orientation: "h", x: 1, xanchor: "right", y: 1, yanchor: "bottom" },
        margin: { l: 60, r: 12, t: 28, b: 44 }, xaxis: axis(figure.layout.xaxis), yaxis: axis(figure.layout.yaxis),
      };
      Plotly.react(element, figure.data, layout, { responsive: true, displayModeBar: false });
    }
  };
  draw();
  dark.addEventListener("change", draw);
})();
// The drawing: members' masks of the units that are shown, one after the other.
(() => {
  for (const drawing of document.querySelectorAll("[data-network]")) {
    const { members, units } = JSON.parse(document.getElementById(drawing.dataset.network).textContent);
    const says = drawing.querySelector("[role=status]");
    let member = -1;
    const show = (columns) => {
      const isOff = (name) => {
        const [column, unit] = name.split(".").map(Number);
        return Boolean(columns && columns[column] && !columns[column].shown[unit]);
      };
      for (const circle of drawing.querySelectorAll(".unit")) circle.classList.toggle("off", isOff(circle.dataset.unit));
      for (const edge of drawing.querySelectorAll(".edge")) {
        edge.classList.toggle("off", isOff(edge.dataset.from) || isOff(edge.dataset.to));
      }
      if (!columns) return "The network with every unit at work, as in eval mode.";
      const dropping = columns.map((column, i) => column && `${column.kept} of ${units[i]}`).filter(Boolean);
      return `Sub-network ${member + 1} of ${members.length} drawn: ${dropping.join(" and ")} units are kept.`;
    };
    drawing.querySelector("[data-act=next]").addEventListener("click", () => {
      member = (member + 1) % members.length;
      says.textContent = show(members[member]);
    });
    drawing.querySelector("[data-act=all]").addEventListener("click", () => { says.textContent = show(null); });
  }
})();
