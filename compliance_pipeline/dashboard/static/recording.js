// The player of a recording's clips: what is clicked in a waveform is played, and 'play from the finding' plays here.
// Without it the page has the browser's own player, and the links lead to the clip itself.
(() => {
  "use strict";
  const clips = [...document.querySelectorAll(".clip")].filter((clip) => clip.querySelector("audio"));

  const playAt = (audio, seconds) => {
    for (const clip of clips) if (clip.querySelector("audio") !== audio) clip.querySelector("audio").pause();
    const seek = () => { audio.currentTime = seconds; };
    if (audio.readyState === 0) {
      audio.addEventListener("loadedmetadata", seek, { once: true });
      audio.preload = "auto";
    } else seek();
    audio.play().catch(() => {});
  };

  for (const clip of clips) {
    const audio = clip.querySelector("audio");
    const wave = clip.querySelector(".wave");
    const head = wave?.querySelector(".playhead");
    const seconds = Number(wave?.dataset.seconds);
    const draw = () => {
      if (!wave) return;
      const x = `${Math.min(100, audio.currentTime / seconds * 100)}%`;
      head.setAttribute("x1", x);
      head.setAttribute("x2", x);
      wave.classList.add("live");
      if (!audio.paused) requestAnimationFrame(draw);
    };
    wave?.classList.add("live");
    audio.addEventListener("play", draw);
    audio.addEventListener("seeked", draw);
    audio.addEventListener("play", () => {
      for (const other of clips) if (other !== clip) other.querySelector("audio").pause();
    });
    audio.addEventListener("error", () => {
      if (clip.querySelector(".no-clip")) return;
      const said = document.createElement("p");
      said.className = "no-clip";
      said.setAttribute("role", "alert");
      said.append("It can't be played: ");
      const why = document.createElement("a");
      why.href = audio.src;
      why.textContent = "see why";
      said.append(why);
      audio.after(said);
    });
    wave?.addEventListener("click", (event) => {
      const box = wave.querySelector("svg").getBoundingClientRect();
      playAt(audio, Math.max(0, Math.min(1, (event.clientX - box.left) / box.width)) * seconds);
    });
  }

  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-clip]");
    const audio = link && document.getElementById(link.dataset.clip)?.querySelector("audio");
    if (!audio || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    playAt(audio, Number(link.dataset.at));
    audio.scrollIntoView({ block: "nearest" });
  });

  // A form that was sent once is not sent again by a second click; the server would take it once anyway.
  for (const form of document.querySelectorAll("form.review")) {
    form.addEventListener("submit", () => setTimeout(() => {
      for (const button of form.querySelectorAll("button")) button.disabled = true;
    }));
  }
  window.addEventListener("pageshow", () => {
    for (const button of document.querySelectorAll("form.review button")) button.disabled = false;
  });
})();
