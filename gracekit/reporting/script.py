"""The script of a report. Without it everything is there but hovering by touch and the zoom."""

SCRIPT = """
"use strict";
(function () {
  var tip = document.createElement("div");
  tip.id = "tip"; tip.hidden = true; tip.setAttribute("aria-hidden", "true");
  document.body.appendChild(tip);
  function say(text, event) {
    tip.textContent = text; tip.hidden = false;
    var w = tip.offsetWidth, h = tip.offsetHeight;
    var x = Math.min(event.clientX + 12, window.innerWidth - w - 8);
    var y = event.clientY - h - 12;
    tip.style.left = Math.max(8, x) + "px";
    tip.style.top = (y < 8 ? event.clientY + 18 : y) + "px";
  }
  function hush() { tip.hidden = true; }
  document.querySelectorAll("svg.chart title").forEach(function (title) {
    var mark = title.parentNode, text = title.textContent;
    title.remove();
    mark.addEventListener("pointermove", function (event) { say(text, event); });
    mark.addEventListener("pointerdown", function (event) { say(text, event); });
    mark.addEventListener("pointerleave", hush);
  });
  window.addEventListener("scroll", hush, { passive: true });

  var svg = document.querySelector("svg.map");
  var source = document.getElementById("map-points");
  if (!svg || !source) return;
  var data = JSON.parse(source.textContent);
  var whole = svg.getAttribute("viewBox").split(" ").map(Number);
  var view = whole.slice();
  function show() { svg.setAttribute("viewBox", view.join(" ")); hush(); }
  function zoom(factor, at) {
    var w = Math.min(whole[2], Math.max(whole[2] / 60, view[2] * factor)), k = w / view[2];
    view = [at[0] - (at[0] - view[0]) * k, at[1] - (at[1] - view[1]) * k, w, view[3] * k];
    if (w === whole[2]) view = whole.slice();
    show();
  }
  function place(event) {
    var box = svg.getBoundingClientRect();
    return [view[0] + (event.clientX - box.left) / box.width * view[2],
            view[1] + (event.clientY - box.top) / box.height * view[3]];
  }
  function middle() { return [view[0] + view[2] / 2, view[1] + view[3] / 2]; }
  var tools = document.createElement("div");
  tools.className = "tools";
  [["Zoom in", function () { zoom(0.6, middle()); }],
   ["Zoom out", function () { zoom(1 / 0.6, middle()); }],
   ["Whole map", function () { view = whole.slice(); show(); }]].forEach(function (pair) {
    var button = document.createElement("button");
    button.type = "button"; button.textContent = pair[0];
    button.addEventListener("click", pair[1]);
    tools.appendChild(button);
  });
  svg.parentNode.parentNode.appendChild(tools);
  svg.setAttribute("tabindex", "0");
  svg.addEventListener("keydown", function (event) {
    var step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    var by = step[event.key];
    if (by) { view[0] += by[0] * view[2] / 8; view[1] += by[1] * view[3] / 8; show(); }
    else if (event.key === "+" || event.key === "=") zoom(0.6, middle());
    else if (event.key === "-") zoom(1 / 0.6, middle());
    else if (event.key === "0") { view = whole.slice(); show(); }
    else return;
    event.preventDefault();
  });
  svg.addEventListener("wheel", function (event) {
    if (!event.ctrlKey && !event.metaKey && document.activeElement !== svg) return;
    event.preventDefault();
    zoom(event.deltaY < 0 ? 0.8 : 1.25, place(event));
  }, { passive: false });
  var held = null;
  svg.addEventListener("pointerdown", function (event) {
    if (view[2] < whole[2]) { held = place(event); svg.setPointerCapture(event.pointerId); }
  });
  svg.addEventListener("pointerup", function () { held = null; });
  svg.addEventListener("pointercancel", function () { held = null; });
  svg.addEventListener("pointerleave", hush);
  svg.addEventListener("pointermove", function (event) {
    var at = place(event);
    if (held) { view[0] += held[0] - at[0]; view[1] += held[1] - at[1]; show(); return; }
    var box = svg.getBoundingClientRect(), near = 12 * view[2] / box.width, best = -1, least = near;
    for (var i = 0; i < data.x.length; i++) {
      var d = Math.hypot(data.x[i] - at[0], data.y[i] - at[1]);
      if (d < least) { least = d; best = i; }
    }
    if (best < 0) { hush(); return; }
    var group = data.groups[data.group[best]];
    say(data.id[best] + (group ? " (" + group + "): " : ": ") + data.text[best], event);
  });
})();
"""
