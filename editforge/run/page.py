"""The page of `editforge try`, and of a Space: base and edited side by side, in the browser.

Everything comes from the one server: no font, script or count goes anywhere else. Pictures travel
inside the answer, so none is written to a disk and no path is on the page.
"""

from __future__ import annotations

import base64
import html
import io
import random
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from editforge.ground.errors import EditforgeError, RecipeError
from editforge.run.trying import GUIDANCES, SEEDS, STEPS, STRENGTHS, Say, Trial, trial

_SMALL = 256  # below this side pixels are shown as they are, not smeared
_LOOPBACK = "127.0.0.1"
_CSS = """
.ef-head h1 {font-size: 1.5rem; font-weight: 600; margin: 0 0 .25rem}
.ef-head, .ef-foot {padding: 0 !important}
.ef-head p, .ef-foot p {margin: .1rem 0; opacity: .8}
.ef-good {color: #15803d; font-weight: 600} .ef-bad {color: #b45309; font-weight: 600}
.dark .ef-good {color: #4ade80} .dark .ef-bad {color: #fbbf24}
.ef-picture {margin: 0}
.ef-picture figcaption {font-weight: 600; margin-bottom: .4rem}
.ef-picture img, .ef-picture .ef-none {display: block; width: 100%; aspect-ratio: 1; border-radius: 8px;
  border: 1px solid var(--border-color-primary); object-fit: contain}
.ef-picture img.ef-small {image-rendering: pixelated}
.ef-picture .ef-none {display: grid; place-items: center; border-style: dashed;
  opacity: .6}
"""


def check_gradio() -> None:
    """Refuse a computer that cannot show the page; nothing is imported.

    Raises:
        RecipeError: no gradio, or one of another age than the page.
    """
    try:
        found = version("gradio")
    except PackageNotFoundError:
        found = ""
    if found.partition(".")[0] != "6":
        raise RecipeError(
            "the page in the browser needs gradio",
            got=f"gradio {found}" if found else "no gradio",
            allowed="gradio 6",
            next="pip install 'editforge[try]'",
        )


def show(
    place: str,
    *,
    model: str | None = None,
    device: str | None = None,
    port: int | None = None,
    browser: bool = True,
    ready: Callable[[str], None] = lambda url: None,
    say: Say = lambda line: None,
) -> None:
    """Open an eraser, serve its page on this computer alone, and go on until Ctrl-C.

    Args:
        place: see `trial`.
        model: see `trial`.
        device: see `trial`.
        port: of the page; None: the first free one from 7860 on.
        browser: open it there.
        ready: takes the address, once the page answers.
        say: takes a line for the user.

    Raises:
        RecipeError: no gradio, or the port is taken; both before a model is read.
        EditforgeError: see `trial`.
    """
    check_gradio()
    if port is not None:
        _check_free(port)
    with trial(place, model=model, device=device, say=say) as opened:
        try:
            with _served(page(opened), host=_LOOPBACK, port=port, browser=browser) as url:
                ready(url)
                threading.Event().wait()
        except KeyboardInterrupt:
            say("the page is closed")


def space(place: str, *, model: str | None = None) -> None:
    """The same page as a Space runs it: where to listen is said by the environment.

    Args:
        place: a repository that was pushed, `OWNER/NAME`.
        model: the base, where the package cannot name it.
    """
    check_gradio()
    with (
        trial(place, model=model, say=print) as opened,
        _served(page(opened), host=None, port=None, browser=False) as url,
    ):
        print(url, flush=True)
        threading.Event().wait()


def page(opened: Trial) -> Any:
    """The page of one trial, as a `gradio.Blocks` that is not served yet."""
    import gradio as gr

    about, own = opened.about, opened.sampler

    def draw(
        prompt: str,
        seed: float | None,
        strength: float,
        steps: float,
        guidance: float,
        bar: Any = gr.Progress(),  # noqa: B008  (gradio finds it by this default)
    ) -> tuple[str, str]:
        bar(0.0, desc="drawing")
        try:
            pair = opened.draw(
                prompt,
                seed,  # type: ignore[arg-type]  # an emptied field is None, and refused there
                strength=strength,
                steps=int(steps),
                guidance=guidance,
                tick=lambda share: bar(share, desc="drawing"),
            )
        except EditforgeError as error:
            raise gr.Error(_said(error), title="Not drawn", print_exception=False) from None
        if pair.cut:
            end = html.escape(pair.cut)
            gr.Warning(f"The text encoder does not read the end: “{end}”", title="Cut off")
        edited = f"edited, strength {strength:g}" if opened.has_strength else "edited"
        return _figure("base", pair.base, prompt), _figure(edited, pair.edited, prompt)

    with gr.Blocks(title=f"EditForge: {_title(opened)}", analytics_enabled=False) as blocks:
        gr.HTML(_head(opened), elem_classes="ef-head")
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                first = about.examples[0] if about.examples else ""
                prompt = gr.Textbox(first, label="Prompt", lines=2, max_lines=4)
                if about.examples:
                    gr.Examples([[text] for text in about.examples], prompt, label="For example")
                strength = gr.Slider(
                    *STRENGTHS,
                    value=1,
                    step=0.05,
                    label="Strength",
                    info="0: the base. 1: as it ships.",
                    visible=opened.has_strength,
                )
                seed = gr.Number(0, label="Seed", precision=0, minimum=SEEDS[0], maximum=SEEDS[1])
                with gr.Accordion("Sampler", open=False):
                    steps = gr.Slider(*STEPS, value=own.steps, step=1, label="Steps")
                    guidance = gr.Slider(*GUIDANCES, value=own.guidance, step=0.5, label="Guidance")
                with gr.Row():
                    another = gr.Button("Another seed", min_width=100)
                    go = gr.Button("Draw", variant="primary", min_width=100, elem_id="ef-draw")
            with gr.Column(scale=5, min_width=400):
                with gr.Row():
                    base = gr.HTML(_figure("base"), min_width=200, elem_id="ef-base")
                    edited = gr.HTML(_figure("edited"), min_width=200, elem_id="ef-edited")
                gr.HTML(_foot(opened), elem_classes="ef-foot")
        call = {
            "fn": draw,
            "inputs": [prompt, seed, strength, steps, guidance],
            "outputs": [base, edited],
            "api_visibility": "private",
            "concurrency_limit": 1,
            "concurrency_id": "draw",
        }
        gr.on([go.click, prompt.submit], **call)
        another.click(
            lambda: random.randint(*SEEDS), outputs=seed, api_visibility="private", queue=False
        ).then(**call)
    return blocks


@contextmanager
def _served(blocks: Any, *, host: str | None, port: int | None, browser: bool) -> Iterator[str]:
    import gradio as gr

    fonts: dict[str, Any] = {
        "font": ["system-ui", "sans-serif"],
        "font_mono": ["ui-monospace", "monospace"],
    }
    try:
        _, url, _ = blocks.launch(
            server_name=host,
            server_port=port,
            inbrowser=browser,
            theme=gr.themes.Base(primary_hue="indigo", neutral_hue="slate", **fonts),
            css=_CSS,
            share=False,
            mcp_server=False,
            ssr_mode=False,
            pwa=False,
            enable_monitoring=False,
            footer_links=[],
            quiet=True,
            prevent_thread_lock=True,
        )
    except OSError as error:
        raise RecipeError(
            "the page cannot be served", got=str(error), next="name a free one: --port"
        ) from None
    try:
        yield str(url).rstrip("/")
    finally:
        blocks.close(verbose=False)


def _check_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_LOOPBACK, port))
        except (OSError, OverflowError):
            raise RecipeError(
                "this port cannot be had",
                got=f"--port {port}",
                next="leave out --port: the first free one is taken",
            ) from None


def _title(opened: Trial) -> str:
    rows = opened.about.erased
    told = [name if not to else f"{name} → {to}" for name, to in rows[:4]]
    told += [f"{len(rows) - 4} more"] if len(rows) > 4 else []
    return ", ".join(told) or "an eraser"


def _head(opened: Trial) -> str:
    verdict = opened.about.verdict
    if verdict is None:
        line = "Not judged: it comes without a report."
    else:
        kind = "ef-good" if verdict.passed else "ef-bad"
        status, message = html.escape(verdict.status), html.escape(verdict.message)
        line = f'<span class="{kind}">{status}</span>: {message}'
    return f"<h1>{html.escape(_title(opened))}</h1><p>{line}</p>"


def _foot(opened: Trial) -> str:
    if not opened.about.weights:
        barrier = "Anyone can leave it out and has the base."
    elif opened.has_strength:
        barrier = "A LoRA can be taken out or turned round by anyone."
    else:
        barrier = "Full weights are at best a weak barrier."
    return (
        f"<p>Base: {html.escape(opened.about.base)}. Both pictures start from the same noise.</p>"
        f"<p>An eraser is a preference, not a guarantee. {barrier} Adversarial prompts, textual "
        "inversion, images as input and fine-tuning can bring a concept back.</p>"
    )


def _figure(label: str, pixels: NDArray[np.uint8] | None = None, prompt: str = "") -> str:
    caption = f"<figcaption>{html.escape(label)}</figcaption>"
    if pixels is None:
        return (
            f'<figure class="ef-picture">{caption}<div class="ef-none">nothing drawn</div></figure>'
        )
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    small = ' class="ef-small"' if max(pixels.shape[:2]) < _SMALL else ""
    said = html.escape(f"{label}: {prompt}")
    image = f'<img{small} alt="{said}" src="data:image/png;base64,{data}">'
    return f'<figure class="ef-picture">{caption}{image}</figure>'


def _said(error: EditforgeError) -> str:
    parts = [error.what]
    parts += [f"got {error.got}"] if error.got not in (None, "") else []
    parts += [f"allowed: {error.allowed}"] if error.allowed not in (None, "") else []
    parts += [str(error.next)] if error.next else []
    return html.escape("; ".join(parts))
