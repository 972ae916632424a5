"""General questions with answers in English and Chinese, our own: what a model says here shows what it forgot.

None is of a data set that models are tuned on. They stay as they are: numbers of different runs are compared.
"""

from glmkit.tokenizer.chat_template import Message
from glmkit.tokenizer.dialogue import Dialogue

_PAIRS = (
    (
        "Why does ice float on water?",
        "Ice is less dense than liquid water, because its molecules form an open lattice.",
    ),
    ("How many minutes are there in three and a half hours?", "Three and a half hours are 210 minutes."),
    ("Name the four seasons in order, beginning with spring.", "Spring, summer, autumn and winter."),
    ("What does a compiler do?", "It translates the source code of a program into code that a machine can run."),
    ("Give the opposite of the word 'ancient'.", "The opposite of 'ancient' is 'modern'."),
    (
        "My train leaves at 9:40 and the walk to the station takes 25 minutes. When must I leave at the latest?",
        "You must leave at 9:15 at the latest; a few minutes earlier is safer.",
    ),
    (
        "Write one sentence about a quiet morning.",
        "The kettle hummed while the street outside slowly filled with light.",
    ),
    ("Which planet is the largest of our solar system?", "Jupiter is the largest planet of the solar system."),
    ("Sort these numbers from small to large: 8, 3, 11, 5.", "3, 5, 8, 11"),
    (
        "What is the difference between weather and climate?",
        "Weather is what the air does on a given day; climate is the average of the weather over many years.",
    ),
    ("Write a Python function that adds two numbers.", "def add(a, b):\n    return a + b"),
    ("What is the capital of Portugal?", "The capital of Portugal is Lisbon."),
    ("Correct the sentence: 'He go to school every day.'", "He goes to school every day."),
    ("Is a whale a fish?", "No. A whale is a mammal: it breathes air and feeds its young with milk."),
    ("为什么天空是蓝色的？", "阳光穿过大气时，波长较短的蓝光被空气分子散射得更多，所以天空看起来是蓝色的。"),
    ("一年有多少个月？", "一年有十二个月。"),
    ("请把“谢谢你的帮助”翻译成英文。", "Thank you for your help."),
    ("水的沸点是多少？", "在标准大气压下，水的沸点是一百摄氏度。"),
    ("小明有十二个苹果，分给三个朋友，每人分到几个？", "每人分到四个苹果。"),
    ("写一句描写秋天的话。", "秋风吹过，金黄的树叶轻轻落在安静的小路上。"),
    ("长江流入哪片海？", "长江流入东海。"),
    ("中国古代的四大发明是什么？", "造纸术、印刷术、火药和指南针。"),
    ("把这些词按拼音排序：桌子、苹果、火车。", "火车、苹果、桌子。"),
    ("“温暖”的反义词是什么？", "“温暖”的反义词是“寒冷”。"),
    ("怎样保持良好的睡眠？", "每天按时睡觉和起床，睡前少看手机，保持房间安静、黑暗和凉爽。"),
    ("什么是光合作用？", "光合作用是植物利用阳光，把二氧化碳和水变成有机物并放出氧气的过程。"),
    ("请用“因为……所以……”造句。", "因为今天下雨，所以我们决定留在家里看书。"),
    ("计算机的内存有什么用？", "内存用来暂时存放正在运行的程序和它们需要的数据，断电后内容就会消失。"),
)


def general_dialogues() -> list[Dialogue]:
    """The texts as conversations of one turn, all answers counted."""
    return [
        Dialogue(
            (Message("user", question), Message("assistant", answer)), (False, True), f"general text {number}",
            source="general",
        )
        for number, (question, answer) in enumerate(_PAIRS, 1)
    ]  # fmt: skip
