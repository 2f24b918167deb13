"""Tables as Markdown and CSV, and text files whose errors name them."""

import csv
import io
import re

from reid_jax.errors import ConfigError

# what moves a terminal's cursor, hides or turns round what follows; names of files and people may hold it
_CONTROLS = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def visible(text):
    """Text for a terminal: control characters but line ends, written as \\xNN."""
    return _CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def markdown(head, rows):
    """A Markdown table with aligned columns, of lists of str."""
    rows = [[visible(cell).replace("\n", "\\n") for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]

    def line(cells):
        return "| " + " | ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True)) + " |"

    return "\n".join([line(head), "|" + "|".join("-" * (w + 2) for w in widths) + "|", *map(line, rows)])


def comma_separated(head, rows):
    """CSV text; None is an empty cell."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerows([head, *rows])
    return text.getvalue()


def write_text(path, text):
    """Writes a file; ConfigError naming it when that fails."""
    try:
        with open(path, "w", encoding="utf-8", errors="backslashreplace") as f:
            f.write(text)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error
