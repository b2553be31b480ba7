// Last: everything is there.

const app = new App(new Model(JSON.parse($("trace").textContent)));
document.documentElement.dataset.ready = "true";
if (typeof serve === "function") serve(app);
