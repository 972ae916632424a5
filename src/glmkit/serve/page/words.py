"""The texts of the page in English and simplified Chinese."""

from collections.abc import Mapping, Sequence

# key: (English, 简体中文)
_WORDS: Mapping[str, tuple[str, str]] = {
    "chat": ("Chat", "对话"),
    "fill": ("Fill in the blanks", "填空"),
    "continue": ("Continue", "续写"),
    "key": ("API key", "API 密钥"),
    "key_hint": ("API key of this server; it stays in this browser tab", "本服务的 API 密钥，只保存在当前标签页"),
    "chat_empty": ("Ask something", "说点什么吧"),
    "chat_input": ("Message", "输入消息"),
    "send": ("Send", "发送"),
    "system": ("System prompt", "系统提示"),
    "system_info": (
        "How the model should behave; read before the first message.",
        "模型应当如何表现；在首条消息之前读入。",
    ),
    "parameters": ("Parameters", "参数"),
    "temperature": ("Temperature", "温度"),
    "temperature_info": ("0 always takes the likeliest token", "0 表示总取最可能的词元"),
    "top_p": ("Top p", "Top p"),
    "top_p_info": ("Only the likeliest tokens with this share", "只取累计概率达到此值的词元"),
    "top_k": ("Top k", "Top k"),
    "top_k_info": ("Only the k likeliest tokens; 0: all", "只取最可能的 k 个词元；0 表示全部"),
    "penalty": ("Repetition penalty", "重复惩罚"),
    "penalty_info": ("1 is none", "1 表示不惩罚"),
    "max_tokens": ("Most new tokens", "最多新词元数"),
    "max_tokens_chat_info": ("0: as many as fit", "0 表示能容纳多少就生成多少"),
    "max_tokens_fill_info": ("For each blank", "每个空最多的词元数"),
    "max_tokens_continue_info": ("Of the continuation", "续写部分最多的词元数"),
    "seed": ("Seed", "随机种子"),
    "seed_info": (
        "The same seed gives the same answer; empty: another each time",
        "相同种子得到相同结果；留空则每次不同",
    ),
    "fill_input": ("Text with blanks", "带空的文本"),
    "fill_input_info": ("Put {blanks} where something is missing.", "在缺少内容处写上 {blanks}。"),
    "fill_run": ("Fill", "填空"),
    "fill_result": ("Filled text", "填好的文本"),
    "fill_empty": ("The filled text appears here.", "填好的文本将显示在这里。"),
    "continue_input": ("Text", "文本"),
    "continue_input_info": ("The model writes on where the text ends.", "模型从文本结尾处续写。"),
    "continue_run": ("Continue", "续写"),
    "continue_result": ("Continued text", "续写结果"),
    "continue_empty": ("The continued text appears here.", "续写结果将显示在这里。"),
    "no_chat": (
        "This model was not taught to chat: it continues texts.",
        "该模型没有经过对话训练：它只续写文本。",
    ),
    "no_chat_fill": (
        "This model was not taught to chat: it fills blanks and continues texts.",
        "该模型没有经过对话训练：它用于填空和续写文本。",
    ),
    "stop": ("Stop", "停止"),
    "copy": ("Copy", "复制"),
    "refused": ("Not possible", "无法执行"),
    "refused_key": ("The API key was not accepted", "API 密钥无效"),
    "refused_key_hint": ("Enter a key of this server at the top of the page.", "请在页面顶部输入本服务的密钥。"),
    "busy": ("The server is busy", "服务器繁忙"),
    "busy_hint": ("Try again in {seconds} s.", "请在 {seconds} 秒后重试。"),
    "too_long": ("Too long", "内容过长"),
    "closing": ("The server is shutting down", "服务器正在关闭"),
    "broken": ("The answer broke off", "回答中断"),
    "nothing": ("The model answered nothing", "模型没有给出回答"),
    "nothing_hint": ("Say it in other words, or change the parameters.", "请换个说法，或调整参数。"),
    "no_text": ("Write something first.", "请先输入内容。"),
}

# What browsers call it; the first two letters are not enough for the page's translations.
_CHINESE = ("zh", "zh-CN", "zh-SG", "zh-TW", "zh-HK")


def translations(blanks: Sequence[str]) -> dict[str, dict[str, str]]:
    """Texts by the browser's language, for the parts of the page that the browser translates."""
    english, chinese = ({key: texts[language] for key, texts in _WORDS.items()} for language in (0, 1))
    english["fill_input_info"] = english["fill_input_info"].format(blanks=" or ".join(blanks))
    chinese["fill_input_info"] = chinese["fill_input_info"].format(blanks=" 或 ".join(blanks))
    return {"en": english, **dict.fromkeys(_CHINESE, chinese)}


def word(key: str, accepted: str = "") -> str:
    """One text in the language of an Accept-Language header."""
    return _WORDS[key][accepted.strip().lower().startswith("zh")]


def both(key: str) -> tuple[str, str]:
    """One text in English and in Chinese."""
    return _WORDS[key]
