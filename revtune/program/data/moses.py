"""Raw text as published files have it: punctuation, tokens and lower case, as the scripts of Moses make them.

They are `normalize-punctuation.perl` and `tokenizer.perl` (Koehn et al. 2007) for English and German, with their rules
in their order and the common ones of their abbreviations. All 31,014 English lines of Multi30K's raw files come out as
in its tokenized ones, and so do all 31,014 German ones: `test_moses.py` compares them where the data are. Of IWSLT 2014
there are no raw files to compare.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Literal

Language = Literal["en", "de"]

TextForm = Literal["multi30k", "iwslt14", "plain"]
"""The data set whose files a text looks like; plain text is left as it is."""

Rules = tuple[tuple[str, str], ...]
"""Patterns and what they are replaced by, one after another."""

LETTER, NO_LETTER, HARD = r"([^\W\d_])", r"([\W\d_])", "\u00a0"
"""Groups of a letter and of anything else, and a space that no line breaks at."""

NORMAL: Rules = (
    (r"\(", " ("), (r"\)", ") "), (r" +", " "), (r"\) ([.!:?;,])", r")\1"), (r"\( ", "("), (r" \)", ")"),
    (r"(\d) %", r"\1%"), (r" ([:;])", r"\1"), (r"`", "'"), (r"''", ' " '), (r"[„“”]", '"'), (r"–", "-"),
    (r"—", " - "), (r" +", " "), (r"´", "'"), (r"([A-Za-z])[‘’](?=[A-Za-z])", r"\1'"), (r"[‘‚’]|''", '"'),
    (r"…", "..."), (f"[ {HARD}]«{HARD}?", ' "'), (f"«{HARD}?", '"'), (f"{HARD}?»[ {HARD}]", '" '), (f"{HARD}?»", '"'),
    (f"{HARD}([%:?!;])", r"\1"), (f",{HARD}", ", "), (r" +", " "),
)  # fmt: skip
"""`normalize-punctuation.perl` for all languages; `QUOTES` are its last rules, by language."""

QUOTES: dict[Language, Rules] = {
    "en": ((r'"([,.]+)', r'\1"'), (rf"(\d){HARD}(\d)", r"\1.\2")),
    "de": ((r',"', '",'), (r'(\.+)"(?!<)', r'"\1'), (rf"(\d){HARD}(\d)", r"\1,\2")),
}

DOT = "\u0298"  # a letter, as what the script puts in the place of dots in a row is of letters

APART: Rules = (
    (r"\s+", " "), (r"[\x00-\x1f]", ""), (r"^ +| +$", ""), (r"([^\w\s.'`,-]|_)", r" \1 "),
    (rf"({DOT}+)(?=[^{DOT}])", r"\1 "), (r"([^\d]),", r"\1 , "), (r",([^\d])", r" , \1"), (r"(\d),$", r"\1 ,"),
)  # fmt: skip
"""`tokenizer.perl`: marks stand apart from words, but commas inside numbers do not; `APOSTROPHES` come after it."""

APOSTROPHES: dict[Language, Rules] = {
    "en": (
        (f"{NO_LETTER}'{NO_LETTER}", r"\1 ' \2"), (f"([\\W_])'{LETTER}", r"\1 ' \2"),
        (f"{LETTER}'{NO_LETTER}", r"\1 ' \2"), (f"{LETTER}'{LETTER}", r"\1 '\2"), (r"(\d)'s", r"\1 's"),
    ),
    "de": (("'", " ' "),),
}  # fmt: skip

ESCAPES = {"|": "&#124;", "<": "&lt;", ">": "&gt;", "'": "&apos;", '"': "&quot;", "[": "&#91;", "]": "&#93;"}

LETTERS = set("ABCDEFGHIJKLMNOPQRSTUVWXYZ")

KEPT: dict[Language, set[str]] = {
    "en": LETTERS | set(
        "Adm Brig Bros Capt Cmdr Col Comdr Corp Cpl Dr Gen Gov Hon Hr Insp Lt Maj Messrs Mme Mr Mrs Ms Msgr Op Ph Prof "
        "Rep Reps Rev Sen Sens Sgt Sr St Supt v vs i.e rev e.g".split()
    ),
    "de": LETTERS | {letter.lower() for letter in LETTERS} | {str(number) for number in range(1, 100)} | set(
        "Adm Brig Capt Col Corp Dr Gen Gov Hon Lt Maj Mr Mrs Ms Op Ph Prof Rep Rev Sen Sgt Sr St Mio Mrd bzw v vs usw "
        "d.h z.B u.a etc MwSt ggf d.J D.h m.E vgl z.T sogen ff u.E u.s.w sog u.ä Std evtl Zt Chr u.U o.ä Ltd z.Zt sen "
        "jun dgl dergl Co zzt usf bzgl No Nos Art Nr pp ca Ca II III IV VI VII VIII IX XI XII".split()
    ),
}  # fmt: skip
"""Abbreviations that keep their dot before anything; before a word in lower case all do."""

NUMBERED = {"No", "Nos", "Art", "Nr", "pp"}
"""English ones that keep it before a number."""


def shaped(text: str, form: TextForm, language: Language) -> str:
    """A raw sentence as the files of a form have theirs."""
    if form == "multi30k":
        return tokenized(normalized(text.lower(), language), language)
    return tokenized(text, language).lower() if form == "iwslt14" else text.strip()


def normalized(text: str, language: Language) -> str:
    """A text whose quotation marks, dashes and spaces are plain ones."""
    return applied(QUOTES[language], applied(NORMAL, text))


def tokenized(text: str, language: Language) -> str:
    """The tokens of a text, with spaces between; characters that mean something to Moses are escaped."""
    dots = re.sub(r"\.\.+", lambda match: " " + DOT * len(match[0]), text)  # so that no rule splits them
    words = applied(APOSTROPHES[language], applied(APART, dots)).split()
    tokens = " ".join(ended(word, after, language) for word, after in pairwise([*words, ""]))
    tokens = re.sub(r"\.'$", " . '", tokens).replace(DOT, ".").replace("&", "&amp;")  # before the escapes, which have &
    return "".join(ESCAPES.get(letter, letter) for letter in tokens)


def ended(word: str, after: str, language: Language) -> str:
    """A word, its last dot apart unless it is that of an abbreviation; `after` is the next one, "" at the end."""
    before = word[:-1]
    if not before or not word.endswith("."):
        return word
    kept = "." in before and re.search(LETTER, before) or before in KEPT[language] or after[:1].islower()
    return word if kept or before in NUMBERED and after[:1].isdecimal() else f"{before} ."


def applied(rules: Rules, text: str) -> str:
    """A text after its replacements."""
    for pattern, replacement in rules:
        text = re.sub(pattern, replacement, text)
    return text
