// Figures that move: a range input goes through pictures that are drawn already.
// No library, and nothing is fetched but the pictures, so it works from a file, too.
"use strict";

for (const figure of document.querySelectorAll("figure.moving")) {
  const { values, files } = JSON.parse(figure.dataset.frames);
  const picture = figure.querySelector("img");
  const slider = figure.querySelector("input");
  const shown = figure.querySelector("output");
  const alt = picture.alt;
  const name = figure.querySelector("label").textContent;

  // Fetched once somebody is about to move it.
  const ready = [];
  const prepare = () => {
    for (const file of ready.length ? [] : files) {
      const image = new Image();
      image.src = file;
      ready.push(image);
    }
  };
  slider.addEventListener("pointerenter", prepare);
  slider.addEventListener("focus", prepare);

  slider.addEventListener("input", () => {
    const place = Number(slider.value);
    picture.src = files[place];
    picture.alt = `${alt} Now shown: ${name} = ${values[place]}.`;
    slider.setAttribute("aria-valuetext", values[place]);
    shown.value = values[place];
  });
}

// What is too wide for its place scrolls, and the keyboard must reach it.
const reach = () => {
  for (const wide of document.querySelectorAll(".bd-article :is(table, .formula, .picture, pre)")) {
    if (wide.scrollWidth > wide.clientWidth) wide.tabIndex = 0;
    else wide.removeAttribute("tabindex");
  }
};
reach();
// The menu's own arrow has no name.
for (const arrow of document.querySelectorAll(".bd-sidebar-primary summary")) {
  const page = arrow.closest("li").querySelector("a");
  arrow.setAttribute("aria-label", `Pages of ${page.textContent.trim()}`);
}
window.addEventListener("resize", reach);
