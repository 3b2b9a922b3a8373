// Not a module, so that it runs before the first paint: a chosen theme never flashes the other one.
const chosen = JSON.parse(localStorage.getItem("camelid.preferences") ?? "{}");
if (chosen.theme) document.documentElement.dataset.theme = chosen.theme;
