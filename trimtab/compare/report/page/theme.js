"use strict";
// Dark or light: the system's choice until the reader makes one.
(() => {
  const button = document.getElementById("theme");
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const name = () => { button.textContent = dark() ? "Light" : "Dark"; button.ariaLabel = `${button.textContent} colours`; };
  // a file opened from disk may have no storage
  try { const kept = localStorage.getItem("trimtab-theme"); if (kept) root.dataset.theme = kept; } catch { /* none */ }
  button.hidden = false;
  button.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    try { localStorage.setItem("trimtab-theme", root.dataset.theme); } catch { /* none */ }
    name();
  });
  system.addEventListener("change", name);
  name();
})();
