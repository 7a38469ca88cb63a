// Before anything is drawn: the theme that was chosen last time, so that no page flashes in the other one.
(() => {
  let chosen = null;
  try { chosen = localStorage.getItem("persona-theme"); } catch { /* a browser that keeps nothing */ }
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
})();
