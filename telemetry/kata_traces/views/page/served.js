// A page that `trace serve` shows: back to the list, and a live trace that grows.

function serve(app) {
  const id = document.documentElement.dataset.served;
  $("back").hidden = false;
  if (!app.model.live) return;
  let busy = false, again = false;
  const load = async () => {
    if (busy) {
      again = true;
      return;
    }
    busy = true;
    try {
      const answer = await fetch(`/api/trace/${encodeURIComponent(id)}`);
      if (answer.ok) app.replace(new Model(await answer.json()));
    } finally {
      busy = false;
      if (again) {
        again = false;
        load();
      }
    }
  };
  const changes = new EventSource(`/api/changes/${encodeURIComponent(id)}`);
  changes.addEventListener("message", load);
  changes.addEventListener("ended", () => { changes.close(); load(); });
  window.addEventListener("pagehide", () => changes.close());
}
