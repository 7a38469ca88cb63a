"use strict";

// The theme: what the system says until the button is pressed; then what was chosen, here and on the next page.
const root = document.documentElement;
const themeButton = document.getElementById("theme");
const systemDark = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : systemDark.matches);
const nameTheme = () => {
  themeButton.textContent = isDark() ? "Light" : "Dark";
  themeButton.setAttribute("aria-label", `Use the ${isDark() ? "light" : "dark"} theme`);
};
themeButton.hidden = false;
themeButton.addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  try { localStorage.setItem("persona-theme", root.dataset.theme); } catch { /* it holds for this page only */ }
  nameTheme();
});
systemDark.addEventListener("change", nameTheme);
nameTheme();

// Tooltips: on the pointer and on the keyboard's focus; they follow what scrolls, and Escape puts them away.
const tip = document.getElementById("tip");
let told = null;
const place = () => {
  if (!told) return;
  const box = told.getBoundingClientRect();
  const most = innerWidth - tip.offsetWidth - 8;
  tip.style.left = `${Math.max(8, Math.min(box.left + box.width / 2 - tip.offsetWidth / 2, most))}px`;
  const above = box.top - tip.offsetHeight - 8;
  tip.style.top = `${above > 8 ? above : box.bottom + 8}px`;
};
const hide = () => {
  told = null;
  tip.hidden = true;
};
const show = (owner) => {
  told = owner;
  tip.textContent = owner.dataset.tip;
  tip.hidden = false;
  place();
};
for (const [event, action] of [["pointerover", show], ["focusin", show], ["pointerout", hide], ["focusout", hide]]) {
  document.addEventListener(event, ({ target }) => {
    const owner = target.closest?.("[data-tip]");
    if (owner) action(owner);
  });
}
document.addEventListener("keydown", ({ key }) => { if (key === "Escape") hide(); });
addEventListener("scroll", place, { passive: true, capture: true });
addEventListener("resize", place);

// The heat map: one stop for the Tab key, arrow keys walk, Home and End go to the ends of a row.
for (const grid of document.querySelectorAll("table.heat")) {
  const rows = [...grid.tBodies[0].rows].map((row) => [...row.querySelectorAll("td")]);
  const walk = (cell, down, right) => {
    let y = rows.findIndex((row) => row.includes(cell));
    let x = rows[y].indexOf(cell);
    do {
      y += down;
      x += right;
    } while (rows[y]?.[x] && !rows[y][x].dataset.tip);
    return rows[y]?.[x];
  };
  const move = (from, to) => {
    if (!to) return;
    from.tabIndex = -1;
    to.tabIndex = 0;
    to.focus();
  };
  grid.addEventListener("keydown", (event) => {
    const cell = event.target.closest("td");
    if (!cell) return;
    const own = [...cell.parentElement.querySelectorAll("td[data-tip]")];
    const steps = {
      ArrowDown: () => walk(cell, 1, 0),
      ArrowUp: () => walk(cell, -1, 0),
      ArrowRight: () => walk(cell, 0, 1),
      ArrowLeft: () => walk(cell, 0, -1),
      Home: () => own[0],
      End: () => own.at(-1),
    };
    if (!(event.key in steps)) return;
    event.preventDefault();
    move(cell, steps[event.key]());
  });
  grid.addEventListener("focusin", ({ target }) => {
    for (const cell of grid.querySelectorAll('td[tabindex="0"]')) if (cell !== target) cell.tabIndex = -1;
    target.tabIndex = 0;
  });
  // What the colors show.
  const figure = grid.closest("figure");
  for (const button of figure.querySelectorAll("button[data-measure]")) {
    button.addEventListener("click", () => {
      const { measure } = button.dataset;
      grid.dataset.measure = measure;
      for (const other of figure.querySelectorAll("button[data-measure]")) {
        other.setAttribute("aria-pressed", String(other === button));
      }
      for (const scale of figure.querySelectorAll(".heat-scale")) scale.hidden = scale.dataset.measure !== measure;
    });
  }
}
