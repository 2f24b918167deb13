"""python -m reid_jax.data list: what is supported, whom to ask for it and under which terms."""

import textwrap

from reid_jax.data.datasets import NAMES
from reid_jax.data.loaders import LAYOUTS


def flags(parser):
    """Flags of the command."""
    parser.add_argument(
        "name", nargs="?", choices=NAMES, metavar="NAME", help="one data set, with its folder layout"
    )


def run(args):
    """Prints the list, or one data set."""
    if args.name == "synthetic":
        print(synthetic())
    elif args.name:
        print(details(args.name, LAYOUTS[args.name]))
    else:
        print("\n\n".join([*(entry(name, layout) for name, layout in LAYOUTS.items()), synthetic()]))
        print("\nlist NAME shows the folder layout of one; check NAME --root FOLDER tries a copy")


def entry(name, layout):
    """One data set in a few lines; every published set's Layout says its terms."""
    lines = [f"{name}: {layout.title} ({layout.kind}; {protocol(layout)})", *paragraph(counts(layout))]
    lines += paragraph(layout.source)
    lines += paragraph(f"Terms: {layout.terms}") if layout.terms else []
    if any(layout.variants):
        known = ", ".join(repr(v) for v in layout.variants)
        lines += paragraph(f"Variants (config.data.variant): {known}")
    if layout.num_splits > 1:
        lines += paragraph(f"Splits (config.data.split): 0 to {layout.num_splits - 1}")
    return "\n".join(lines)


def details(name, layout):
    """One data set with its tree."""
    return f"{entry(name, layout)}\n{textwrap.indent(layout.tree, '    ')}"


def synthetic():
    """The set that anyone can make."""
    lines = [
        "synthetic: drawn pedestrians",
        *paragraph(
            "python -m reid_jax.data synthesize --root FOLDER writes it; training makes it by itself."
        ),
        *paragraph("Terms: none, it shows nobody"),
    ]
    return "\n".join(lines)


def counts(layout):
    """Published counts in words."""
    unit = "tracklets" if layout.kind == "video" else "images"
    shown = [f"{n} {key.replace('images', unit)}" for key, n in layout.counts.items()]
    return "Published: " + ", ".join(shown) if shown else "No published counts"


def protocol(layout):
    """How the set is evaluated by custom."""
    return {"market": "Market-1501 rule"}.get(layout.protocol, layout.protocol)


def paragraph(text):
    """Indented lines of at most 100 characters."""
    return textwrap.wrap(text, 100, initial_indent="    ", subsequent_indent="    ", break_long_words=False)
