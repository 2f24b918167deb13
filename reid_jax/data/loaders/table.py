"""Tables as spreadsheets and programs write them: whatever separates columns, with or without an index."""

import codecs
import csv
import io
import re

from reid_jax.errors import DataError

SEPARATORS = ",;\t| "
_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read(path, needed):
    """(column names, [(line number, values)]) of a table with a header; names in small letters.

    needed: columns by which the header is known. The separator is that of the header: comma, semicolon, tab,
    bar or space. UTF-8 or, where the file says so, UTF-16; bytes that are not UTF-8 become what the file
    system makes of such names. Empty lines and columns are passed over, and row names without a header too.
    DataError for a file that cannot be read or a line of another length.
    """
    try:
        with open(path, "rb") as f:
            text = decoded(f.read())
        lines = parsed(text, needed)
    except (OSError, UnicodeError, csv.Error) as e:
        reason = getattr(e, "strerror", None) or e
        raise DataError(f"cannot read {path}: {reason}; it must be a table as text, in UTF-8") from e
    if not lines:
        return [], []
    (_, header), *rows = lines
    header = [name.strip().lower() for name in header]
    while header and not header[-1]:
        header.pop()  # of commas at the ends of lines
    if rows and all(len(values) == len(header) + 1 for _, values in rows) and any(v[-1] for _, v in rows):
        rows = [(number, values[1:]) for number, values in rows]  # R writes row names, and no name for them
    return header, [(number, fitted(path, number, values, len(header))) for number, values in rows]


def decoded(data):
    """Text of a file's bytes."""
    if data.startswith(_MARKS):
        return data.decode("utf-16")
    return data.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape")


def parsed(text, needed):
    """[(line number, fields without spaces around them)] of all lines that are not empty."""
    declaration = re.match(r"[\"']?sep=(.)[\"']?(\r\n|\r|\n)", text)  # Excel's way to say it
    separator, start = (declaration[1], declaration.end()) if declaration else (separator_of(text, needed), 0)
    file = io.StringIO(text[start:], newline="")
    reader = csv.reader(file, delimiter=separator, strict=True, skipinitialspace=True)
    lines = [(reader.line_num + bool(declaration), [v.strip() for v in values]) for values in reader]
    return [(number, values) for number, values in lines if any(values)]


def separator_of(text, needed):
    """What separates the columns of the first line: with it they are the needed ones, or most in number."""
    header = text.lstrip("\r\n").splitlines()[:1]
    scores = {}
    for separator in SEPARATORS:
        names = [n.strip().lower() for n in next(csv.reader(header, delimiter=separator), [])]
        scores[separator] = set(needed) <= set(names), len(names) * (separator != " ")
    return max(scores, key=scores.get)


def fitted(path, number, values, count):
    """The values of a line, as many as the header has; DataError when it has more or fewer."""
    while len(values) > count and not values[-1]:
        values = values[:-1]
    if len(values) != count:
        raise DataError(
            f"{path}, line {number} has more or fewer fields than the header; quote fields that hold a comma"
        )
    return values
