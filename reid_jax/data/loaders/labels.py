"""Identities and cameras as people write them, and the numbers that they become."""

import re

JUNK, DISTRACTOR = -1, 0
LIMIT = 2**62  # of identities and cameras: below what arrays hold, with room for numbers that sets add
_WHOLE = re.compile(r"([+-]?)(\d{1,4000})(?:\.0*|,0{1,2})?")
_POWER = re.compile(r"([+-]?)(\d+)(?:[.,](\d*))?[eE]\+?(\d{1,3})")
_QUOTES = "\"'`\u2018\u2019\u201c\u201d"


def integer(label, powers=True):
    """The whole number that a label is, None for text.

    As spreadsheets and programs write one: -1, -1.0, " -1", '-1', ="-1", with a real minus sign, 1,0 or, with
    `powers`, 1e3, which beside text is rather a code.
    """
    text = label.strip().removeprefix("=").strip(_QUOTES).strip()
    text = text.replace("\u2212", "-").replace("\u2013", "-").replace("\ufe63", "-").replace("\uff0d", "-")
    if match := _WHOLE.fullmatch(text):
        return int(match[1] + match[2])
    if powers and (match := _POWER.fullmatch(text)):
        decimals, power = (match[3] or "").rstrip("0"), int(match[4])
        if len(decimals) <= power:
            return int(match[1] + match[2] + decimals.ljust(power, "0"))
    return None


def natural(text):
    """Sort key that compares numbers in names as numbers."""
    return [(int(s), "") if s.isdecimal() and len(s) < 4000 else (-1, s) for s in re.split(r"(\d+)", text)]


def printable(name):
    """A name as it can be shown anywhere: bytes that are not UTF-8 are escaped."""
    return name.encode("utf-8", "backslashreplace").decode()


def numbered(labels, special=()):
    """(numbers of labels, {number: name} where these are not the labels themselves).

    Whole numbers stay as they are when all labels are such and smaller than LIMIT; else the labels are
    numbered from 1 in their natural order, but for the numbers in `special`, which keep their meaning.
    """
    values = {label: integer(label) for label in set(labels)}
    whole = all(v is not None and abs(v) < LIMIT for v in values.values())
    if whole:
        return [values[label] for label in labels], {}
    values = {label: integer(label, powers=False) for label in values}
    text = {label: label if v is None else str(v) for label, v in values.items()}
    reserved = {str(v): v for v in values.values() if v in special}
    names = sorted(set(text.values()) - set(reserved), key=natural)
    number = reserved | {name: i for i, name in enumerate(names, 1)}
    return [number[text[label]] for label in labels], dict(enumerate(names, 1))
