"""The looks of the page: quiet, one column, light and dark, from a phone's width up."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

_FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC")
_MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "DejaVu Sans Mono", "Noto Sans Mono CJK SC")

CSS = """
.gradio-container { --mark: #dbeafe; --mark-text: #1e3a8a; --soft: #5b6472; --hair: #e3e6ea; --tint: #f5f6f8; }
.dark .gradio-container { --color-accent: #60a5fa; --mark: #1e3a6e; --mark-text: #dbeafe; --soft: #a1a9b5;
  --hair: #34363b; --tint: #232428; }
.gradio-container > .main { max-width: 54rem !important; margin: 0 auto; padding: 0.75rem 1.25rem 1.5rem !important; }

#top header { display: flex; align-items: baseline; gap: 0.6rem; padding: 0.25rem 0 0; min-width: 0; }
#top h1 { font-size: 1.15rem; font-weight: 650; margin: 0; overflow-wrap: anywhere; line-height: 1.3; }
#top span { color: var(--soft); font-size: 0.85rem; }
#top .html-container { padding: 0; }

.form { background: none; border: 0; }
.tabs { gap: 0.75rem; }
.tabitem { padding: 0 !important; border: 0 !important; }
button[role=tab] { font-size: 0.95rem; min-height: 2.6rem; }

/* chat */
#chat { border: 0; background: none; box-shadow: none; border-radius: 0; }
#chat .bubble-wrap { background: none; padding: 0.5rem 0 1rem; }
#chat .message-wrap { gap: 0; }
#chat .message-row { max-width: 100%; margin: 0.4rem 0 0; }
#chat .message-row.user-row { max-width: min(85%, 40rem); align-self: flex-end; }
#chat .message.bot, #chat .message.user { border: 0; box-shadow: none; font-size: 1rem; line-height: 1.65; }
#chat .message.bot { background: none; padding: 0.25rem 0; }
#chat .message.user { background: var(--tint); border-radius: 1.1rem; padding: 0.5rem 0.95rem; }
#chat .bot-row .flex-wrap, #chat .bot-row .flex-wrap > div { width: 100%; min-width: 0; }
/* Whatever is in a message stays inside it. */
#chat .message-content { overflow-wrap: anywhere; contain: layout paint; }
#chat .message-content, #chat .message-content .prose { color: var(--body-text-color); }
#chat .message-buttons { margin: 0 0 0.6rem; padding: 0; }
#chat .message-buttons .icon-button-wrapper { margin: 0; }
#chat .token.comment { color: var(--soft); }
#chat .icon-button-wrapper { border: 0; box-shadow: none; background: none; padding: 0; gap: 0.1rem; }
#chat .icon-button-wrapper button { width: 2rem; height: 2rem; color: var(--soft); justify-content: center; }
#chat .icon-button-wrapper button:not([disabled]):hover { color: var(--body-text-color); background: var(--tint); }
#chat .icon-button-wrapper::after, #chat .icon-button-wrapper button::after { display: none; }
#chat .top-panel { position: static; margin-left: auto; flex: none; }
#chat .wrapper { display: flex; flex-direction: column; }
#chat .bubble-wrap { flex: 1; min-height: 0; overflow-x: hidden; }
#chat .placeholder-content p { color: var(--soft); font-size: 1.15rem; }
#chat pre, #chat .katex-display, #chat .message-content table { max-width: 100%; overflow-x: auto; }
#chat .katex-display { overflow-y: hidden; padding: 0.25rem 0; margin: 0.6em 0; }
#chat .message-content table { display: block; width: max-content; border: 0; padding: 0; margin: 0.6em 0;
  font-size: 0.95em; overflow-wrap: normal; }
#chat .message-content th, #chat .message-content td { padding: 0.35rem 0.7rem; white-space: nowrap; }

#chat-input { border: 1px solid var(--input-border-color) !important; border-radius: 1.4rem !important;
  background: var(--input-background-fill);
  padding: 0.3rem 0.4rem 0.3rem 0.6rem; box-shadow: 0 1px 6px rgb(0 0 0 / 5%); }
#chat-input:focus-within { border-color: var(--color-accent) !important; }
#chat-input textarea { border: 0; box-shadow: none; background: none; font-size: 1rem; padding: 0.55rem 0.4rem; }
#chat-input .input-container { align-items: flex-end; gap: 0.25rem; }
#chat-input .submit-button, #chat-input .stop-button { width: 2.4rem; height: 2.4rem; border-radius: 50%; margin: 0;
  background: var(--button-primary-background-fill); color: white; flex: none; }
#chat-input .submit-button:hover, #chat-input .stop-button:hover {
  background: var(--button-primary-background-fill-hover); }

/* parameters */
input[type=range]::-webkit-slider-thumb { border: 1px solid var(--input-border-color); }
input[type=range]::-moz-range-thumb { border: 1px solid var(--input-border-color); }
.dark input[type=range] { --neutral-200: #45474d; }

/* texts */
.examples { gap: 0.5rem; flex-wrap: wrap; }
.examples button { flex: 0 1 auto; max-width: 100%; min-height: 2.1rem; padding: 0.3rem 0.8rem; border-radius: 1.1rem;
  border: 1px solid var(--hair); background: none; box-shadow: none; color: var(--soft); font-weight: 400;
  font-size: 0.85rem; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; display: block; }
.examples button:hover { color: var(--body-text-color); background: var(--tint); }
.actions { justify-content: flex-start; }
.actions button { flex: none; min-width: 8rem; }
.output, .parameters { border: 1px solid var(--hair) !important; border-radius: 0.75rem !important; overflow: hidden;
  background: none !important; box-shadow: none !important; }
.output .output { border: 0 !important; }
.output .styler, .output .block { background: none; border: 0; }
.caption { align-items: center; padding: 0.5rem 0.6rem 0 1rem; background: none; }
.caption p { color: var(--soft); font-size: 0.85rem; margin: 0; }
.caption button { flex: none; white-space: nowrap; background: none; color: var(--soft); border: 0; box-shadow: none;
  min-height: 2rem; }
.caption button:hover { color: var(--body-text-color); background: var(--tint); }
.caption button.copied { color: #15803d; }
.caption button.copied::after { content: " ✓"; white-space: pre; }
.result { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 1.05rem; line-height: 1.75; min-height: 3.5rem;
  padding: 0.1rem 1rem 0.9rem; color: var(--body-text-color); }
.html-container:has(.result) { padding: 0; }
.result.empty::before { color: var(--soft); }
.result mark { background: var(--mark); color: var(--mark-text); border-radius: 0.3rem; padding: 0.1em 0.25em;
  -webkit-box-decoration-break: clone; box-decoration-break: clone; }
.result mark.waiting { background: var(--tint); color: var(--soft); outline: 1px dashed var(--hair);
  outline-offset: -1px; }
.result mark.answer:empty:not(.writing)::after { content: "∅"; opacity: 0.7; }
.result mark.writing::after { content: "▍"; opacity: 0.6; }
#key, #fill-input, #continue-input { padding: 0; border-radius: 0; overflow: visible; }
#fill-input textarea, #continue-input textarea { font-size: 1.05rem; line-height: 1.6; }

@media (max-width: 640px) {
  .gradio-container > .main { padding: 0.5rem 0.8rem 1rem !important; }
  .actions button { flex: 1; }
  .parameters .row { flex-direction: column; }
  /* Smaller texts in fields make phones zoom in. */
  .gradio-container input, .gradio-container textarea { font-size: 16px !important; }
}
"""

_ICON = (
    "%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 32 32'%3E%3Crect width='32' height='32' rx='7' "
    "fill='%231d4ed8'/%3E%3Cpath d='M7 21h7M18 21h7' stroke='white' stroke-width='3' stroke-linecap='round'/%3E"
    "%3Cpath d='M7 12h18' stroke='white' stroke-opacity='.55' stroke-width='3' stroke-linecap='round'/%3E%3C/svg%3E"
)
_SCRIPT = """
document.documentElement.lang = navigator.language;
const names = NAMES, noKey = NO_KEY, chinese = Number(navigator.language.startsWith("zh"));
// Answers are text: what they say about styles and forms is dropped before it is shown. Formulas are drawn with styles.
const content = "#chat .message-content", foreign = "form, input, select, textarea, style, link, meta, dialog";
const drop = () => {
  for (const part of document.querySelectorAll(`${content} :is(${foreign})`))
    if (!part.closest("[role=dialog], .edit-textarea, .feedback")) part.remove();
  for (const part of document.querySelectorAll(`${content} .md [style], ${content} .prose [style]`))
    if (!part.closest(".katex")) part.removeAttribute("style");
};
// The page gives its key to the queue, too, and says in words what that refuses.
const ask = window.fetch.bind(window);
window.fetch = async (input, init) => {
  const url = new URL(input instanceof Request ? input.url : input, document.baseURI);
  if (url.origin !== location.origin || !url.pathname.includes("/gradio_api/queue/")) return ask(input, init);
  const request = new Request(input, init), key = document.querySelector("#key input")?.value.trim();
  if (key && /^[!-~]+$/.test(key)) request.headers.set("authorization", `Bearer ${key}`);
  const answer = await ask(request);
  if (answer.ok) return answer;
  const said = await answer.json().catch(() => ({}));
  const detail = answer.status === 401 ? noKey[chinese] : said.error?.message ?? String(answer.status);
  return new Response(JSON.stringify({detail}), {status: answer.status, headers: {"content-type": "application/json"}});
};
new MutationObserver(() => {
  drop();
  for (const mark in names)
    for (const button of document.querySelectorAll(`[data-testid="${mark}"]:not([aria-label])`))
      button.setAttribute("aria-label", names[mark][chinese]);
}).observe(document.documentElement, {childList: true, subtree: true});
"""


def theme() -> Any:
    """System fonts, so that nothing is loaded from elsewhere, and one accent."""
    import gradio as gr

    made = gr.themes.Base(
        primary_hue="blue",
        secondary_hue="blue",
        neutral_hue="zinc",
        radius_size="md",
        font=[*_FONTS, "sans-serif"],
        font_mono=[*_MONO, "monospace"],
    )
    return made.set(
        body_background_fill="white",
        body_background_fill_dark="#17181a",
        background_fill_primary_dark="#17181a",
        background_fill_secondary_dark="#1d1e21",
        block_background_fill="white",
        block_background_fill_dark="#17181a",
        block_border_width="0px",
        block_border_width_dark="0px",
        block_shadow="none",
        block_info_text_color="#5b6472",
        block_info_text_color_dark="#a1a9b5",
        block_title_text_color="*body_text_color",
        block_title_text_color_dark="*body_text_color",
        color_accent="*primary_600",
        input_background_fill="white",
        input_background_fill_dark="#1d1e21",
        input_placeholder_color="#767d88",
        input_placeholder_color_dark="#8b929d",
        input_border_width="1px",
        input_border_color="#d4d7dc",
        input_border_color_dark="#3a3c42",
        input_border_color_focus="*primary_500",
        input_border_color_focus_dark="*primary_400",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover_dark="*primary_500",
    )


def head(*, names: Mapping[str, Sequence[str]], hints: Mapping[str, Sequence[str]], no_key: Sequence[str]) -> str:
    """The page's head besides the CSS: its icon and the parts that depend on the browser's language.

    names: of the buttons that have but an icon, in English and in Chinese, by their mark in the page; hints: what empty
    results say, by the id of their component; no_key: what is said where the key is not accepted.
    """
    script = _SCRIPT.replace("NAMES", json.dumps(names)).replace("NO_KEY", json.dumps(no_key))
    rules = []
    for name, (english, chinese) in hints.items():
        rules.append(f"#{name} .empty::before {{ content: {json.dumps(english)}; }}")
        rules.append(f"html[lang^=zh] #{name} .empty::before {{ content: {json.dumps(chinese, ensure_ascii=False)}; }}")
    return (
        f'<link rel="icon" href="data:image/svg+xml,{_ICON}"><style>{" ".join(rules)}</style><script>{script}</script>'
    )
