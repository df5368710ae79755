"use strict";

(() => {
  const COLOURS = [
    "#4269d0", "#e8820c", "#3ca951", "#ff725c", "#a463f2", "#38b2ac", "#9c6b4e", "#d65db1",
    "#8a94a6", "#b59b00",
  ];
  const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "cross", "star", "x", "pentagon"];
  const ZOOMED = new Set(["scatter", "distance-map", "fidelity-plot"]);
  const MOST_IN_LEGEND = 24;
  const CONFIG = {
    responsive: true,
    displaylogo: false,
    // Plotly's own default offers to send the data to its cloud.
    showSendToCloud: false,
    plotlyServerURL: "",
    modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d"],
  };
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const narrow = window.matchMedia("(max-width: 760px)");

  const read = (name) => {
    const block = document.getElementById(`${name}-data`);
    return block ? JSON.parse(block.textContent) : null;
  };

  const colour = (name) =>
    getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

  // Gives a layout the page's fonts and colours, which follow the light or dark scheme.
  const themed = (given) => {
    const layout = structuredClone(given);
    const ink = colour("ink");
    const muted = colour("muted");
    const line = colour("line");
    layout.paper_bgcolor = "rgba(0,0,0,0)";
    layout.plot_bgcolor = "rgba(0,0,0,0)";
    layout.colorway = COLOURS;
    layout.font = { family: colour("font"), size: 12.5, color: ink };
    layout.hoverlabel = {
      align: "left",
      namelength: -1,
      bgcolor: colour("card"),
      bordercolor: muted,
      font: { color: ink, family: colour("font"), size: 13 },
    };
    layout.modebar = { bgcolor: "rgba(0,0,0,0)", color: muted, activecolor: ink };
    layout.legend = { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", ...layout.legend };
    layout.margin = { l: 56, r: 16, t: 44, b: 48, ...layout.margin };
    const axes = Object.keys(layout).filter((key) => /^[xy]axis[0-9]+$/.test(key));
    for (const key of ["xaxis", "yaxis", ...axes]) {
      const axis = layout[key] || {};
      if (typeof axis.title === "string") axis.title = { text: axis.title };
      layout[key] = {
        zeroline: false,
        automargin: true,
        ...axis,
        gridcolor: line,
        zerolinecolor: line,
        linecolor: line,
        tickfont: { color: muted },
        title: { standoff: 10, ...axis.title, font: { color: muted, size: 12.5 } },
      };
    }
    for (const shape of layout.shapes || []) {
      shape.line = { ...shape.line, color: muted };
    }
    return layout;
  };

  // On a narrow screen, a colour bar beside the plot would take a third of it.
  const compact = (trace) =>
    trace.type === "heatmap" && trace.colorbar?.title ? { ...trace, colorbar: barAbove(trace.colorbar.title.text) } : trace;

  const barAbove = (title) => ({
    title: { text: title, side: "top" },
    orientation: "h",
    thickness: 10,
    y: 1.02,
    yanchor: "bottom",
  });

  const drawn = [];

  const draw = (name, make) => {
    const place = document.getElementById(name);
    if (!place) return;
    const render = () => {
      const figure = make();
      const layout = themed(figure.layout);
      if (!layout.height) layout.height = place.clientHeight || 320;
      const data = narrow.matches ? figure.data.map(compact) : figure.data;
      if (narrow.matches && figure.data[0]?.type === "heatmap") {
        layout.xaxis.showticklabels = layout.yaxis.showticklabels = false;
      }
      const bar = (ZOOMED.has(name) || name.startsWith("result-")) && !narrow.matches ? "hover" : false;
      Plotly.react(place, data, layout, { ...CONFIG, displayModeBar: bar });
    };
    drawn.push(render);
    render();
  };

  const pick = (values, chosen) => chosen.map((index) => values[index]);

  const shared = (points, chosen) => ({
    type: "scatter",
    mode: "markers",
    x: pick(points.x, chosen),
    y: pick(points.y, chosen),
    text: pick(points.hover, chosen),
    hovertemplate: "%{text}<extra></extra>",
  });

  const categoryTraces = (points, column, size) =>
    column.categories.map((category, code) => {
      const chosen = [...column.values.keys()].filter((index) => column.values[index] === code);
      return {
        ...shared(points, chosen),
        name: category,
        marker: {
          size,
          color: COLOURS[code % COLOURS.length],
          symbol: SYMBOLS[code % SYMBOLS.length],
          line: { width: 1, color: colour("card") },
        },
      };
    });

  const numberTraces = (points, column, size) => {
    const every = [...column.values.keys()];
    const known = every.filter((index) => column.values[index] !== null);
    const missing = every.filter((index) => column.values[index] === null);
    const traces = [
      {
        ...shared(points, known),
        name: column.title,
        showlegend: false,
        marker: {
          size,
          color: pick(column.values, known),
          colorscale: "Viridis",
          showscale: true,
          colorbar: narrow.matches
            ? barAbove(column.title)
            : { title: { text: column.title, side: "right" }, thickness: 12, outlinewidth: 0 },
          line: { width: 1, color: colour("card") },
        },
      },
    ];
    if (missing.length) {
      traces.push({
        ...shared(points, missing),
        name: "(missing)",
        showlegend: true,
        marker: { size, color: colour("muted"), symbol: "x-thin-open" },
      });
    }
    return traces;
  };

  const scatter = () => {
    const points = read("scatter");
    const select = document.getElementById("colour-by");
    if (!points || !select) return;
    if (points.columns.length === 0) select.closest(".control").hidden = true;
    points.columns.forEach((column, index) => {
      select.add(new Option(column.name, String(index)));
    });
    if (points.columns.length) select.selectedIndex = points.first;
    const make = () => {
      const column = points.columns[select.selectedIndex];
      const size = points.x.length > 150 ? 8 : 12;
      let data = [{ ...shared(points, [...points.x.keys()]), marker: { size } }];
      if (column) {
        data = (column.kind === "number" ? numberTraces : categoryTraces)(points, column, size);
      }
      return {
        data,
        layout: {
          showlegend: column?.kind === "category" ? data.length <= MOST_IN_LEGEND : data.length > 1,
          legend: { title: { text: "" } },
          xaxis: { title: { text: points.x_title } },
          yaxis: { title: { text: points.y_title } },
          hovermode: "closest",
        },
      };
    };
    draw("scatter", make);
    select.addEventListener("change", drawn[drawn.length - 1]);
  };

  const sortable = (table) => {
    const body = table.tBodies[0];
    const heads = [...table.tHead.rows[0].cells];
    const key = (row, column) => {
      const cell = row.cells[column];
      return cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value);
    };
    heads.forEach((head, column) => {
      head.querySelector("button").addEventListener("click", () => {
        const direction = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", direction);
        const sign = direction === "ascending" ? 1 : -1;
        const rows = [...body.rows].sort((a, b) => {
          const [left, right] = [key(a, column), key(b, column)];
          const order = typeof left === "number"
            ? left - right
            : left.localeCompare(right, undefined, { numeric: true });
          return sign * order;
        });
        body.append(...rows);
      });
    });
  };

  scatter();
  for (const place of document.querySelectorAll(".canvas")) {
    const figure = place.id === "scatter" ? null : read(place.id);
    if (figure) draw(place.id, () => figure);
  }
  document.querySelectorAll("table.sortable").forEach(sortable);
  for (const query of [dark, narrow]) {
    query.addEventListener("change", () => drawn.forEach((render) => render()));
  }
  document.documentElement.dataset.ready = "true";
})();
