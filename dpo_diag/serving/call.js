// Put before every page's script. Gradio's promise of a server that died neither resolves nor fails, so ask beside it
// whether the server still lives; a call itself may take as long as a model takes.
async function callServer(name, argument) {
  let over = false;
  const dead = (async () => {
    while (!over) {
      await fetch("alive", { cache: "no-store" }).catch(() => { throw new Error("gone"); });
      await new Promise((resolve) => setTimeout(resolve, 1000));
    }
    return null;
  })();
  try {
    const state = await Promise.race([server[name](argument), dead]);
    if (!state) throw new Error("gone");
    return state;
  } finally {
    over = true;
    dead.catch(() => {});
  }
}

