"""Person names made comparable (REQ-DCM-33): case, accents, ligatures, apostrophes and hyphens do not count.

One folded form for what is stored and for what is asked. It keeps the structure of PN (PS3.5 §6.2.1): values
separated by a backslash, at most three component groups by `=`, components by `^`. Trailing empty components and
trailing empty groups are dropped; runs of spaces are one space; each component is trimmed.

**Matching on component groups.** `山田^太郎` alone asks for any group; a key with `=` is compared group by group, an
empty group of the key matching everything. `matches` is that rule for one row. For SQL: a key without `=` matches a
stored value that equals it, or holds it between `=` (and `\\`) signs; most stored names have one group and no `=`.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

_APOSTROPHES = "'`´‘’‛ʹʻʼʽˈ′＇"
_HYPHENS = "-‐‑‒–—―−﹘﹣－"
_BEFORE = str.maketrans({**dict.fromkeys(_APOSTROPHES, "'"), **dict.fromkeys(_HYPHENS, " "), "\u00ad": None})
# letters that Unicode does not decompose; applied after case folding
_LETTERS = str.maketrans({"œ": "oe", "æ": "ae", "ø": "o", "ł": "l", "đ": "d", "ħ": "h", "ŧ": "t", "ı": "i", "ŋ": "n"})
# what compatibility forms such as U+FF1D may turn into and would change the structure of the value
_STRUCTURE = str.maketrans(dict.fromkeys("^=\\*?-", " "))
_WILDCARDS = re.compile(r"([*?])")
_ASCII = str.maketrans({"`": "'", "-": " "})


@lru_cache(maxsize=8192)
def fold(value: str) -> str:
    """The comparable form of a name, stored or asked for, its groups joined by `=`. Folding twice changes nothing;
    `*` and `?` stay, wildcards in a matching key (PS3.4 C.2.2.2.4).
    """
    values = ["=".join(_trim([_group(group) for group in one.split("=")])) for one in value.split("\\")]
    return "\\".join(_trim(values))


def alternatives(value: str) -> tuple[str, ...]:
    """Folded keys of which one must match: `DUPONT^*` also asks for `DUPONT`, whose given name is empty.

    Trailing components that are only `*` may be absent from the stored name, since trailing empty components are.
    """
    folded = fold(value)
    keys = [folded]
    while "=" not in folded and folded.endswith("^*"):
        folded = _group(folded[:-2])
        keys.append(folded)
    return tuple(dict.fromkeys(keys))


def matches(stored: str, value: str) -> bool:
    """Whether a stored name in folded form answers a matching key as the requester wrote it (PS3.4 C.2.2.2.1.1)."""
    names = [name.split("=") for name in stored.split("\\")]
    return any(_asked(groups, key.split("=")) for groups in names for key in alternatives(value))


def _asked(groups: list[str], key: list[str]) -> bool:
    if len(key) == 1:
        wanted = pattern(key[0])
        return key[0] == "" or any(wanted.fullmatch(group) for group in groups)
    padded = groups + [""] * (len(key) - len(groups))
    return all(part == "" or pattern(part).fullmatch(group) for part, group in zip(key, padded, strict=False))


@lru_cache(maxsize=1024)
def pattern(wild: str) -> re.Pattern[str]:
    """A regular expression for text with `*` and `?`, of names or of anything else."""
    first, *rest = (_run(run) for run in re.split(r"\*+", wild))
    if not rest:
        return re.compile(first, re.DOTALL)
    *middle, last = rest
    # between asterisks the first place is as good as any later one: no way back, so no time that grows like a power
    return re.compile("".join((first, *(f"(?>.*?{run})" for run in middle), ".*", last)), re.DOTALL)


def _run(run: str) -> str:
    """Characters of a pattern without `*`."""
    return "".join("." if part == "?" else re.escape(part) for part in _WILDCARDS.split(run))


def _group(group: str) -> str:
    return "^".join(_trim([_component(component) for component in group.split("^")]))


def _trim(parts: list[str]) -> list[str]:
    while parts and not parts[-1]:
        parts.pop()
    return parts


def _component(text: str) -> str:
    if text.isascii():
        folded = text.translate(_ASCII).lower()
    else:
        folded = "".join(part if part in ("*", "?") else _letters(part) for part in _WILDCARDS.split(text))
    return " ".join(folded.replace("\0", " ").split())


def _letters(text: str) -> str:
    decomposed = unicodedata.normalize("NFKD", text.translate(_BEFORE).casefold())
    # only the marks of Latin, Greek and Cyrillic letters: dakuten or Thai vowels are not accents
    bare = "".join(letter for letter in decomposed if not "\u0300" <= letter <= "\u036f")
    plain = bare.translate(_BEFORE).translate(_STRUCTURE).casefold().translate(_LETTERS)
    return unicodedata.normalize("NFC", plain)
