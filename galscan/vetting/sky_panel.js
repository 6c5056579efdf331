// A panel with Aladin Lite, in a frame in a sandbox. Nothing is loaded before the panel is opened, and the frame is
// removed when it is closed. `prepare` sets the content of a frame; `position` returns {ra, dec} in degrees, or null.
function skyPanel(details, prepare, position) {
  const TEXT = {
    loading: "Loading Aladin Lite from aladin.cds.unistra.fr.",
    late: "aladin.cds.unistra.fr has not responded for 20 seconds. There may be no network connection.",
    absent: "Aladin Lite could not be loaded from aladin.cds.unistra.fr. There may be no network connection; everything "
      + "else on this page works without one. To try again, close this panel and open it.",
    failed: "Aladin Lite was loaded, but cannot start. It needs a browser with WebGL 2.",
    nowhere: "This object has no position on the sky.",
    shown: "",
  };
  const status = details.querySelector("[role=status]");
  let frame = null, state = "loading";
  function draw() {
    const known = position() !== null;
    status.textContent = TEXT[known ? state : "nowhere"];
    status.hidden = !status.textContent;
    if (frame) frame.hidden = !known || state === "absent" || state === "failed";
  }
  const send = () => { if (frame && position()) frame.contentWindow.postMessage(position(), "*"); };
  function update() {
    if (!details.open) {
      if (frame) frame.remove();
      frame = null;
      return;
    }
    if (!frame && position()) {
      state = "loading";
      frame = document.createElement("iframe");
      frame.setAttribute("sandbox", "allow-scripts");
      frame.title = "The sky around the object, in Aladin Lite";
      frame.referrerPolicy = "no-referrer";
      frame.onload = send;
      prepare(frame);
      details.append(frame);
    } else send();
    draw();
  }
  addEventListener("message", (event) => {
    if (!frame || event.source !== frame.contentWindow || !Object.hasOwn(TEXT, event.data)) return;
    state = event.data;
    draw();
  });
  details.addEventListener("toggle", update);
  return update;
}
