// The stream of events, opened again by itself whenever it is cut or goes silent.

const SILENT_MS = 5000;
const FIRST_MS = 500;
const MOST_MS = 5000;

/** Calls onUpdate(update) for each event, onCut(milliseconds to the next attempt) when the gateway is gone. */
export function follow(url, onUpdate, onCut) {
  let source = null;
  let watchdog = 0;
  let pause = FIRST_MS;

  const heard = () => {
    clearTimeout(watchdog);
    watchdog = setTimeout(cut, SILENT_MS);
    pause = FIRST_MS;
  };

  const cut = () => {
    clearTimeout(watchdog);
    if (source) source.close();
    source = null;
    onCut(pause);
    setTimeout(open, pause);
    pause = Math.min(pause * 1.7, MOST_MS);
  };

  const open = () => {
    source = new EventSource(url);
    watchdog = setTimeout(cut, SILENT_MS);
    source.addEventListener("update", (event) => {
      heard();
      onUpdate(JSON.parse(event.data));
    });
    source.addEventListener("beat", heard);
    source.addEventListener("error", cut);
  };

  open();
}
