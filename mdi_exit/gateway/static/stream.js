// The stream of events, opened again by itself whenever it is cut or goes silent.

const SILENT_MS = 5000;
const FIRST_MS = 500;
const MOST_MS = 5000;
const HIDDEN_MS = 30000;

/**
 * Calls onUpdate(update) for each event, onCut(milliseconds to the next attempt) when the gateway is gone.
 * A page that nobody sees lets go of its stream after a while: browsers allow six connections to one place.
 */
export function follow(url, onUpdate, onCut) {
  let source = null;
  let watchdog = 0;
  let pause = FIRST_MS;
  let asleep = false;
  let nap = 0;

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
    if (asleep) return;
    source = new EventSource(url);
    watchdog = setTimeout(cut, SILENT_MS);
    source.addEventListener("update", (event) => {
      heard();
      onUpdate(JSON.parse(event.data));
    });
    source.addEventListener("beat", heard);
    source.addEventListener("error", cut);
  };

  document.addEventListener("visibilitychange", () => {
    clearTimeout(nap);
    if (document.hidden) {
      nap = setTimeout(() => {
        asleep = true;
        clearTimeout(watchdog);
        source?.close();
        source = null;
      }, HIDDEN_MS);
    } else if (asleep) {
      asleep = false;
      onCut(0);
      open();
    }
  });

  open();
}
